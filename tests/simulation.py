"""Small simulations put together by hand, for tests of everything below the experiment file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cbsim.base.records import packed
from cbsim.core import layout
from cbsim.core.stepping import Stepper
from cbsim.cost.cost_model import CostModel
from cbsim.schedulers import SCHEDULERS
from cbsim.studies.setup import Setup
from cbsim.testing import Call, Case, Commit, Observation
from cbsim.testing.case import ListedWorkload as ListedWorkload
from cbsim.testing.observation import observe_setup

BLOCK_BYTES = 2**20


class FixedCost(CostModel):
    """Every step takes `step_s` seconds."""

    def __init__(self, step_s: float = 1.0) -> None:
        self.step = step_s

    def step_s(self, shape: Any) -> float:
        return self.step


class RecomputeCost(CostModel):
    """What a prompt alone is said to take, for the preemption `cheaper`."""

    def __init__(self, recompute_s: Callable[[int], float]) -> None:
        self.recompute_s = recompute_s

    def step_s(self, shape: Any) -> float:
        return self.recompute_s(shape.num_tokens)


def one_second(cost: Any, shape: Any, chunks: Any) -> float:
    return 1.0


@dataclass(frozen=True)
class Engine:
    """A scheduler, its KV cache, and what it may know of costs."""

    type: str
    settings: dict[str, Any] = field(default_factory=dict)
    num_blocks: int = 1000
    block_size: int = 16
    prefix_caching: bool = False
    recompute_s: Callable[[int], float] = lambda num_tokens: num_tokens * 1e-4
    block_s: float = 1e-3
    """Seconds to move a block to or from host memory."""
    seed: int = 0

    def case(self, rows: Sequence[dict[str, Any]]) -> Case:
        return Case(
            requests=tuple(rows),
            settings=self.settings,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            prefix_caching=self.prefix_caching,
            max_model_len=8192,
        )

    def setup(self, case: Case) -> Setup:
        setup = case.make_setup(SCHEDULERS.get(self.type), with_batches=True)
        means = replace(
            setup.means,
            block_bytes=BLOCK_BYTES,
            host_link_bytes_per_s=BLOCK_BYTES / self.block_s,
            seed=self.seed,
        )
        return replace(setup, means=means, cost=RecomputeCost(self.recompute_s))


@dataclass
class Simulation:
    """What a run of one replica brought: `rows` in the words of the vLLM recordings, one a call."""

    setup: Setup
    seen: Observation
    rows: list[dict[str, Any]]

    @property
    def replica(self) -> Stepper:
        return self.seen.replicas[0]

    @property
    def own(self) -> Any:
        """The replica's counts."""
        return self.replica.own

    def notes(self) -> list[str]:
        """What the scheduler has to say at the end."""
        requests = packed(self.replica.world.requests, layout.REQUEST)
        own = packed(self.replica.world.records.own, layout.OWN)
        return self.setup.rung.notes(self.setup.scheduler, requests, own)


def make_scheduler(type: str, *, num_blocks: int = 1000, block_size: int = 16, **further: Any) -> Engine:
    prefix_caching = bool(further.pop("prefix_caching", False))
    return Engine(type, further, num_blocks, block_size, prefix_caching)


def simulate(engine: Engine, requests: Sequence[dict[str, Any]]) -> Simulation:
    """Run requests through one replica, in steps of 1 s, and check its blocks at each."""
    case = engine.case(requests)
    setup = engine.setup(case)
    seen = observe_setup(setup, case, step_s=one_second)
    (replica,) = seen.replicas
    assert [entry.integrity for entry in replica.history if entry.integrity] == []
    commits = {entry.step: entry for entry in replica.history if isinstance(entry, Commit)}
    log = seen.log.steps
    start_s = log["start_s"].tolist()
    end_s = (log["start_s"] + log["duration_s"]).tolist()
    rows = []
    for call in replica.calls:
        if call.parts or call.decided("preempted"):
            row = row_of(call)
            if call.step >= 0:
                commit = commits[call.step]
                row |= {
                    "start": start_s[call.step],
                    "end": end_s[call.step],
                    "emitted": list(commit.emitted),
                    "finished": list(commit.finished),
                    "used_end": commit.num_blocks_used,
                }
                if setup.pool.prefix_caching:
                    row["cached_free_end"] = commit.num_cached_free
            rows.append(row)
    return Simulation(setup, seen, rows)


def row_of(call: Call) -> dict[str, Any]:
    cached = {**call.decided("admitted"), **call.decided("resumed")}
    return {
        "scheduled_at": call.now,
        "start": None,
        "sched": [[part.request_id, part.num_tokens, part.num_computed_tokens] for part in call.parts],
        "prefills": [part.is_prefill for part in call.parts],
        "new": list(call.decided("admitted")),
        "resumed": list(call.decided("resumed")),
        "preempted": list(call.decided("preempted")),
        "cached": {name: num_cached for name, num_cached in cached.items() if num_cached},
        "running": len(call.running),
        "waiting": len(call.waiting),
        "used": call.num_blocks_used,
        "transfer_s": call.transfer_s,
        "running_q": list(call.running),
        "waiting_q": list(call.waiting),
        "blocks": {name: call.after[name].num_blocks for name in call.running},
    }
