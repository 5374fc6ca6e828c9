"""Settings drawn from a seed: cases with routers, clients, pauses, early ends and costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np

from cbsim.cluster.router import ROUTERS
from cbsim.core.building import KvGroup, RouterParts
from cbsim.cost.cost_model import CostModel, StepShape
from cbsim.schedulers import SCHEDULERS, Scheduler
from cbsim.studies.setup import Setup
from cbsim.testing import Case

COSTS = ("exact", "exact", "exact", "irregular")
"""`exact` is the case's own, whose steps are multiples of 1/8 s, as arrivals are; it can be compiled."""


class IrregularCost(CostModel):
    """Depends on all that a cost model may depend on, in steps that no float holds exactly."""

    def __init__(self) -> None:
        pass

    def step_s(self, shape: StepShape) -> float:
        chunks_s = sum(0.00002 * tokens * context for tokens, context in shape.chunks)
        read = shape.decode_context - shape.num_shared_tokens
        decodes_s = 0.00001 * read + 0.0001 * shape.max_decode_context
        return 0.01 + 0.001 * shape.num_tokens + 0.0003 * shape.num_logits + decodes_s + chunks_s


@dataclass(frozen=True)
class Setting:
    """A case of the conformance kit, and what else a run depends on."""

    kind: str | type[Scheduler]
    """Name or class of the scheduler."""
    case: Case
    router: str = "round_robin"
    think_time_s: float = 0.0
    think_time_cv: float = 0.0
    stop_at_s: float | None = None
    cost: str = "exact"
    windows: tuple[int, ...] = ()
    """Of groups of layers, 0 for all tokens; none: one group."""
    num_stages: int = 1

    def make_setup(self, *, with_batches: bool = False) -> Setup:
        """What a run is made from."""
        scheduler_class = SCHEDULERS.get(self.kind) if isinstance(self.kind, str) else self.kind
        setup = self.case.make_setup(scheduler_class, with_batches=with_batches)
        workload = setup.workload
        if self.case.concurrency and self.think_time_s:
            think = {"think_time_s": self.think_time_s, "think_time_cv": self.think_time_cv}
            workload.config = workload.config.model_copy(update=think)
        drafting = setup.scheduler.drafting
        pool = replace(
            setup.pool,
            groups=tuple(KvGroup(window, setup.pool.block_size) for window in self.windows),
            looks_ahead=drafting is not None and drafting.method == "eagle",
        )
        return replace(
            setup,
            pool=pool,
            num_stages=self.num_stages,
            cost=IrregularCost() if self.cost == "irregular" else setup.cost,
            router=RouterParts(ROUTERS.get(self.router).kind),
            until_s=inf if self.stop_at_s is None else self.stop_at_s,
        )


SIMPY_ROUTERS = ("round_robin", "random", "least_outstanding", "least_kv", "prefix_affinity")
"""Those that the SimPy world has too."""
POLICIES = ("fcfs", "priority", "sjf", "edf", "fair")
VICTIMS = (None, "last_admitted", "lowest_priority", "most_blocks", "least_progress")


