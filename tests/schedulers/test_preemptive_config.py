"""Settings that mean nothing together are told, each with its key."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cbsim.schedulers.preemptive import PreemptiveConfig
from cbsim.schedulers.vllm import VllmConfig


def problems(config: type[PreemptiveConfig] | type[VllmConfig], settings: dict[str, Any]) -> dict[str, str]:
    """Key -> what is wrong with it."""
    with pytest.raises(ValidationError) as caught:
        config(type="any", **settings)
    return {
        str(detail["loc"][-1]): str(detail.get("ctx", {}).get("error", detail["msg"]))
        for detail in caught.value.errors()
    }


@pytest.mark.parametrize(
    ("settings", "key", "problem"),
    [
        (
            {"swap_space_gib": 8.0},
            "swap_space_gib",
            "got 8, which means nothing with preemption: recompute; expected swap or cheaper",
        ),
        (
            {"preemption": "recompute", "swap_bandwidth_gb_s": 50.0},
            "swap_bandwidth_gb_s",
            "got 50, which means nothing with preemption: recompute; expected swap or cheaper",
        ),
        (
            {"policy": "edf", "length_knowledge": "prompt_only"},
            "length_knowledge",
            "got 'prompt_only', which means nothing with policy: edf; set policy: sjf",
        ),
        (
            {"policy": "sjf", "prediction_error": 0.3},
            "prediction_error",
            "got 0.3, which means nothing without length_knowledge: predicted",
        ),
        (
            {"policy": "sjf", "length_knowledge": "predicted"},
            "prediction_error",
            "missing; length_knowledge: predicted needs it, for example 0.5",
        ),
        (
            {"preempt_on_arrival": True},
            "preempt_on_arrival",
            "got true, but with policy: fcfs no newcomer is more urgent than those before it; expected "
            "priority, sjf or edf",
        ),
        (
            {"policy": "fair", "preempt_on_arrival": True},
            "preempt_on_arrival",
            "got true, but with policy: fair users' counters overtake each other, so newcomers would evict "
            "one another; expected priority, sjf or edf",
        ),
        ({"swap_space_gib": 0.0, "preemption": "swap"}, "swap_space_gib", "Input should be greater than 0"),
        ({"aging_s": -1.0}, "aging_s", "Input should be greater than or equal to 0"),
    ],
)
def test_what_means_nothing_is_told(settings: dict[str, Any], key: str, problem: str) -> None:
    assert problems(PreemptiveConfig, settings) == {key: problem}


def test_all_mistakes_come_at_once() -> None:
    found = problems(
        PreemptiveConfig,
        {"swap_space_gib": 8.0, "swap_latency_s": 0.1, "preempt_on_arrival": True, "prediction_error": 1.0},
    )
    assert set(found) == {"swap_space_gib", "swap_latency_s", "preempt_on_arrival", "prediction_error"}


@pytest.mark.parametrize("policy", ["sjf", "edf", "fair"])
def test_vllm_knows_two_orders_only(policy: str) -> None:
    assert problems(VllmConfig, {"policy": policy}) == {"policy": "Input should be 'fcfs' or 'priority'"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"preemption": "swap", "swap_space_gib": 8.0, "swap_bandwidth_gb_s": 50.0},
        {
            "policy": "sjf",
            "length_knowledge": "predicted",
            "prediction_error": 0.5,
            "preempt_on_arrival": True,
        },
        {"policy": "fair", "aging_s": 0.0, "victim": "most_blocks"},
    ],
)
def test_a_resolved_configuration_is_a_configuration(settings: dict[str, Any]) -> None:
    """What a run writes down, every default spelled out, can be run again."""
    config = PreemptiveConfig(type="preemptive", **settings)
    assert PreemptiveConfig(**config.model_dump()) == config


def test_the_defaults_are_first_come_first_served_with_recompute() -> None:
    config = PreemptiveConfig(type="preemptive")
    assert (config.policy, config.preemption, config.victim) == ("fcfs", "recompute", None)
    assert (config.aging_s, config.preempt_on_arrival, config.async_scheduling) == (None, False, False)
