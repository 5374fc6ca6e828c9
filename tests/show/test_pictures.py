"""The pictures of sweeps and capacities: what they mark, name and leave out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.patches import Rectangle

import cbsim
from cbsim.results.result import Result
from cbsim.results.slo import Slo
from cbsim.results.step_work import step_mbu, step_mfu
from cbsim.show.latency_plot import latency_cdfs
from cbsim.show.reader_tables import GOODPUT, ITL, TTFT, LimitedFigure, setting_axes
from cbsim.show.sweep_plot import distinct_front, front_axis, heat_maps, pareto_picture, sweep_pictures
from cbsim.show.sweep_text import Sweep
from cbsim.show.timeline_plot import timeline, utilization
from cbsim.specs import GpuSpec, ModelSpec
from cbsim.studies.front import pareto_front
from tests.run_logs import GPU, MODEL, make_result, paper_log
from tests.show.drawn import texts

BUDGET, CHUNK = "scheduler.max_tokens_per_step", "scheduler.chunk_size"
MAPS = [LimitedFigure(GOODPUT), LimitedFigure(TTFT), LimitedFigure(ITL)]


def table(num_seeds: int = 1, **keys: list[Any]) -> pd.DataFrame:
    """A sweep's table over the product of some keys; goodput is best at budget 1024, chunk 256."""
    axes = keys or {BUDGET: [512, 1024, 2048], CHUNK: [128, 256]}
    rows = [{}]
    for key, values in axes.items():
        rows = [row | {key: value} for row in rows for value in values]
    made = []
    for place, row in enumerate(rows):
        for seed in range(num_seeds):
            best = row.get(BUDGET) == 1024 and row.get(CHUNK) == 256
            noise = 0.01 * seed
            made.append(
                row
                | ({"seed": seed} if num_seeds > 1 else {})
                | {
                    "num_requests": 10,
                    "num_finished": 10,
                    "goodput_per_s": 5.0 + 3 * best + noise + 0.1 * place,
                    "slo_attainment": 0.9,
                    "output_token_throughput_per_s": 100.0 + place,
                    "ttft_s.p99": 1.0 + place + noise,
                    "tpot_s.p99": 0.02,
                    "itl_s.p99": 0.05 + 0.01 * place,
                    "notes": None,
                    "rejection_reasons": None,
                    "point": f"p{place}",
                    "error": None,
                }
            )
    return pd.DataFrame(made)


def sweep(num_seeds: int = 1, **keys: list[Any]) -> Sweep:
    return Sweep.of(table(num_seeds, **keys), {"ttft_s": 2.0})


def test_the_best_cell_of_each_map_is_framed() -> None:
    figure = heat_maps(sweep().points, BUDGET, CHUNK, "maps", MAPS)
    frames = [
        next(patch.get_xy() for patch in axes.patches if isinstance(patch, Rectangle)) for axes in figure.axes
    ]
    # Budgets along x, chunks along y: highest goodput at (1024, 256), lowest p99 at the first point.
    assert frames == [(1, 1), (0, 0), (0, 0)]
    shown = texts(figure)
    for text in (
        "goodput (requests/s within SLO)",
        "ITL p99 (ms)",
        "1,024",
        "max_tokens_per_step",
        "chunk_size",
    ):
        assert text in shown


def test_cells_that_differ_by_next_to_nothing_are_framed_alike() -> None:
    points = sweep().points
    points["goodput_per_s"] = [10.0, 9.96, 9.94, 5.0, 6.0, 7.0]
    axes = heat_maps(points, BUDGET, CHUNK, "maps", MAPS).axes[0]
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert sorted(frame.get_xy() for frame in frames) == [(0, 0), (0, 1)]


def test_labels_of_a_front_share_a_place_where_there_is_no_room_for_two() -> None:
    points = sweep().points
    points["itl_s.p99"] = [0.05, 0.0503, 0.07, 0.09, 0.0905, 0.0910]
    points["output_token_throughput_per_s"] = [100.0, 100.6, 150.0, 200.0, 201.1, 202.2]
    shown = texts(pareto_picture(points, [f"point {place}" for place in range(6)], "front"))
    assert {"1, 2", "3", "4 to 6"} <= set(shown)


def test_figures_that_are_the_same_look_the_same() -> None:
    """An axis as wide as noise would make a trend of it, and name points apart that lie on one another."""
    points = sweep().points
    points["itl_s.p99"] = [0.05, 0.050001, 0.050002, 0.050003, 0.050004, 0.05001]
    points["output_token_throughput_per_s"] = [100.0, 120.0, 140.0, 160.0, 180.0, 200.0]
    figure = pareto_picture(points, list("abcdef"), "front")
    low, high = figure.axes[0].get_xlim()
    assert high - low > 0.05 * 50.0
    assert low < 50.0 < 50.01 < high
    bottom, top = figure.axes[0].get_ylim()
    assert (bottom, top) == (pytest.approx(92.0), pytest.approx(208.0))
    points["output_token_throughput_per_s"] = 100.0 + np.arange(6) * 1e-3
    assert "1  a (the same: 5 more)" in texts(pareto_picture(points, list("abcdef"), "front"))