def draw(seed: int, kind: str) -> Setting:
    """The setting of a seed: small and tight, with longer answers than hypothesis draws."""
    random = np.random.default_rng(seed)
    block_size = pick(random, [1, 2, 4, 16])
    rows = draw_requests(random, block_size)
    turns = np.random.default_rng([seed, 1])
    if chance(turns, 0.25):
        rows = with_turns(turns, rows)
    need = max(-(-(row["num_prompt_tokens"] + row["num_output_tokens"]) // block_size) for row in rows)
    spare = pick(random, [0, 1, int(random.integers(0, 7)), int(need * random.uniform(0, 1))])
    concurrency = pick(random, [None, None, None, 1, 3])
    horizon_s = rows[-1]["arrival_s"] + 1
    is_paged = kind in ("vllm", "preemptive")
    windows = pick(random, [(), (), (), (0, 5), (3, 0, 3), (6,)]) if is_paged else ()
    settings = draw_settings(random, kind)
    if kind in ("vllm", "preemptive", "chunked_prefill") and chance(random, 0.3):
        settings["speculative"] = draw_speculation(random)
        if settings["max_tokens_per_step"] < 8:
            settings["speculative"]["num_tokens"] = 1
        need += -(-12 // block_size)
    case = Case(
        requests=rows,
        settings=settings,
        num_blocks=max(len(windows), 1) * need + spare,
        block_size=block_size,
        prefix_caching=is_paged and chance(random, 0.5),
        step_s=pick(random, [0.125, 1.0]),
        token_s=pick(random, [0.0, 0.125]),
        num_replicas=pick(random, [1, 1, 1, 2, 3]),
        concurrency=concurrency,
        max_model_len=140,
    )
    return Setting(
        kind,
        case,
        router=pick(random, SIMPY_ROUTERS),
        think_time_s=pick(random, [0.0, 0.5]),
        stop_at_s=random.uniform(0, horizon_s) if chance(random, 0.2) else None,
        cost=pick(random, COSTS),
        think_time_cv=pick(random, [0.0, 1.0]),
        windows=windows,
        num_stages=pick(random, [1, 1, 1, 2, 3]) if is_paged else 1,
    )


def draw_speculation(random: np.random.Generator) -> dict[str, Any]:
    return {
        "method": pick(random, ["eagle", "ngram", "draft_model"]),
        "num_tokens": pick(random, [1, 2, 3]),
        "acceptance": pick(random, [0.0, 0.7, [0.9, 0.5]]),
        "draft_share": 0.0,
    }


def draw_settings(random: np.random.Generator, kind: str) -> dict[str, Any]:
    drawn: dict[str, Any] = {
        "async_scheduling": chance(random, 0.5),
        "max_num_seqs": pick(random, [1, 4, 16, 64, 64, 64]),
    }
    if kind == "static":
        return drawn | {"batch_timeout_s": pick(random, [0.0, 1.5, 3.0])}
    if kind == "continuous":
        return drawn | {"max_tokens_per_step": pick(random, [64, 256]), "prefill_first": chance(random, 0.5)}
    drawn["max_tokens_per_step"] = pick(random, [4, 8, 16, 64, 256, 2048])
    drawn["chunk_size"] = pick(random, [0, 0, 4, 16])
    if kind == "chunked_prefill":
        return drawn
    drawn |= {
        "policy": pick(random, ["fcfs", "priority"] if kind == "vllm" else POLICIES),
        "enable_chunked_prefill": chance(random, 0.8),
        "reserve_full_isl": chance(random, 0.7),
        "watermark": pick(random, [0, 0, 0.1, 0.3]),
    }
    if kind == "vllm":
        return drawn | {"version": pick(random, ["0.33", "0.33", "0.20", "0.15"])}
    drawn |= {
        "victim": pick(random, VICTIMS),
        "preemption": pick(random, ["recompute", "swap", "cheaper"]),
        "aging_s": pick(random, [None, None, 5.0]),
    }
    if drawn["policy"] not in ("fcfs", "fair"):
        drawn["preempt_on_arrival"] = chance(random, 0.3)
    return drawn


def draw_requests(random: np.random.Generator, block_size: int, most: int = 18) -> tuple[dict[str, Any], ...]:
    rows: list[dict[str, Any]] = []
    now = 0.0
    for i in range(int(random.integers(1, most + 1))):
        now += pick(
            random, [0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0, random.uniform(0, 4), 30.0 * chance(random, 0.1)]
        )
        num_prompt = pick(random, [1, block_size, int(random.integers(1, 13)), int(random.integers(1, 71))])
        num_output = pick(random, [1, 2, int(random.integers(1, 13)), int(random.integers(1, 41))])
        row = request(
            i,
            now,
            num_prompt,
            num_output,
            priority=pick(random, [0, 0, 1, 2]),
            user=pick(random, ["ann", "bob"]),
            session_id=pick(random, [None, "one", "two"]),
            deadline_s=pick(random, [5.0, 20.0, 80.0]),
        )
        if chance(random, 0.5):
            row["prompt"] = draw_prompt(random, row, rows)
            row["num_prompt_tokens"] = sum(count for _, count in row["prompt"])
        rows.append(row)
    return tuple(rows)


def with_turns(random: np.random.Generator, rows: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """The requests, about half of which wait for the answer to another."""
    free = list(range(len(rows)))
    waiting = []
    for number, row in enumerate(rows):
        before = [each for each in free if each < number]
        if before and chance(random, 0.5):
            follows = pick(random, before)
            free.remove(follows)
            row = {**row, "follows": follows, "delay_s": pick(random, [0.0, 0.0, 0.5, 2.0])}
        waiting.append(row)
    return tuple(waiting)


def draw_prompt(
    random: np.random.Generator, row: dict[str, Any], earlier: list[dict[str, Any]]
) -> tuple[tuple[str, int], ...]:
    """A common system prompt and a part of one's own, or an earlier conversation and a question more."""
    name, num_tokens = row["request_id"], row["num_prompt_tokens"]
    if earlier and chance(random, 0.4):
        before = earlier[int(random.integers(len(earlier)))]
        follow_up = (*before.get("prompt", ()), (f"o:{before['request_id']}", before["num_output_tokens"]))
        if sum(count for _, count in follow_up) < 100:
            return (*follow_up, (f"question:{name}", 3))
    num_common = int(random.integers(0, num_tokens + 1))
    parts = ((pick(random, ["one", "two"]), num_common), (name, num_tokens - num_common))
    return tuple((segment, count) for segment, count in parts if count)


def pick(random: np.random.Generator, values: Any) -> Any:
    return values[int(random.integers(len(values)))]


def chance(random: np.random.Generator, share: float) -> bool:
    return bool(random.random() < share)


def request(
    number: int, arrival_s: float, num_prompt: int, num_output: int, **further: Any
) -> dict[str, Any]:
    """A request's keyword arguments."""
    return {
        "request_id": f"r{number}",
        "arrival_s": arrival_s,
        "num_prompt_tokens": num_prompt,
        "num_output_tokens": num_output,
        **further,
    }
