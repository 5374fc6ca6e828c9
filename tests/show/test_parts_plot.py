"""The picture of where the time went, and the sentence under it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.results.latency import HAND_OVER_PARTS, PARTS, TTFT_PARTS
from cbsim.results.latency.parts import slowest
from cbsim.results.result import Result
from cbsim.show.latency_plot import SHOWN, _spread, latency_parts, percentile_bins
from cbsim.show.report_file import run_chapter
from tests.run_logs import empty_log, make_result, paper_log, random_log
from tests.show.drawn import texts


def with_parts(log: Any, **parts_s: Any) -> Result:
    """A result whose requests did nothing but these parts, of E2E and of TTFT alike."""
    none = np.zeros(len(log.requests["arrival_s"]))
    columns = {
        column: np.asarray(parts_s.get(name, none), dtype=np.float64)
        for names in (PARTS, TTFT_PARTS)
        for name, column in names.items()
    }
    result = make_result(log)
    result.requests = result.requests.assign(**columns)
    return result


def test_bins_by_hand() -> None:
    """Of 200 requests the slowest two are the last bin, whatever their order; parts are means."""
    latency_s = np.random.default_rng(0).permutation(np.arange(1.0, 201.0))
    rows = {"e2e_s": latency_s, **{column: np.zeros(200) for column in PARTS.values()}}
    rows["part_decode_s"] = latency_s - 1
    rows["part_queue_s"] = np.ones(200)
    bins = percentile_bins(pd.DataFrame(rows), "e2e_s")
    assert [(part.low, part.high, part.num_requests) for part in bins] == [
        *((0, 50, 100), (50, 90, 80), (90, 95, 10), (95, 99, 8), (99, 100, 2)),
    ]
    assert bins[0].parts_s["decode"] == np.arange(100).mean()
    assert bins[-1].parts_s["decode"] == 198.5
    assert bins[-1].total_s == 199.5


@pytest.mark.parametrize("number", [1, 99, 100, 101, 120, 250, 700, 2000])
def test_the_last_bar_is_of_the_requests_that_the_sentence_is_of(number: int) -> None:
    rows = {"ttft_s": np.arange(number) + 1.0} | {c: np.ones(number) for c in TTFT_PARTS.values()}
    bins = percentile_bins(pd.DataFrame(rows), "ttft_s")
    assert bins[-1].num_requests == len(slowest(rows["ttft_s"]))


@pytest.mark.parametrize("number", [0, 1, 2, 3, 50])
def test_few_requests_have_fewer_bins_that_hold_them_all(number: int) -> None:
    rows = {"ttft_s": np.arange(number) + 1.0} | {c: np.ones(number) for c in TTFT_PARTS.values()}
    table = pd.concat([pd.DataFrame(rows), pd.DataFrame({"ttft_s": [np.nan] * 3})])
    bins = percentile_bins(table, "ttft_s")
    assert sum(part.num_requests for part in bins) == number
    assert not number or bins[-1].high == 100


def test_every_part_has_a_name_and_a_colour_of_its_own() -> None:
    assert set(SHOWN) == set(PARTS | HAND_OVER_PARTS) >= set(TTFT_PARTS)
    assert len({name for name, _ in SHOWN.values()}) == len({color for _, color in SHOWN.values()}) == 14


def test_the_picture_tells_parts_with_their_share_of_the_slowest() -> None:
    log = random_log(1)
    e2e = log.requests["finished_at_s"] - log.requests["arrival_s"]
    slow = e2e >= np.quantile(e2e, 0.98)
    parts = {"no_kv": np.where(slow, 0.75 * e2e, 0), "decode": np.where(slow, 0.25 * e2e, e2e)}
    shown = texts(latency_parts({"one": with_parts(log, **parts)}))
    for text in ("TTFT", "E2E", "waits for KV blocks 75%", "decodes 25%", "percentiles of E2E", "p99–100"):
        assert text in shown
    assert not [text for text in shown if text and "preempted" in text]


def test_runs_without_parts_are_left_out() -> None:
    told = with_parts(paper_log(), decode=[1.0, 2.0, 3.0, np.nan])
    shown = texts(latency_parts({"with": told, "without": make_result(paper_log())}))
    assert "TTFT" in shown  # One run is named by the page, not by its panels.
    shown = texts(latency_parts({"with": told, "too": told}))
    assert {"with: TTFT", "too: E2E"} <= set(shown)
    for results in ({}, {"nobody": with_parts(empty_log())}):
        latency_parts(results).draw_without_rendering()


def test_the_chapter_says_what_the_slowest_do() -> None:
    # The slowest, by both, is the third: first token after 2 s, the last after 3.5.
    parts = {"decode": [2.0, 0.0, 1.5, np.nan], "queue": [1.0, 1.5, 2.0, np.nan]}
    chapter = run_chapter({"a run": with_parts(paper_log(), **parts)}, "title")
    assert chapter.title == "title"
    picture = next(each for each in chapter.pictures if each.title == "Where the time went")
    assert picture.description.endswith(
        "a run 100% of TTFT waiting for its turn, 57% of E2E waiting for its turn"
    )
    pictures = run_chapter({"a run": make_result(paper_log())}, "title").pictures
    assert "Where the time went" not in [each.title for each in pictures]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=11), st.floats(0.1, 100))
def test_names_do_not_overlap_nor_leave_the_panel(shares: list[float], top: float) -> None:
    middles = sorted(share * top / 1.12 for share in shares)
    places = _spread(middles, top)
    assert len(places) == len(middles)
    assert all(-1e-9 * top <= place <= top * (1 + 1e-9) for place in places)
    gap = min(0.075 * top, top / max(1, len(middles)))
    assert all(later - earlier >= gap * (1 - 1e-6) for earlier, later in pairwise(places))
