"""The `vllm` scheduler against decisions recorded from vLLM itself, where the recordings are at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cbsim.base.binding import can_compile
from tests import vllm_cases

RECORDINGS = Path(__file__).parents[3] / "shared" / "vllm-oracle"
CASES = vllm_cases.cases_of(RECORDINGS, RECORDINGS / "further")
ENGINES = ("compiled" if can_compile() else "interpreted",)
"""Beside the rules gone through step by step; `core/test_both_speeds.py` has whole runs interpreted."""


@pytest.mark.skipif(not CASES, reason="the recordings of vLLM are not at hand")
@pytest.mark.xdist_group("core-vllm")
@pytest.mark.parametrize("path", CASES or [Path("none")], ids=lambda path: path.stem)
def test_every_key_of_every_row_is_what_vllm_decided(path: Path) -> None:
    assert vllm_cases.check_case(path, ENGINES) is None


def test_a_difference_is_told_with_row_key_and_both_values() -> None:
    want: list[dict[str, Any]] = [
        {"start": 0.0, "sched": [["a", 4, 0]]},
        {"start": 1.0, "sched": [["a", 1, 4]]},
    ]
    got = json.loads(json.dumps(want))
    assert vllm_cases.difference(got, want) is None
    got[1]["sched"][0][1] = 2
    assert vllm_cases.difference(got, want) == "row 1: sched: vLLM [['a', 1, 4]], cbsim [['a', 2, 4]]"
    assert vllm_cases.difference(got[:1], want) == "vLLM has 2 rows, cbsim 1"
