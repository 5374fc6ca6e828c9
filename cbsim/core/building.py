"""Making a world: the records of requests, replicas and pools, and the log they write to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbsim.core import layout
from cbsim.core.layout import NOBODY, Log, World

Numbers = Mapping[str, float]
Array = NDArray[Any]

LOG_ROWS = 8_192
"""Steps that the log of a long run holds before Python empties it: small enough for the CPU's cache."""
DEFAULT_CONFIG: Numbers = {
    "aging_s": np.inf,
    "swap_bytes_per_s": 1.0,
    "max_num_seqs": 2**31,
    "max_tokens_per_step": 2**31,
    "enable_chunked_prefill": 1,
}


@dataclass(frozen=True, slots=True)
class KvPool:
    """A replica's KV cache."""

    num_blocks: int
    block_size: int
    prefix_caching: bool = False
    unknown_first: bool = True
    has_identities: bool = False
    """Whether each block has a number, instead of blocks being only counted; prefix caching needs it."""


def record(dtype: np.dtype[Any], numbers: Numbers = {}) -> Any:  # noqa: B006 - never changed
    """One record with some of its fields set, the others 0."""
    row = np.zeros(1, dtype)
    for name, value in numbers.items():
        row[name] = value
    return row[0]


def config_record(numbers: Numbers) -> Any:
    """`Replica.config`: the fields of `CONFIG`, then a plug-in's own, as reals or whole numbers."""
    own = [
        (name, "f8" if isinstance(value, float) else "i8")
        for name, value in numbers.items()
        if name not in (layout.CONFIG.names or ())
    ]
    return record(np.dtype([*layout.CONFIG.descr, *own]), numbers)


def new_requests(num_requests: int) -> Array:
    """Records of requests that have not arrived yet."""
    requests = np.zeros(num_requests, layout.REQUEST)
    requests["index"] = np.arange(num_requests)
    requests["state"] = layout.WAITING
    requests["deadline_s"] = np.inf
    for name in ("first_scheduled_at_s", "first_token_at_s", "last_token_at_s", "max_itl_s"):
        requests[name] = np.nan
    for name in ("replica", "slot", "first_decode", "last_decode", "affinity"):
        requests[name] = NOBODY
    return requests


