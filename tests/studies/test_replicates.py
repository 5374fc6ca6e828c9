"""Rows across replicates: grouping, means, intervals, and what is missing."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from cbsim.studies.intervals import (
    across_replicates,
    bootstrap_interval,
    has_replicates,
    is_known_by_spread,
    t_interval,
)


def table(**changed: object) -> pd.DataFrame:
    columns: dict[str, object] = {
        "gpu": ["a", "a", "a", "b", "b", "b"],
        "seed": [0, 1, 2, 0, 1, 2],
        "num_requests": [10] * 6,
        "ttft_s.p99": [1.0, 2.0, 3.0, 5.0, 5.0, 5.0],
        "notes": [None] * 6,
        "point": list("uvwxyz"),
        "error": [None] * 6,
    }
    return pd.DataFrame(columns | changed)


def test_a_row_a_point_with_the_t_interval_of_each_figure() -> None:
    rows = across_replicates(table()).set_index("gpu")
    assert list(rows["num_replicates"]) == [3, 3]
    interval = t_interval([1.0, 2.0, 3.0])
    a = rows.loc["a"]
    assert (a["ttft_s.p99"], a["ttft_s.p99.low"], a["ttft_s.p99.high"]) == interval
    assert rows.loc["b"]["ttft_s.p99.low"] == rows.loc["b"]["ttft_s.p99.high"] == 5.0
    assert "point" not in rows
    assert "notes" not in rows


def test_resampled_runs_keep_the_interval_of_their_trace() -> None:
    rows = across_replicates(table(), by_spread=True).set_index("gpu")
    assert rows.loc["a"]["ttft_s.p99.high"] == bootstrap_interval([1.0, 2.0, 3.0]).high


def test_failed_runs_are_left_out_and_figures_not_measured_everywhere_are_missing() -> None:
    failing = table(
        **{"ttft_s.p99": [1.0, 3.0, None, 5.0, None, 5.0], "error": [None, None, "no luck", *[None] * 3]}
    )
    rows = across_replicates(failing).set_index("gpu")
    assert list(rows["num_replicates"]) == [2, 3]
    assert rows.loc["a"]["ttft_s.p99"] == 2.0
    assert pd.isna(rows.loc["b"]["ttft_s.p99"])


def test_seeds_alone_make_one_row() -> None:
    rows = across_replicates(table().drop(columns="gpu"))
    assert len(rows) == 1
    assert rows["num_replicates"].iloc[0] == 6


@pytest.mark.parametrize(("seeds", "expected"), [([0] * 6, False), ([0, 1, 2, 0, 1, 2], True)])
def test_replicates_are_told_by_their_seeds(seeds: list[int], expected: bool) -> None:
    assert has_replicates(table(seed=seeds)) is expected
    assert not has_replicates(table().drop(columns="seed"))


@pytest.mark.parametrize(
    ("workload", "cost_model", "is_so"),
    [
        ({"type": "synthetic"}, {"type": "profile", "uncertainty": False}, False),
        ({"type": "synthetic"}, {"type": "profile", "uncertainty": True}, True),
        ({"type": "resampled"}, {"type": "constant"}, True),
        ({"type": "trace"}, {"type": "roofline"}, False),
    ],
)
def test_guesses_at_one_truth_grow_no_surer_by_their_number(
    workload: dict[str, Any], cost_model: dict[str, Any], is_so: bool
) -> None:
    assert is_known_by_spread({"workload": workload, "cost_model": cost_model}) is is_so
