"""Requests and schedulers for the tests of `preemptive`, in a few words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.simulation import BLOCK_BYTES, Engine, Simulation, simulate

__all__ = ["BLOCK_BYTES", "admission_order", "finish_times", "preemptive", "row", "run"]


def row(name: str, arrival_s: float, num_prompt: int, num_output: int, **more: Any) -> dict[str, Any]:
    """A request as keyword arguments."""
    return {
        "request_id": name,
        "arrival_s": arrival_s,
        "num_prompt_tokens": num_prompt,
        "num_output_tokens": num_output,
        **more,
    }


def preemptive(
    *,
    num_blocks: int = 100,
    prefix_caching: bool = False,
    recompute_s: Callable[[int], float] = lambda num_tokens: num_tokens / 4,
    block_s: float = 0.25,
    seed: int = 0,
    **settings: Any,
) -> Engine:
    """A scheduler with blocks of 4 tokens and prices that floating point holds exactly."""
    return Engine("preemptive", settings, num_blocks, 4, prefix_caching, recompute_s, block_s, seed)


def run(engine: Engine, rows: Sequence[dict[str, Any]]) -> Simulation:
    """Run to the end in steps of 1 s and check what no run may break, in host memory too."""
    simulation = simulate(engine, rows)
    own, requests = simulation.own, simulation.replica.world.requests
    assert own.num_swapped_blocks == own.num_waiting == own.num_running == own.num_kv_tokens == 0
    assert simulation.replica.num_blocks_used == 0
    assert not any(request.num_swapped_blocks for request in requests)
    return simulation


def finish_times(simulation: Simulation) -> dict[str, float]:
    """When each request got its last token, seconds."""
    return {
        name: step["end"]
        for step in simulation.rows
        if step["start"] is not None
        for name in step["finished"]
    }


def admission_order(simulation: Simulation) -> list[str]:
    """Names in the order of first admission."""
    return [name for step in simulation.rows for name in step["new"]]
