"""Case: one small simulation told completely, and how cases are drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cbsim.base.units import MIB
from cbsim.core.building import KvPool
from cbsim.cost.constant import ConstantConfig, ConstantCost
from cbsim.schedulers import Means, Scheduler, SchedulerConfig
from cbsim.studies.setup import Setup
from cbsim.workload.request import Request
from cbsim.workload.request_source import Workload, WorkloadConfig

MOVE_S_PER_BLOCK = 2.0**-8
BLOCK_BYTES = MIB
NUM_RIVALS = 240
STARVED = "r2"
"""The request that the rivals of `starvation_case` come after and would overtake."""


@dataclass(frozen=True)
class Case:
    """What a simulation depends on, the scheduler's class apart; its `repr` is the code that makes it again.

    Times are seconds. Those that `draw_case` makes are multiples of 1/8, so that sums of them are exact and
    arrivals fall on step boundaries.
    """

    requests: tuple[Mapping[str, Any], ...]
    """Keyword arguments of `Request`, in order of arrival."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the scheduler."""
    num_blocks: int = 64
    block_size: int = 4
    prefix_caching: bool = False
    step_s: float = 1.0
    """Time of every step."""
    token_s: float = 0.0
    """Time added for each token computed, padding included."""
    num_replicas: int = 1
    concurrency: int | None = None
    """Closed-loop clients; `None` lets requests arrive at their own times."""
    max_model_len: int = 4096

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens of all requests."""
        return sum(row["num_prompt_tokens"] + row["num_output_tokens"] for row in self.requests)

    def make_setup(self, scheduler_class: type[Scheduler], *, with_batches: bool = False) -> Setup:
        """What a run of the core is made from. Raises pydantic's error for a wrong setting."""
        config = scheduler_class.Config(type=scheduler_class.__name__, **self.settings)
        has_prefixes = self.prefix_caching and not scheduler_class.reserves_ahead
        unknown_first = config.reuses_unknown_blocks_first
        return Setup(
            workload=ListedWorkload(self.requests, concurrency=self.concurrency),
            cost=TokenCost(self.step_s, self.token_s),
            rung=scheduler_class,
            scheduler=config,
            pool=KvPool(self.num_blocks, self.block_size, has_prefixes, unknown_first),
            means=Means(
                num_blocks=self.num_blocks,
                block_size=self.block_size,
                block_bytes=BLOCK_BYTES,
                host_link_bytes_per_s=BLOCK_BYTES / MOVE_S_PER_BLOCK,
                max_model_len=self.max_model_len,
                seed=0,
            ),
            num_replicas=self.num_replicas,
            with_batches=with_batches,
        )


class ListedWorkload(Workload):
    """Requests given one by one, as keyword arguments of `Request`."""

    Config = WorkloadConfig

    def __init__(self, rows: Sequence[Mapping[str, Any]], **settings: Any) -> None:
        super().__init__(WorkloadConfig(type="listed", **settings), seed=0, folder=Path())
        self._rows = rows

    def requests(self) -> Iterator[Request]:
        """See `Workload.requests`."""
        for row in self._rows:
            yield Request(**row)

    def num_requests(self) -> int:
        """See `Workload.num_requests`."""
        return len(self._rows)


class TokenCost(ConstantCost):
    """A fixed time a step, and one a token; without model and GPU."""

    def __init__(self, step_s: float, token_s: float) -> None:
        self.config = ConstantConfig(
            type="constant", step_s=step_s, per_prefill_token_s=token_s, per_decode_s=token_s
        )


def draw_case(
    generator: np.random.Generator, config_class: type[SchedulerConfig], settings: Mapping[str, Any]
) -> Case:
    """A random case that is small and tight: ties, one-token answers, prompts beyond the budget, full pools.

    `settings` are kept; of the other limits those that `config_class` has are drawn. Some requests may fit no
    pool or no step at all, and must then be rejected.
    """
    limits = {
        "async_scheduling": bool(generator.integers(2)),
        "max_num_seqs": int(generator.integers(1, 7)),
        "max_tokens_per_step": int(generator.choice([1, 3, 8, 16, 64])),
        "chunk_size": int(generator.choice([0, 2, 5, 16])),
    }
    block_size = int(generator.choice([1, 4, 16]))
    requests = _draw_requests(generator, prefix_sharing=bool(generator.integers(2)))
    largest = max(row["num_prompt_tokens"] + row["num_output_tokens"] for row in requests)
    num_blocks = -(-largest // block_size) + int(generator.choice([-1, 0, 1, 3, 20]))
    return Case(
        requests=requests,
        settings=_kept(limits, config_class, settings),
        num_blocks=max(1, num_blocks),
        block_size=block_size,
        prefix_caching=bool(generator.integers(2)),
        step_s=float(generator.choice([0.125, 1.0])),
        token_s=float(generator.choice([0.0, 0.125])),
        num_replicas=int(generator.choice([1, 1, 1, 2])),
        concurrency=int(generator.integers(1, 4)) if generator.random() < 0.2 else None,
    )


def starvation_case(config_class: type[SchedulerConfig], settings: Mapping[str, Any]) -> Case:
    """One long request, `STARVED`, among short rivals that arrive faster than they are served.

    They beat it by every measure that an order may go by: shorter, more important, due earlier.
    """
    limits = {"max_num_seqs": 2, "max_tokens_per_step": 32}
    rows = [_row(number, 0.0, 4, 3, deadline_s=10.0, user="first") for number in range(2)]
    rows.append(_row(2, 0.5, 24, 8, priority=2, deadline_s=1e6, user="long"))
    for number in range(3, 3 + NUM_RIVALS):
        rows.append(_row(number, number / 2, 4, 3, deadline_s=10.0, user=f"short{number}"))
    return Case(tuple(rows), _kept(limits, config_class, settings), num_blocks=32)


def _kept(
    limits: Mapping[str, Any], config_class: type[SchedulerConfig], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings, and of the limits those that the scheduler has and `settings` leaves open."""
    return {name: value for name, value in limits.items() if name in config_class.model_fields} | {**settings}


def _draw_requests(generator: np.random.Generator, *, prefix_sharing: bool) -> tuple[dict[str, Any], ...]:
    count = int(generator.integers(1, 13))
    arrivals = np.cumsum(generator.choice([0.0, 0.0, 0.125, 0.5, 1.0, 8.0], count)).tolist()
    rows = []
    for i, arrival_s in enumerate(arrivals):
        num_prompt_tokens = int(generator.choice([1, 2, 4, 7, 16, 33]))
        row = _row(
            i,
            arrival_s,
            num_prompt_tokens,
            int(generator.choice([1, 1, 2, 5, 12])),
            priority=int(generator.integers(3)),
            deadline_s=float(generator.integers(1, 40)),
            user=f"user{generator.integers(3)}",
        )
        if prefix_sharing:
            num_shared = int(generator.integers(0, num_prompt_tokens + 1))
            parts = (("system", num_shared), (f"own{i}", num_prompt_tokens - num_shared))
            row["prompt"] = tuple((segment, n) for segment, n in parts if n)
        rows.append(row)
    return tuple(rows)


def _row(
    number: int, arrival_s: float, num_prompt_tokens: int, num_output_tokens: int, **further: Any
) -> dict[str, Any]:
    return {
        "request_id": f"r{number}",
        "arrival_s": arrival_s,
        "num_prompt_tokens": num_prompt_tokens,
        "num_output_tokens": num_output_tokens,
        **further,
    }
