"""Runs of years: parts of latencies are right however many seconds there are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cbsim
from cbsim.base.units import S_PER_DAY, TICKS_PER_S
from cbsim.results.latency import PARTS, TTFT_PARTS
from cbsim.results.latency.spans import Ticks

REQUESTS = [(0.0, 12, 5), (1.0, 3, 4), (2.5, 9, 1), (2.5, 4, 7), (30.0, 5, 2)]
"""Arrivals in steps; prompt and output tokens."""
COLUMNS = [*PARTS.values(), *TTFT_PARTS.values()]


def parts(folder: Path, step_s: float, **changed: Any) -> pd.DataFrame:
    """Requests of a small run, on a KV cache that is too small for them, all of its times times `step_s`."""
    rows = [
        {
            "request_id": f"r{i}",
            "arrival_s": arrival * step_s,
            "num_prompt_tokens": prompt,
            "num_output_tokens": output,
        }
        for i, (arrival, prompt, output) in enumerate(REQUESTS)
    ]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "workload": {"type": "trace", "path": str(folder / "t.jsonl")},
        "scheduler": {"type": "vllm", "max_num_seqs": 3, "max_tokens_per_step": 6, "async_scheduling": False},
        "kv_cache": {"num_blocks": 10, "block_size": 2},
        "cost_model": {"type": "constant", "step_s": step_s},
    }
    requests = cbsim.run({**config, **changed}).requests
    assert requests["num_preemptions"].sum() > 0
    return requests


@pytest.mark.parametrize("exponent", [3, 24, 25, 27, 40, 47])
def test_parts_grow_with_the_seconds_of_a_step(exponent: int, tmp_path: Path) -> None:
    """All instants are whole numbers of half steps: nothing is rounded, however long a step is."""
    one, long = parts(tmp_path, 1.0), parts(tmp_path, math.ldexp(1.0, exponent))
    assert (one[COLUMNS].max() > 0).sum() >= 6
    assert (long[COLUMNS] == np.ldexp(one[COLUMNS], exponent)).all(axis=None)


@pytest.mark.parametrize("step_s", [1e7, 1.3e8, 1e12, 1e14])
def test_parts_add_up_to_the_latency(step_s: float, tmp_path: Path) -> None:
    requests = parts(tmp_path, step_s)
    assert (requests[COLUMNS] >= 0).all(axis=None)
    for latency, columns in (("e2e_s", PARTS), ("ttft_s", TTFT_PARTS)):
        total_s = requests[list(columns.values())].sum(axis=1)
        np.testing.assert_allclose(total_s, requests[latency], rtol=1e-13)


def test_ticks_are_those_of_the_units_up_to_a_year_and_never_too_many() -> None:
    for span_s in (0.0, 1e-9, 1.0, 365 * S_PER_DAY):
        assert Ticks(span_s).per_s == TICKS_PER_S
    for span_s in (4e7, 1.4e8, 1e20, 1e308):
        ticks = Ticks(span_s)
        assert 2**59 <= ticks.of(np.array([span_s]))[0] < 2**62
        assert 1 / ticks.per_s < math.ulp(span_s)
