"""What the host adds to steps, against the same model without a host; and steps as columns and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.cost.constant import ConstantConfig, ConstantCost
from cbsim.cost.cost_model import CostModel, StepShape
from cbsim.cost.profile import ProfileConfig, ProfileCost
from cbsim.cost.roofline import RooflineConfig, RooflineCost
from cbsim.cost.step_columns import StepColumns
from tests.cost.laws import shapes
from tests.specs.test_specs import load_gpu, load_model

MODEL, GPU = load_model("llama-3-8b"), load_gpu("h200")
SMALL = StepShape((), 0, 2, 200, 150)
LARGE = StepShape(((2048, 4096),), 1, 100, 200_000, 9000)


def profile(**config: Any) -> ProfileCost:
    return ProfileCost(ProfileConfig(type="profile", profile="h200/llama-3-8b", **config), MODEL, GPU)


def roofline(**config: float) -> RooflineCost:
    return RooflineCost(RooflineConfig(type="roofline", **config), MODEL, GPU)


def shares(cost: CostModel, steps: list[StepShape]) -> tuple[list[float], list[float]]:
    """Seconds that the host adds to each step, and the rest of it."""
    columns = StepColumns.from_shapes(steps)
    step_s = cost.steps_s(columns)
    host_s = cost.host_s(step_s, columns.num_chunks + columns.num_decodes, columns.take)
    return host_s.tolist(), (step_s - host_s).tolist()


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(shapes(), min_size=1, max_size=4),
    host=st.sampled_from(["async", "sync", "none"]),
    host_step_s=st.sampled_from([0.0, 0.001, 0.02]),
)
def test_without_the_host_a_step_is_what_the_model_without_one_says(
    steps: list[StepShape], host: str, host_step_s: float
) -> None:
    """With 20 ms of host time the GPU waits for it, with none it never does."""
    host_s, rest_s = shares(profile(host=host, host_step_s=host_step_s), steps)
    alone = profile(host="none")
    assert rest_s == pytest.approx([alone.step_s(step) for step in steps], rel=1e-12, abs=1e-15)
    assert all(seconds >= 0 for seconds in host_s)


def test_the_host_by_hand() -> None:
    """A gap of 0.15 ms, hidden host time of 1 ms and 10 us a request; or all of that on top."""
    gap_s, requests = 1.5e-4, [2, 101]
    assert shares(profile(), [SMALL, LARGE])[0] == [gap_s, gap_s]
    assert shares(profile(host="sync"), [SMALL, LARGE])[0] == pytest.approx(
        [1e-3 + 1e-5 * count for count in requests]
    )
    assert shares(profile(host="none"), [SMALL, LARGE])[0] == [0, 0]
    slow = profile(host_step_s=0.03)
    small_s, large_s = profile(host="none").step_s(SMALL), profile(host="none").step_s(LARGE)
    assert shares(slow, [SMALL, LARGE])[0] == pytest.approx(
        [gap_s + 0.03 + 2e-5 - small_s, max(gap_s, gap_s + 0.03 + 101e-5 - large_s)]
    )
    assert shares(roofline(host_step_s=0.002, host_request_s=1e-5), [SMALL, LARGE])[0] == pytest.approx(
        [0.002 + 1e-5 * count for count in requests]
    )
    assert shares(roofline(), [SMALL])[0] == [0]
    assert shares(ConstantCost(ConstantConfig(type="constant", step_s=1.0), MODEL, GPU), [SMALL])[0] == [0]


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(shapes(), min_size=1, max_size=5), data=st.data())
def test_columns_are_their_steps(steps: list[StepShape], data: st.DataObject) -> None:
    columns = StepColumns.from_shapes(steps)
    assert columns.shapes() == steps
    places = data.draw(st.lists(st.integers(0, len(steps) - 1), max_size=6))
    taken = columns.take(np.array(places, dtype=np.int64))
    assert taken.shapes() == [steps[place] for place in places]
    for cost in (roofline(), profile()):
        assert cost.steps_s(columns).tolist() == [cost.step_s(step) for step in steps]
