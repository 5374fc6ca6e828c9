"""The oracle against decisions recorded from vLLM itself, where the recordings are at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.oracle.oracle import replay_case

RECORDINGS = Path(__file__).parents[3] / "shared" / "vllm-oracle"
CASES = sorted(str(path.relative_to(RECORDINGS).with_suffix("")) for path in RECORDINGS.rglob("case_*.json"))


@pytest.mark.skipif(not CASES, reason="the recordings of vLLM are not at hand")
@pytest.mark.parametrize("name", CASES or ["none"])
def test_every_key_of_every_row_is_what_vllm_decided(name: str) -> None:
    case = json.loads((RECORDINGS / f"{name}.json").read_text())
    lines = (RECORDINGS / f"{name}.steps.jsonl").read_text().splitlines()
    replayed = replay_case(case)
    for number, (got, want) in enumerate(zip(replayed, map(json.loads, lines), strict=False)):
        assert got == want, f"row {number}"
    assert len(replayed) == len(lines)
