"""Requests and schedulers for the tests of `preemptive`, in a few words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cbsim.schedulers import Prices, Resources
from cbsim.schedulers.kvcache import BlockPool, IdentityPool
from cbsim.schedulers.preemptive import PreemptiveConfig, PreemptiveScheduler
from cbsim.workload.request import Request, RequestState
from tests.simulation import Simulation, simulate

BLOCK_BYTES = 2**20


def row(name: str, arrival_s: float, num_prompt: int, num_output: int, **more: Any) -> dict[str, Any]:
    """A request as keyword arguments."""
    return {
        "request_id": name,
        "arrival_s": arrival_s,
        "num_prompt_tokens": num_prompt,
        "num_output_tokens": num_output,
        **more,
    }


def request(index: int, **more: Any) -> Request:
    """A request that nobody has seen yet."""
    made = Request(**row(f"r{index}", float(index), 8, 8, **more))
    made.index = index
    return made


def preemptive(
    *,
    num_blocks: int = 100,
    prefix_caching: bool = False,
    recompute_s: Callable[[int], float] = lambda num_tokens: num_tokens / 4,
    move_s: Callable[[int], float] = lambda num_blocks: num_blocks / 4,
    seed: int = 0,
    **settings: Any,
) -> PreemptiveScheduler:
    """A scheduler with blocks of 4 tokens and prices that floating point holds exactly."""
    config = PreemptiveConfig(type="preemptive", **settings)
    pool = IdentityPool(num_blocks, 4) if prefix_caching else BlockPool(num_blocks, 4)
    return PreemptiveScheduler(config, Resources(pool, Prices(recompute_s, move_s, BLOCK_BYTES), 8192, seed))


def run(scheduler: PreemptiveScheduler, rows: Sequence[dict[str, Any]]) -> Simulation:
    """Run to the end in steps of 1 s and check after each what no step may break."""
    commit_of = scheduler.commit

    def commit(step: Any) -> list[Request]:
        finished = commit_of(step)
        scheduler.swap.check_integrity(scheduler.waiting)
        assert all(r.state in (RequestState.WAITING, RequestState.PREEMPTED) for r in scheduler.waiting)
        return finished

    scheduler.commit = commit  # type: ignore[method-assign]
    simulation = simulate(scheduler, rows)
    assert scheduler.pool.num_used == scheduler.swap.num_used == len(scheduler.waiting) == 0
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
