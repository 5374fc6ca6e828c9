"""The laws of the conformance kit hold for every scheduler, setting, pool and workload."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbsim.schedulers import SCHEDULERS
from cbsim.testing import check_case, check_scheduler
from tests.strategies import cases


@pytest.mark.parametrize("kind", SCHEDULERS.builtin_names())
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_law_holds(kind: str, data: st.DataObject) -> None:
    _, case = data.draw(cases(types=[kind]))
    check_case(SCHEDULERS.get(kind), case)


@pytest.mark.parametrize(
    ("kind", "fixed"),
    [
        ("static", {}),
        ("continuous", {"prefill_first": True}),
        ("continuous", {"prefill_first": False}),
        ("chunked_prefill", {}),
        ("preemptive", {}),
        ("preemptive", {"preemption": "swap"}),
        ("preemptive", {"policy": "fair"}),
        ("preemptive", {"policy": "priority", "aging_s": 20.0}),
        ("vllm", {}),
        ("vllm", {"version": "0.20"}),
        ("vllm", {"version": "0.15"}),
    ],
)
def test_nobody_starves_where_the_order_is_fair(kind: str, fixed: dict[str, object]) -> None:
    check_scheduler(kind, fixed, num_cases=3)