def new_world(
    requests: Array,
    cost: Any,
    pool: KvPool,
    config: Numbers,
    *,
    num_replicas: int = 1,
    num_in_flight: int = 1,
    router: int = layout.ROUND_ROBIN,
    num_clients: int = 0,
    watched: int = layout.UNWATCHED,
    segments: Array | None = None,
    prefill_s: Array | None = None,
    log_rows: int | None = None,
) -> World:
    """A world of equal replicas in which nothing has happened.

    `segments` are needed for prefix caching, `prefill_s` for the preemption `cheaper` (see `layout.Replica`).
    `num_clients` 0 makes an open loop. Two worlds share no array but `requests` and `cost`, if both are given
    the same.
    """
    numbers = {**DEFAULT_CONFIG, **config}
    R, num_requests = num_replicas, max(len(requests), 1)
    most = max(1, min(int(numbers["max_num_seqs"]), len(requests)))
    numbers["max_num_seqs"] = min(numbers["max_num_seqs"], 2**31)
    own = np.zeros(R, layout.OWN)
    own["replica"] = np.arange(R)
    own["next_s"] = np.inf
    own["num_in_flight"] = num_in_flight
    own["num_blocks"] = own["num_free"] = pool.num_blocks
    own["block_size"] = pool.block_size
    own["has_identities"] = pool.has_identities or pool.prefix_caching
    own["prefix_caching"] = pool.prefix_caching
    own["unknown_first"] = pool.unknown_first
    for name in ("head", "due_head", "aged_head", "last_user"):
        own[name] = NOBODY
    is_aging = numbers["aging_s"] < np.inf
    own["num_nodes"] = num_requests
    users = np.zeros((R, int(requests["user_number"].max(initial=0)) + 1), layout.USER)
    users["head"] = NOBODY
    heap = np.zeros(max(num_clients, 1), layout.CLIENT)
    heap["order"] = np.arange(len(heap))
    sees = router in (layout.LEAST_OUTSTANDING, layout.LEAST_KV, layout.PREFIX_AFFINITY)
    clients = {"is_closed": num_clients > 0, "size": num_clients, "order": num_clients, "watched": watched}
    blocks, keys, tables = _new_pool(requests, pool, R, most)
    return World(
        requests=requests,
        config=config_record(numbers),
        cost=cost,
        own=own,
        running=np.zeros((R, most + 1), "i4"),
        order=np.zeros((R, most + 1), "i4"),
        candidates=np.zeros((R, most + 1), "i4"),
        nodes=np.zeros(num_requests * (3 if is_aging else 1), layout.NODE),
        users=users,
        under_way=np.zeros((R, num_in_flight + 1), layout.STEP),
        slices=np.zeros((R, num_in_flight + 1, most + 1), layout.SLICE),
        shape=record(layout.SHAPE),
        chunks=np.zeros(most + 1, layout.CHUNK),
        prefill_s=np.zeros(1) if prefill_s is None else prefill_s,
        blocks=blocks,
        keys=keys,
        segments=np.zeros(1, layout.SEGMENT) if segments is None else segments,
        tables=tables,
        log=new_log(most, bool(numbers.get("with_batches")), log_rows or _log_rows(requests)),
        router=record(layout.ROUTER, {"kind": router, "reads_state": sees and R > 1}),
        homes=np.full(int(requests["affinity"].max(initial=0)) + 1, NOBODY, dtype="i4"),
        clients=record(layout.CLIENTS, clients),
        client_heap=heap,
    )


def new_log(most: int, with_batches: bool, rows: int) -> Log:
    """An empty log for replicas that run up to `most` requests at once."""
    # One call or one end of a step may add rows for each running request.
    small = rows // 4 + 8 * (most + 2)
    return Log(
        lengths=record(layout.LENGTHS),
        steps=np.zeros(rows + 8, layout.STEP_ROW),
        events=np.zeros(small, layout.EVENT_ROW),
        prefills=np.zeros(small, layout.PREFILL_ROW),
        decodes=np.zeros(small, layout.DECODES_ROW),
        gaps=np.zeros(small, "f8"),
        batches=np.zeros(4 * small if with_batches else 1, layout.BATCH_ROW),
    )


def _log_rows(requests: Array) -> int:
    """Rows of the log: enough for all steps of a short run, at most `LOG_ROWS`."""
    num_tokens = int(requests["num_output_tokens"].sum()) + len(requests)
    return int(min(LOG_ROWS, max(256, num_tokens)))


def _new_pool(requests: Array, pool: KvPool, R: int, most: int) -> tuple[Array, Array, Array]:
    """Arrays `blocks`, `keys` and `tables` of `World`; as small as can be where blocks are only counted."""
    has_numbers = pool.has_identities or pool.prefix_caching
    num_blocks = pool.num_blocks + 1 if has_numbers else 1
    numbers = np.arange(num_blocks)
    blocks = np.zeros((R, num_blocks), layout.BLOCK)
    blocks["next_free"] = (numbers + 1) % num_blocks
    blocks["last_free"] = (numbers - 1) % num_blocks
    blocks["key"] = NOBODY
    keys = np.zeros((R, 2 * num_blocks if pool.prefix_caching else 1), layout.KEY)
    keys["key"] = NOBODY
    num_tokens = requests["num_prompt_tokens"].astype("i8") + requests["num_output_tokens"]
    longest = min(int(num_tokens.max(initial=1)) // pool.block_size + 2, num_blocks) if has_numbers else 1
    tables = np.zeros((R, most + 2 if has_numbers else 1, longest), "i4")
    tables[:, :, 0] = np.arange(tables.shape[1]) + 1
    return blocks, keys, tables
