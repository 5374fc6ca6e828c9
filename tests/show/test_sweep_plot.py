"""Pictures of sweeps and priorities: what stands where, not how it looks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import cbsim
from cbsim.show.reader_tables import ITL, LimitedFigure
from cbsim.show.sweep_plot import sweep_curves
from experiments.pictures.draw import FIGURES, ttft_by_priority, ttft_table

TABLE = pd.DataFrame(
    {
        "kv_cache.num_blocks": [200, 100, 200, 100],
        "kv_cache.prefix_caching": [False, False, True, True],
        "itl_s.p99": [0.02, 0.01, 0.04, 0.03],
        "prefix_hit_rate": [np.nan, np.nan, 0.5, 0.25],
    }
)


def test_each_value_of_the_other_axis_is_a_curve() -> None:
    figures = [LimitedFigure(ITL), LimitedFigure(FIGURES["prefix_hit_rate"])]
    figure = sweep_curves(TABLE, "kv_cache.num_blocks", "kv_cache.prefix_caching", figures, "title")
    itl, hits = figure.axes
    assert (itl.get_title(loc="left"), itl.get_xlabel()) == ("ITL p99 (ms)", "num_blocks")
    curves = {line.get_label(): line for line in itl.get_lines()}
    assert list(curves) == ["prefix_caching false", "prefix_caching true"]
    assert np.array_equal(curves["prefix_caching true"].get_xdata(), [100, 200])
    assert curves["prefix_caching true"].get_ydata() == pytest.approx([30.0, 40.0])
    assert np.array_equal(hits.get_lines()[1].get_ydata(), [0.25, 0.5])
    assert [label.get_text() for label in itl.get_xticklabels()] == ["100", "200"]


def run(priorities: list[int]) -> Any:
    return cbsim.run(
        {
            "model": "llama-3-8b",
            "gpu": "h200",
            "workload": {
                "type": "synthetic",
                "num_requests": 20,
                "arrivals": {"type": "constant", "rate_per_s": 1.0},
                "prompt_tokens": {"type": "fixed", "value": 8},
                "output_tokens": {"type": "fixed", "value": 2},
                "priorities": {"values": priorities},
            },
            "scheduler": {"type": "preemptive"},
            "cost_model": {"type": "constant", "step_s": 0.25},
        }
    )


def test_each_priority_has_a_panel_and_rows() -> None:
    runs = {"both": run([0, 3]), "one": run([3])}
    figure = ttft_by_priority(runs, "title")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["priority 0", "priority 3"]
    table = ttft_table(runs).set_index(["run", "priority"])
    assert list(table.index) == [("both", 0), ("both", 3), ("one", 3)]
    assert table.loc[("one", 3)].tolist() == [20.0, 0.25, 0.25, 0.25]
    assert table["num_requests"].sum() == 40
    shares = [
        line.get_ydata()[-1] for axes in figure.axes for line in axes.get_lines() if len(line.get_xdata())
    ]
    assert shares == [1.0, 1.0, 1.0]
