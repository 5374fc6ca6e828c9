"""Properties of the parts of latencies, over random small runs and every scheduler."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.base.units import TICKS_PER_S
from cbsim.cost.cost_model import CostModel
from cbsim.results.latency import HAND_OVER_PARTS, PARTS, TTFT_PARTS, request_parts
from cbsim.results.metrics import request_latencies
from cbsim.results.run_log import RunLog
from cbsim.testing import Case
from tests.results.latency.naive import naive_parts
from tests.results.latency.runs import HostedCost, record_of, run
from tests.results.latency.whims import WhimsicalCost, WhimsicalScheduler
from tests.strategies import Rows, cases, workloads

TICK_S = 1 / TICKS_PER_S


def parts_of(log: RunLog, names: dict[str, str]) -> np.ndarray[Any, Any]:
    assert log.parts is not None
    return np.stack([log.parts[column] for column in names.values()])


def with_reasons(log: RunLog, seed: int, cost: CostModel, piece: int = 1 << 20) -> RunLog:
    """The same log, but with the head of the queue lacking this and that at random."""
    reasons = np.random.default_rng(seed).integers(0, 4, len(log.steps["step"]))
    log = dataclasses.replace(log, steps={**log.steps, "waiting_for": reasons})
    costs = [cost] * (int(log.steps["replica"].max()) + 1)
    return dataclasses.replace(
        log, parts=request_parts(log.requests, log.events, record_of(log, piece), costs)
    )


@settings(max_examples=80, deadline=None)
@given(
    named=cases(),
    stop_at_s=st.sampled_from([None, None, 3.0]),
    seed=st.integers(0, 9),
    costs=st.sampled_from([(0.01, 0.001), (1.0, 0.125), (1.0, 0.0)]),
    piece=st.sampled_from([1, 2, 5, 1 << 20]),
    window=st.sampled_from([1, 3, 20]),
    most_windows=st.sampled_from([1, 3, 100]),
)
def test_parts_are_what_a_walk_from_step_to_step_finds(
    named: tuple[str, Case],
    stop_at_s: float | None,
    seed: int,
    costs: tuple[float, float],
    piece: int,
    window: int,
    most_windows: int,
) -> None:
    """They are at least 0, add up to the whole to a tick, and are those of the naive reference."""
    kind, case = named
    cost = HostedCost(*costs)
    log = run(kind, case, cost, stop_at_s)
    if len(log.steps["step"]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cbsim.base.records.PIECE", piece)
            patch.setattr("cbsim.results.latency.windows.WINDOW_ROWS", window)
            patch.setattr("cbsim.results.latency.windows.MOST_WINDOWS", most_windows)
            log = with_reasons(log, seed, cost, piece)
        check(log, cost, is_padded=kind == "static")


@settings(max_examples=80, deadline=None)
@given(rows=workloads(), is_async=st.booleans(), seed=st.integers(0, 999), whimsical_cost=st.booleans())
def test_parts_of_runs_without_reason(rows: Rows, is_async: bool, seed: int, whimsical_cost: bool) -> None:
    """Requests passed over and then preempted, idle engines with running requests, times out of all order."""
    case = Case(rows, {"async_scheduling": is_async, "seed": seed})
    cost = WhimsicalCost(seed) if whimsical_cost else HostedCost()
    log = run(WhimsicalScheduler, case, cost, stop_at_s=200.0)
    check(with_reasons(log, seed, cost), cost)


def check(log: RunLog, cost: CostModel, *, is_padded: bool = False) -> None:
    """Parts are at least 0, add up to the whole to a tick, and are those of the naive reference."""
    assert log.parts is not None
    latencies = request_latencies(log)
    of_e2e = {name: column for name, column in (PARTS | HAND_OVER_PARTS).items() if column in log.parts}
    for names, latency in ((of_e2e, "e2e_s"), (TTFT_PARTS, "ttft_s")):
        parts, whole = parts_of(log, names), latencies[latency]
        assert (np.isnan(parts).all(axis=0) == np.isnan(whole)).all()
        known = ~np.isnan(whole)
        assert (parts[:, known] >= 0).all()
        # Exact in whole ticks; arrival and end are rounded to a tick each.
        assert (np.abs(parts.sum(axis=0) - whole)[known] <= TICK_S).all()
        assert (parts[:, known] * TICKS_PER_S % 1 == 0).all()
    if is_padded:
        return  # Padding is in the steps' times, and not in recorded batches.
    for request, (of_ttft, whole_of) in naive_parts(log, cost).items():
        for names, expected in ((TTFT_PARTS, of_ttft), (of_e2e, whole_of)):
            if expected is not None:
                found = {part: log.parts[column][request] for part, column in names.items()}
                assert found == pytest.approx({part: expected.get(part, 0.0) for part in names}, abs=1e-7)


@settings(max_examples=60, deadline=None)
@given(named=cases(types=("continuous", "preemptive")), seed=st.integers(0, 9))
def test_runs_of_decodes_may_be_cut_in_any_way(named: tuple[str, Case], seed: int) -> None:
    """One run may reach over steps that decode nothing, and two runs may follow each other."""
    kind, case = named
    cost = HostedCost(1.0, 0.125)
    log = run(kind, dataclasses.replace(case, num_replicas=1), cost)
    if log.slices is None or not len(log.steps["step"]):
        return
    names = ("replica", "request", "first_step", "last_step")
    recut = cut_again(log, np.random.default_rng(seed), names)
    decodes = dict(zip(names, np.array(recut, dtype=np.int64).reshape(-1, 4).T, strict=True))
    changed = dataclasses.replace(log, slices=dataclasses.replace(log.slices, decodes=decodes))
    again = request_parts(log.requests, log.events, record_of(changed), [cost])
    assert log.parts is not None
    for name, column in log.parts.items():
        np.testing.assert_array_equal(again[name], column, err_msg=name)


def cut_again(log: RunLog, random: np.random.Generator, names: tuple[str, ...]) -> list[list[int]]:
    """The runs of decodes, joined over steps that decode nothing and then cut in two at random."""
    assert log.slices is not None
    prefills, decodes = log.slices.prefills, log.slices.decodes
    own = set(zip(prefills["request"].tolist(), prefills["step"].tolist(), strict=True))
    order = np.lexsort((decodes["first_step"], decodes["request"]))
    recut: list[list[int]] = []
    for row in zip(*(decodes[name][order].tolist() for name in names), strict=True):
        follows = recut and recut[-1][1] == row[1] and not log.requests["num_preemptions"][row[1]]
        between = range(recut[-1][3] + 1, row[2]) if follows else None
        if between is not None and not any(
            log.steps["num_decode_seqs"][step] or (row[1], step) in own for step in between
        ):
            recut[-1][3] = row[3]
        else:
            recut.append(list(row))
    for row in list(recut):
        cut = int(random.integers(row[2], row[3] + 1))
        if row[2] < cut and log.steps["num_decode_seqs"][cut]:
            recut.append([row[0], row[1], cut, row[3]])
            row[3] = cut - 1
    return recut
