"""A replica of the core that nobody drives, for tests of single functions."""

from __future__ import annotations

from typing import Any

from cbsim.core.building import KvPool, PoolParts
from cbsim.core.driver import Parts
from cbsim.core.stepping import Stepper, StepwiseWorld
from cbsim.workload.request import Request, RequestState


def no_cost(cost: Any, shape: Any, chunks: Any) -> float:
    return 1.0


def new_replica(
    num_blocks: int = 100,
    block_size: int = 4,
    *,
    prefix_caching: bool = False,
    unknown_first: bool = True,
    rules: dict[str, Any] | None = None,
    **config: float,
) -> Stepper:
    """A replica without requests; its scheduler has these rules, or decides nothing."""
    pool = KvPool(num_blocks, block_size, prefix_caching, unknown_first)
    world = StepwiseWorld(
        Parts(rules or {}, no_cost), [PoolParts(None, pool, {"max_num_seqs": 64, **config})]
    )
    return world.replicas[0]


def new_request(index: int, num_prompt_tokens: int = 8, num_output_tokens: int = 8, **more: Any) -> Request:
    """A request that nobody has seen yet; it arrives `index` seconds after the start."""
    return Request(f"r{index}", float(index), num_prompt_tokens, num_output_tokens, **more)


def running(replica: Stepper, *requests: Request) -> None:
    """Let requests run, admitted in this order, without blocks or tokens."""
    for request in requests:
        replica.world.add(request)
        request.replica = 0
        replica.own.num_outstanding += 1
        replica.make_room()
        replica.records.running[replica.own.num_running] = request.index
        replica.own.num_running += 1
        request.state = RequestState.RUNNING


def known(replica: Stepper, request: Request) -> Request:
    """Let a request be known, with room for its blocks, in no queue."""
    replica.world.add(request)
    request.replica = 0
    replica.own.num_outstanding += 1
    replica.make_room()
    return request
