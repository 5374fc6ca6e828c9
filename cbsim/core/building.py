"""Making a world: the records of requests, replicas and pools, and the log they write to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbsim.core import layout
from cbsim.core.layout import NOBODY, Log, World, with_replicas

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
    "num_stages": 1,
    "num_ranks": 1,
}


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers whose keys and values share blocks: `window` tokens back, 0 for all, by `block_size` tokens."""

    window: int
    block_size: int


@dataclass(frozen=True, slots=True)
class KvPool:
    """A replica's KV cache."""

    num_blocks: int
    block_size: int
    prefix_caching: bool = False
    unknown_first: bool = True
    has_identities: bool = False
    """Whether each block has a number, instead of blocks being only counted; prefix caching needs it."""
    looks_ahead: bool = False
    """Whether cached blocks are told by the token behind them too."""
    drops_last_hit: bool = False
    """Whether the last block found cached is computed again."""
    groups: tuple[KvGroup, ...] = ()
    """Groups of layers that take their blocks from one pool; none: all layers attend to all tokens."""
    retention_interval: int | None = 0
    """Tokens after which groups with a window keep what a lookup needs, beside prompts' ends; `None`: all."""
    max_model_len: int = 2**31
    """Longest context, tokens: bounds what a group with a window may need."""

    @property
    def has_numbers(self) -> bool:
        """Whether blocks have numbers."""
        return self.has_identities or self.prefix_caching or len(self.groups) > 0

    def group_rows(self, most_tokens: int) -> Array:
        """A `GROUP` for each group of layers; `most_tokens` may be under way in all steps."""
        groups = self.groups or (KvGroup(0, self.block_size),)
        hit_size = self.hit_size
        interval = hit_size if self.retention_interval is None else self.retention_interval
        rows = np.zeros(len(groups), layout.GROUP)
        for row, group, before in zip(rows, groups, (groups[:n] for n in range(len(groups))), strict=True):
            size = group.block_size
            row["window"], row["block_size"] = group.window, size
            longest = min(group.window - 1 + most_tokens, self.max_model_len)
            row["most_blocks"] = -(-longest // size) + 1
            row["tail"] = -(-max(group.window - 1, 0) // size)
            row["interval"] = interval // size
            row["is_first_of_kind"] = group not in before
        return rows

    @property
    def hit_size(self) -> int:
        """Tokens of which every cached prefix is a multiple: the block sizes' least common one."""
        return math.lcm(*(group.block_size for group in self.groups)) if self.groups else self.block_size


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


def new_requests(num_requests: int, first: int = 0) -> Array:
    """Records of requests that have not arrived yet, from row `first` on."""
    requests = np.zeros(num_requests, layout.REQUEST)
    requests["index"] = np.arange(first, first + num_requests)
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
    extras: Array | None = None,
    acceptance: Array | None = None,
    log_rows: int | None = None,
    turns: Array | None = None,
) -> World:
    """A world of equal replicas in which nothing has happened.

    `segments` are needed for prefix caching, `prefill_s` for the preemption `cheaper`, `extras` and
    `acceptance` for speculation and connectors (see `layout.Replica`).
    `num_clients` 0 makes an open loop. With `turns` the requests are planned ones (see `layout.World`), and
    the world's own come to be as they are sent. Two worlds share no array but `requests` and `cost`, if both
    are given the same.
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
    own["hit_size"] = pool.hit_size
    own["has_identities"] = pool.has_numbers
    own["prefix_caching"] = pool.prefix_caching
    own["looks_ahead"], own["drops_last_hit"] = pool.looks_ahead, pool.drops_last_hit
    own["steps_since_prefill"] = 2**31
    own["unknown_first"] = pool.unknown_first
    for name in ("head", "due_head", "aged_head", "last_user"):
        own[name] = NOBODY
    is_aging = numbers["aging_s"] < np.inf
    own["num_nodes"] = num_requests
    users = np.zeros((R, int(requests["user_number"].max(initial=0)) + 1), layout.USER)
    users["head"] = NOBODY
    planned, planned_extras, starts = new_requests(0), new_extras(0), np.zeros(0, "i4")
    sent, sent_extras = requests, extras
    if turns is not None:
        planned, sent = requests, new_requests(len(requests))
        if extras is not None:
            planned_extras, sent_extras = extras, new_extras(len(extras))
        starts = np.setdiff1d(np.arange(len(turns)), turns["next"]).astype("i4")
    heap = np.zeros(max(num_clients, len(starts), 1), layout.CLIENT)
    heap["order"], heap["row"] = np.arange(len(heap)), NOBODY
    sees = router in (layout.LEAST_OUTSTANDING, layout.LEAST_KV, layout.PREFIX_AFFINITY)
    clients = {
        "is_closed": num_clients > 0,
        "is_planned": turns is not None,
        "size": num_clients,
        "order": num_clients,
        "watched": watched,
    }
    groups = pool.group_rows(num_in_flight * int(numbers["max_tokens_per_step"]))
    own["num_groups"] = len(groups)
    # Requests whose KV is on its way hold blocks without running.
    has_connector = bool(numbers.get("connector"))
    num_holders = min(num_requests, pool.num_blocks) if has_connector else most
    num_drafts, num_ahead = (numbers.get(f"num_{name}_tokens", 0) for name in ("speculative", "lookahead"))
    num_drafted = int(num_in_flight * (1 + num_drafts) + num_ahead)
    blocks, keys, tables = _new_pool(requests, pool, groups, R, max(most, num_holders), num_drafted)
    world = World(
        requests=sent,
        config=config_record(numbers),
        cost=cost,
        own=own,
        running=np.zeros((R, most + 1), "i4"),
        order=np.zeros((R, most + 1), "i4"),
        candidates=np.zeros((R, num_in_flight * most + 1), "i4"),
        nodes=np.zeros(num_requests * (3 if is_aging else 1), layout.NODE),
        users=users,
        under_way=np.zeros((R, num_in_flight + 1), layout.STEP),
        slices=np.zeros((R, num_in_flight + 1, most + 1), layout.SLICE),
        shape=np.zeros(R, layout.SHAPE),
        chunks=np.zeros((R, most + 1), layout.CHUNK),
        prefill_s=np.zeros(1) if prefill_s is None else prefill_s,
        blocks=blocks,
        keys=keys,
        segments=np.zeros(1, layout.SEGMENT) if segments is None else segments,
        tables=tables,
        groups=groups,
        shares=np.zeros(tables.shape[:2], layout.SHARE),
        extras=new_extras(1) if sent_extras is None else sent_extras,
        transfers=np.zeros((R, num_requests + 1 if has_connector else 1), "i4"),
        acceptance=np.zeros(1) if acceptance is None else acceptance,
        log=new_log(most, bool(numbers.get("with_batches")), log_rows or _log_rows(requests)),
        router=record(layout.ROUTER, {"kind": router, "reads_state": sees and R > 1}),
        homes=np.full(int(requests["affinity"].max(initial=0)) + 1, NOBODY, dtype="i4"),
        clients=record(layout.CLIENTS, clients),
        client_heap=heap,
        planned=planned,
        planned_extras=planned_extras,
        turns=np.zeros(0, layout.FOLLOWING) if turns is None else turns,
        starts=starts,
    )
    return with_replicas(world)


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


def new_extras(num_requests: int) -> Array:
    """Records of what speculation and connectors need, for requests that bring nothing along."""
    extras = np.zeros(num_requests, layout.EXTRA)
    extras["first_bad_block"] = extras["found_in_call"] = NOBODY
    return extras


def _new_pool(
    requests: Array, pool: KvPool, groups: Array, R: int, most: int, num_drafted: int
) -> tuple[Array, Array, Array]:
    """Arrays `blocks`, `keys` and `tables` of `World`; as small as can be where blocks are only counted.

    `most` requests hold blocks at a time; each may come to hold KV of `num_drafted` tokens beyond its own.
    """
    has_numbers, num_groups = pool.has_numbers, len(groups)
    num_blocks = pool.num_blocks + 1 if has_numbers else 1
    numbers = np.arange(num_blocks)
    blocks = np.zeros((R, num_blocks), layout.BLOCK)
    blocks["next_free"] = (numbers + 1) % num_blocks
    blocks["last_free"] = (numbers - 1) % num_blocks
    blocks["key"] = NOBODY
    keys = np.zeros((R, 2 * num_blocks if pool.prefix_caching else 1), layout.KEY)
    keys["key"] = NOBODY
    num_tokens = requests["num_prompt_tokens"].astype("i8") + requests["num_output_tokens"]
    longest, num_slots = 1, 1
    if has_numbers:
        smallest = int(groups["block_size"].min())
        longest = (int(num_tokens.max(initial=1)) + num_drafted) // smallest + 2
        if not groups["window"].any():
            longest = min(longest, num_blocks)
        num_slots = most + 2
    tables = np.zeros((R, num_slots * num_groups, longest), "i4")
    tables[:, ::num_groups, 0] = np.arange(num_slots) + 1
    return blocks, keys, tables