def test_points_that_miss_the_slo_are_beside_the_front() -> None:
    """The one of the shortest latency misses another limit; where all miss, they are drawn as ever."""
    points = sweep().points
    points["itl_s.p99"] = [0.03, 0.05, 0.06, 0.07, 0.08, 0.09]
    points["output_token_throughput_per_s"] = 100.0 + np.arange(6) * 1e-3
    misses = [True, False, False, False, False, False]
    labels = [f"point {place}" for place in range(6)]
    figure = pareto_picture(points, labels, "front", misses=misses)
    crosses = [line for line in figure.axes[0].get_lines() if line.get_marker() == "x"]
    assert [line.get_xdata()[0] for line in crosses if len(line.get_xdata())] == [pytest.approx(30.0)]
    shown = texts(figure)
    assert "1  point 1" in shown, "the others are as high, and take longer"
    assert any(text.endswith("Crosses miss the SLO.") for text in shown)
    all_miss = texts(pareto_picture(points, labels, "front", misses=[True] * 6))
    assert "1  point 0" in all_miss
    assert not any("Crosses" in text for text in all_miss)


def test_cells_that_were_not_run_stay_empty() -> None:
    points = sweep().points.iloc[1:]
    figure = heat_maps(points, BUDGET, CHUNK, "maps", MAPS)
    assert len(figure.axes[0].texts) == 5


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_the_front_is_what_a_naive_search_finds(points: list[tuple[int, int]]) -> None:
    gain, cost = (np.array(values, dtype=np.float64) for values in zip(*points, strict=True))
    front = pareto_front(gain, cost)
    assert list(cost[front]) == sorted(cost[front])
    beaten = [
        any((g >= gain[i] and c < cost[i]) or (g > gain[i] and c <= cost[i]) for g, c in points)
        for i in range(len(points))
    ]
    expected = {points[i] for i in range(len(points)) if not beaten[i]}
    assert {(gain[i], cost[i]) for i in front} == expected
    assert len(front) == len(expected)


def test_the_front_is_named_and_points_without_figures_are_left_out() -> None:
    points = sweep().points
    points.loc[0, "itl_s.p99"] = np.nan
    labels = [f"point {place}" for place in range(len(points))]
    shown = texts(pareto_picture(points, labels, "front"))
    # Throughput and ITL rise together here, so that all others are on the front.
    named = [text for text in shown if text and text[0].isdigit() and "point" in text]
    assert named == [f"{number}  point {number}" for number in range(1, 6)]


@pytest.mark.parametrize(
    ("keys", "panel", "files"),
    [
        ({BUDGET: [512, 1024], CHUNK: [128, 256]}, "goodput (requests/s within SLO)", ["settings", "pareto"]),
        ({BUDGET: [512, 1024, 2048]}, "ITL p99 (ms)", ["settings", "pareto"]),
        ({BUDGET: [512, 1024], "gpu": ["a", "b"]}, "ITL p99 (ms)", ["settings", "pareto"]),
        ({"workload.rate_scale": [1.0, 2.0], "gpu": ["a", "b"]}, "SLO attainment", ["settings", "pareto"]),
        ({"gpu": ["a", "b", "c"]}, None, ["pareto"]),
        ({"gpu": ["a", "b"]}, None, []),
    ],
)
def test_a_sweep_gets_the_pictures_that_suit_it(
    keys: dict[str, list[Any]], panel: str | None, files: list[str]
) -> None:
    pictures = sweep_pictures(sweep(**keys), "name")
    assert list(pictures) == files
    if panel is not None:
        assert panel in texts(pictures["settings"].figure)


@pytest.fixture(scope="module")
def small_run() -> Result:
    workload = {
        "type": "synthetic",
        "num_requests": 40,
        "arrivals": {"type": "poisson", "rate_per_s": 20.0},
        "prompt_tokens": {"type": "uniform", "min": 50, "max": 400},
        "output_tokens": {"type": "uniform", "min": 5, "max": 60},
    }
    return cbsim.run({"workload": workload, "scheduler": "vllm-server", "replicas": {"count": 2}})


def test_mfu_and_mbu_of_the_steps_add_up_to_those_of_the_run(small_run: Result) -> None:
    steps, summary = small_run.steps, small_run.summary
    replica_s = summary["makespan_s"] * 2
    for share, name in ((step_mfu, "mfu"), (step_mbu, "mbu")):
        of_run = float((share(small_run, steps) * steps["duration_s"]).sum()) / replica_s
        assert of_run == pytest.approx(summary[name])


