"""Properties of the parts of latencies, over random small runs and every scheduler."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.cost.base import CostModel
from cbsim.latency import PARTS, TTFT_PARTS, Replica, request_parts
from cbsim.metrics import request_latencies
from cbsim.recorder import RunLog
from cbsim.testing import Case
from cbsim.units import TICKS_PER_S
from tests.latency.naive import naive_parts
from tests.latency.runs import HostedCost, run
from tests.strategies import cases

TICK_S = 1 / TICKS_PER_S


def parts_of(log: RunLog, names: dict[str, str]) -> np.ndarray[Any, Any]:
    assert log.parts is not None
    return np.stack([log.parts[column] for column in names.values()])


def with_reasons(log: RunLog, seed: int, cost: CostModel) -> RunLog:
    """The same log, but with the head of the queue lacking this and that at random."""
    reasons = np.random.default_rng(seed).integers(0, 4, len(log.steps["step"]))
    log = dataclasses.replace(log, steps={**log.steps, "waiting_for": reasons})
    replicas = []
    for number in range(int(log.steps["replica"].max()) + 1):
        mine = log.steps["replica"] == number
        slices = dataclasses.replace(
            log.slices,
            prefills=rows(log.slices.prefills, log.slices.prefills["replica"] == number),
            decodes=rows(log.slices.decodes, log.slices.decodes["replica"] == number),
        )
        replicas.append(Replica(number, rows(log.steps, mine), slices, cost))
    return dataclasses.replace(log, parts=request_parts(log.requests, log.events, replicas))


def rows(table: Any, chosen: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: column[chosen] for name, column in table.items()}


@settings(max_examples=150, deadline=None)
@given(
    named=cases(),
    stop_at_s=st.sampled_from([None, None, 3.0]),
    seed=st.integers(0, 9),
    costs=st.sampled_from([(0.01, 0.001), (1.0, 0.125), (1.0, 0.0)]),
)
def test_parts_are_what_a_walk_from_step_to_step_finds(
    named: tuple[str, Case], stop_at_s: float | None, seed: int, costs: tuple[float, float]
) -> None:
    """They are at least 0, add up to the whole to a tick, and are those of the naive reference."""
    kind, case = named
    cost = HostedCost(*costs)
    log = run(kind, case, cost, stop_at_s)
    if not len(log.steps["step"]):
        return
    log = with_reasons(log, seed, cost)
    latencies = request_latencies(log)
    for names, latency in ((PARTS, "e2e_s"), (TTFT_PARTS, "ttft_s")):
        parts, whole = parts_of(log, names), latencies[latency]
        assert (np.isnan(parts).all(axis=0) == np.isnan(whole)).all()
        known = ~np.isnan(whole)
        assert (parts[:, known] >= 0).all()
        # Exact in whole ticks; arrival and end are rounded to a tick each.
        assert (np.abs(parts.sum(axis=0) - whole)[known] <= TICK_S).all()
        assert (parts[:, known] * TICKS_PER_S % 1 == 0).all()
    if kind == "static":
        return  # Padding is in its steps' times, and not in recorded batches.
    for request, (of_ttft, of_e2e) in naive_parts(log, cost).items():
        for names, expected in ((TTFT_PARTS, of_ttft), (PARTS, of_e2e)):
            if expected is not None:
                found = {part: log.parts[column][request] for part, column in names.items()}
                assert found == pytest.approx({part: expected[part] for part in names}, abs=1e-7)
