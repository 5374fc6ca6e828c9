"""Small simulations put together by hand, for tests of everything below the experiment file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cbsim.cluster.engine.recorder import Recorder
from cbsim.cluster.engine.reference import ReferenceEngine
from cbsim.cluster.router import RoundRobin
from cbsim.cluster.simpy_world import World
from cbsim.cost.cost_model import CostModel
from cbsim.schedulers import SCHEDULERS, Prices, Resources, Scheduler
from cbsim.schedulers.kvcache import BlockPool, IdentityPool
from cbsim.workload.request import Request
from cbsim.workload.request_source import Workload, WorkloadConfig


class ListedWorkload(Workload):
    """Requests given one by one as keyword arguments of `Request`."""

    Config = WorkloadConfig

    def __init__(self, rows: Sequence[dict[str, Any]], **settings: Any) -> None:
        super().__init__(WorkloadConfig(type="listed", **settings), seed=0, folder=Path())
        self.rows = rows

    def requests(self) -> Iterator[Request]:
        for row in self.rows:
            yield Request(**row)

    def num_requests(self) -> int:
        return len(self.rows)


class FixedCost(CostModel):
    """Every step takes `step_s` seconds."""

    def __init__(self, step_s: float = 1.0) -> None:
        self.step = step_s

    def step_s(self, shape: Any) -> float:
        return self.step


def make_scheduler(
    type: str,
    *,
    num_blocks: int = 1000,
    block_size: int = 16,
    prefix_caching: bool = False,
    max_model_len: int = 8192,
    **settings: Any,
) -> Scheduler:
    scheduler_class = SCHEDULERS.get(type)
    config = scheduler_class.Config(type=type, **settings)
    pool: BlockPool
    if prefix_caching:
        pool = IdentityPool(num_blocks, block_size, unknown_first=config.reuses_unknown_blocks_first)
    else:
        pool = BlockPool(num_blocks, block_size)
    prices = Prices(recompute_s=lambda n: n * 1e-4, move_s=lambda n: n * 1e-3, block_bytes=2**20)
    return scheduler_class(config, Resources(pool, prices, max_model_len))


class WatchedEngine(ReferenceEngine):
    """Keeps a row for every call of the scheduler, in the words of the vLLM recordings."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rows: list[dict[str, Any]] = []

    def call(self, now: float) -> None:
        scheduler, plan_of = self.scheduler, self.scheduler.plan

        def plan(now: float) -> Any:
            step = plan_of(now)
            if step.slices or step.preempted:
                self.rows.append(self._row(step))
            return step

        scheduler.plan = plan  # type: ignore[method-assign]
        super().call(now)
        del scheduler.plan

    def end_step(self) -> list[Request]:
        step = self.under_way[0]
        finished = super().end_step()
        row = next(row for row in self.rows if row["plan"] is step.plan)
        row.update(
            start=step.start_s,
            end=step.end_s,
            emitted=[part.request.request_id for part in step.plan.slices if part.emits],
            finished=[request.request_id for request in finished],
            used_end=self.scheduler.pool.num_used,
        )
        if isinstance(self.scheduler.pool, IdentityPool):
            row["cached_free_end"] = self.scheduler.pool.num_cached_free
        self.scheduler.pool.check_integrity(self.scheduler.running)
        return finished

    def _row(self, step: Any) -> dict[str, Any]:
        scheduler = self.scheduler
        return {
            "plan": step,
            "scheduled_at": step.now,
            "start": None,
            "sched": [[p.request.request_id, p.num_tokens, p.num_computed_tokens] for p in step.slices],
            "new": [request.request_id for request, _ in step.admitted],
            "resumed": [request.request_id for request, _ in step.resumed],
            "preempted": [request.request_id for request in step.preempted],
            "cached": {r.request_id: n for r, n in (*step.admitted, *step.resumed) if n},
            "running": step.num_running,
            "waiting": step.num_waiting,
            "used": step.num_blocks_used,
            "running_q": [request.request_id for request in scheduler.running],
            "waiting_q": [request.request_id for request in scheduler.waiting],
            "blocks": {request.request_id: request.num_blocks for request in scheduler.running},
        }


@dataclass
class Simulation:
    engine: WatchedEngine
    recorder: Recorder
    world: World
    rows: list[dict[str, Any]] = field(default_factory=list)


def simulate(
    scheduler: Scheduler, requests: Sequence[dict[str, Any]], *, step_s: float = 1.0, **workload: Any
) -> Simulation:
    """Run requests through one replica."""
    recorder = Recorder(with_batches=True)
    num_in_flight = 2 if scheduler.config.async_scheduling else 1
    engine = WatchedEngine(0, scheduler, FixedCost(step_s), recorder, num_in_flight)
    world = World(ListedWorkload(requests, **workload), [engine], RoundRobin())
    world.run()
    return Simulation(engine, recorder, world, engine.rows)
