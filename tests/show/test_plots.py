import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.base.errors import CbsimError
from cbsim.results.result import load_run
from cbsim.show.latency_plot import latency_cdfs
from cbsim.show.style import PALETTE, line_style, save_figure
from cbsim.show.timeline_plot import bin_steps, timeline
from tests.run_logs import empty_log, make_result, paper_log, random_log
from tests.show.drawn import texts


@pytest.fixture(scope="module")
def runs():
    return {"first": make_result(random_log(1)), "second": make_result(random_log(2))}


def test_latency_picture_names_runs_units_and_limits(runs):
    shown = texts(latency_cdfs(runs, {"ttft_s": 0.25, "tpot_s": 0.05, "e2e_s": 0.001}))
    for text in ("first", "second", "TTFT (s)", "ITL (ms)", "SLO 0.25 s", "SLO 50 ms →", "share of gaps"):
        assert text in shown


def test_timeline_picture_has_a_row_of_panels_a_run(runs):
    figure = timeline(runs)
    assert len(figure.axes) == 8
    shown = texts(figure)
    for text in ("first", "second", "waiting requests", "KV blocks taken", "simulated time (s)"):
        assert text in shown


def test_pictures_are_equal_to_the_byte_and_of_loaded_runs_too(runs, tmp_path):
    loaded = {"first": load_run(runs["first"].save(tmp_path / "first"))}
    for draw in (latency_cdfs, timeline):
        first, second = (
            [path.read_bytes() for path in save_figure(draw(some), tmp_path / "picture")]
            for some in ({"first": runs["first"]}, loaded)
        )
        assert first == second
        assert first[0].startswith(b"\x89PNG")
        assert b"TTFT" in first[1] or b"KV blocks" in first[1]
    assert not list(tmp_path.glob(".*"))


def test_runs_with_little_to_show():
    for log in (empty_log(), paper_log()):
        for draw in (latency_cdfs, timeline):
            draw({"one": make_result(log)}).draw_without_rendering()
    latency_cdfs({}).draw_without_rendering()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CbsimError, match=re.escape(f"{tmp_path / 'file' / 'a.png'}: can't be written")):
        save_figure(timeline({"one": make_result(paper_log())}), tmp_path / "file" / "a")


def test_lines_can_be_told_apart():
    styles = [tuple(line_style(place).values()) for place in range(28)]
    assert len(set(styles)) == 28
    assert styles[0][0] == PALETTE[0]


def test_bins_of_the_paper_log():
    steps = paper_log().steps
    edges_s = np.array([0.0, 1.0, 2.5, 4.0, 6.0])
    mean, highest = bin_steps(steps["start_s"], steps["duration_s"], steps["num_prefill_tokens"], edges_s)
    assert mean.tolist() == [4.0, (2 + 2.5) / 1.5, 2.5 / 1.5, 0.0]
    assert highest.tolist() == [4, 5, 5, 0]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5), st.integers(0, 9)), min_size=0, max_size=20),
    st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_bins_equal_a_sum_over_small_ticks(parts, width):
    """Steps on whole seconds, given as (idle before, duration, value); bins of `width` seconds."""
    ticks, start_s = [], []
    for idle, duration, value in parts:
        ticks += [0] * idle
        start_s.append(len(ticks))
        ticks += [value] * duration
    duration_s, values = np.array([p[1] for p in parts]), np.array([p[2] for p in parts])
    num_bins = -(-max(len(ticks), 1) // width)
    ticks += [0] * (num_bins * width - len(ticks))
    edges_s = np.arange(num_bins + 1) * float(width)
    mean, highest = bin_steps(np.array(start_s, dtype=float), duration_s, values, edges_s)
    by_bin = np.array(ticks).reshape(num_bins, width)
    assert mean.tolist() == pytest.approx(by_bin.mean(axis=1).tolist())
    assert highest.tolist() == by_bin.max(axis=1).tolist()