def test_mfu_of_a_step_worked_by_hand() -> None:
    result = make_result(paper_log())
    result.config |= {"model": MODEL.model_dump(), "gpu": GPU.model_dump()}
    # Step 0: 4 tokens x 68, 1 row of logits x 20 and 10 pairs x 8 FLOP in 1 s of 1000 FLOP/s; 120 bytes of
    # weights and 4 entries written and 4 read of 8 bytes in 1 s of 1000 bytes/s.
    assert step_mfu(result, result.steps)[0] == pytest.approx((4 * 68 + 20 + 10 * 8) / 1000)
    assert step_mbu(result, result.steps)[0] == pytest.approx((120 + 8 * 8) / 1000)
    assert ModelSpec.model_validate(result.config["model"]) == MODEL
    assert GpuSpec.model_validate(result.config["gpu"]) == GPU


def test_utilization_over_time_is_drawn_for_runs_that_say_enough(small_run: Result) -> None:
    paper = make_result(paper_log())
    del paper.config["model"]
    figure = utilization({"small": small_run, "paper": paper})
    assert len(figure.axes) == 2
    assert "small" in texts(figure)


def test_throughput_is_held_against_what_the_slo_limits_with_a_line_there() -> None:
    points = table(**{BUDGET: [256, 512, 1024], CHUNK: [128]})
    points["tpot_s.p99"] = [0.02, 0.05, 0.07]
    limited = Sweep.of(points, {"ttft_s": 2.0, "tpot_s": {"p99": 0.06}})
    picture = sweep_pictures(limited, "name")["pareto"]
    shown = texts(picture.figure)
    assert {"TPOT p99 (ms)", "SLO 60"} <= set(shown)
    assert picture.title == "name: throughput against TPOT p99"
    (axes,) = picture.figure.axes
    assert any(
        line.get_xdata()[0] == pytest.approx(60.0) for line in axes.lines if len(line.get_xdata()) == 2
    )


@pytest.mark.parametrize(
    ("slo", "name"),
    [
        ({}, "ITL p99 (ms)"),
        ({"ttft_s": 1.0}, "TTFT p99 (s)"),
        ({"ttft_s": {"p95": 1.0}}, "TTFT p95 (s)"),
        ({"ttft_s": 1.0, "itl_s": 0.1}, "ITL p99 (ms)"),
        ({"e2e_s": {"mean": 1.0}}, "E2E mean (s)"),
    ],
)
def test_the_front_is_over_the_latency_that_matters(slo: dict[str, Any], name: str) -> None:
    assert front_axis(Slo.of(slo)).figure.title == name


def test_points_equal_to_many_digits_are_one_of_the_front() -> None:
    """Neither a little more throughput nor a little less latency makes a point of its own."""
    gains = np.array([100.0, 100.0000001, 150.0, 150.4, 149.9])
    costs = np.array([10.0, 10.0000001, 20.0, 20.2, 19.99])
    assert distinct_front(gains, costs) == [[0, 1], [4, 2, 3]]
    assert distinct_front(np.array([100.0, 200.0]), np.array([10.0, 10.01])) == [[1]]


def test_cells_beyond_a_limit_are_hatched() -> None:
    points = sweep().points.assign(**{"ttft_s.p99": [1.0, 1.5, 2.5, 3.0, 1.0, 0.5]})
    figure = heat_maps(points, BUDGET, CHUNK, "maps", setting_axes(Slo.of({"ttft_s": 2.0})))
    hatched = [[patch for patch in axes.patches if patch.get_hatch()] for axes in figure.axes]
    assert [len(patches) for patches in hatched] == [0, 2, 0]


@pytest.mark.parametrize(("limit", "is_drawn"), [(3.0, True), (300.0, False)])
def test_a_limit_is_drawn_on_the_axis_that_it_limits(limit: float, is_drawn: bool) -> None:
    made = Sweep.of(table(**{BUDGET: [512, 1024, 2048]}), {"ttft_s": {"p99": limit}})
    figure = sweep_pictures(made, "name")["settings"].figure
    ttft = next(
        axes
        for axes in figure.axes
        if axes.get_title(loc="left") == "TTFT p99 (s)" or axes.get_title() == "TTFT p99 (s)"
    )
    assert any(list(line.get_ydata()) == [limit, limit] for line in ttft.lines) is is_drawn
    assert (f"SLO {limit:g}" if is_drawn else f"SLO {limit:g} ↑") in texts(figure)


def test_limits_on_percentiles_are_crosses_on_the_cdf(small_run: Result) -> None:
    limit = small_run.summary["ttft_s"]["p90"]
    figure = latency_cdfs({"small": small_run}, {"ttft_s": {"each": limit * 1.01, "p95": limit}})
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in crosses] == [(pytest.approx(limit), 0.95)]
    assert f"SLO p95 {limit:g} s" in texts(figure)


def test_names_of_rows_over_time_do_not_touch(small_run: Result) -> None:
    names = [f"max_tokens_per_step {2**place}, max_num_seqs 128" for place in range(8, 15)]
    figure = timeline(dict.fromkeys(names, small_run))
    figure.draw_without_rendering()
    labels = [axes.yaxis.label for axes in figure.axes[::4]]
    assert len(labels) == len(names)
    extents = sorted((label.get_window_extent() for label in labels), key=lambda extent: -extent.y1)
    assert all(below.y1 < above.y0 for above, below in pairwise(extents))
