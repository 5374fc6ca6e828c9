"""The steps that are priced again, against the recorded batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given, settings

from cbsim.cost.cost_model import StepShape
from cbsim.cost.step_columns import Floats, Ints, StepColumns
from cbsim.results.latency.charges import StepPrices
from cbsim.results.latency.windows import Visits, Windows
from cbsim.testing import Case
from tests.results.latency.naive import Step, steps_of
from tests.results.latency.runs import HostedCost, record_of, run
from tests.strategies import cases


class Curious(HostedCost):
    """Keeps the shapes that it is asked to price, and asks for those of all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.priced: list[StepShape] = []
        self.steps: list[StepShape] = []

    def step_s(self, shape: StepShape) -> float:
        self.priced.append(shape)
        return super().step_s(shape)

    def host_s(self, step_s: Floats, num_requests: Ints, columns_of: Callable[[Ints], StepColumns]) -> Any:
        self.steps = columns_of(np.arange(len(step_s))).shapes()
        assert [step.num_requests for step in self.steps] == num_requests.tolist()
        return super().host_s(step_s, num_requests, columns_of)


def as_known(step: Step) -> StepShape:
    """A step as its record has it: of decodes alone only the mean context is known, not the longest."""
    shape = step.shape(set(step.slices))
    if shape.chunks or not shape.num_decodes:
        return shape
    return shape._replace(max_decode_context=-(-shape.decode_context // shape.num_decodes))


@settings(max_examples=40, deadline=None)
@given(named=cases(types=("continuous", "chunked_prefill", "preemptive", "vllm")))
def test_steps_are_priced_as_they_were(named: tuple[str, Case]) -> None:
    kind, case = named
    log = run(kind, dataclasses.replace(case, num_replicas=1), HostedCost(1.0, 0.125))
    if log.slices is None or not len(log.steps["step"]):
        return
    cost = Curious()
    (stretch,) = Windows(record_of(log), np.zeros(1, np.int64), Visits(len(case.requests), None))
    prices = StepPrices(stretch, cost)
    steps = steps_of(log, 0)

    prices.host_s(log.steps["duration_s"], slice(0, len(steps)))
    assert cost.steps == [as_known(step) for step in steps]
    every_third = np.arange(len(steps))[1::3]
    for some in (slice(1, 4), every_third):
        prices.host_s(log.steps["duration_s"][some], some)
        assert cost.steps == [as_known(steps[number]) for number in np.arange(len(steps))[some]]

    cost.priced.clear()
    prices.without_chunks_s()
    without = [step.shape(set()) for step in steps if step.has_chunks]
    assert cost.priced == [shape for shape in without if shape.num_decodes]

    cost.priced.clear()
    prefills = stretch.prefills
    prices.with_own_chunk_s(log.steps["duration_s"][prefills["step"]])
    rows = zip(prefills["step"].tolist(), prefills["visit"].tolist(), strict=True)
    own = [(steps[step], steps[step].shape({request})) for step, request in rows]
    assert cost.priced == [shape for step, shape in own if len(step.shape(set(step.slices)).chunks) > 1]
