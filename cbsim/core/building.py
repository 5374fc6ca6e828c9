"""Making a world: the records of requests, replicas and pools, and the log they write to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbsim.core import layout
from cbsim.core.layout import NOBODY, ROWS_OF_LOAD, Log, World, with_replicas
from cbsim.core.links import below

Numbers = Mapping[str, float]
Array = NDArray[Any]

LOG_ROWS = 8_192
"""Steps that the log of a long run holds before Python empties it: small enough for the CPU's cache."""
LOG_MARGIN = 4
"""Rows that one call or one end of a step may add to a table, for each request that may run at once."""
NUM_CHANGES = 64
"""Changes of replicas that the log holds."""
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
    """`Replica.config`."""
    return config_records([numbers])[0]


def config_records(several: Sequence[Numbers]) -> Array:
    """`Replica.config` of several: the fields of `CONFIG`, then plug-ins' own, as reals or whole numbers."""
    own = {
        name: "f8" if isinstance(value, float) else "i8"
        for numbers in several
        for name, value in numbers.items()
        if name not in (layout.CONFIG.names or ())
    }
    configs = np.zeros(len(several), np.dtype([*layout.CONFIG.descr, *own.items()]))
    for row, numbers in zip(configs, several, strict=True):
        for name, value in numbers.items():
            row[name] = min(value, 2**31) if name == "max_num_seqs" else value
    return configs


def new_planned(num_requests: int) -> Array:
    """What is fixed of requests of which nothing is known yet."""
    planned = np.zeros(num_requests, layout.PLANNED)
    planned["deadline_s"], planned["affinity"] = np.inf, NOBODY
    return planned


def make_requests(rows: Array, first: int = 0) -> None:
    """Make of zeros the records of requests that have not arrived yet, those of row `first` and on."""
    rows["index"] = np.arange(first, first + len(rows))
    rows["state"] = layout.WAITING
    for name in ("first_scheduled_at_s", "first_token_at_s", "last_token_at_s", "max_itl_s"):
        rows[name] = np.nan
    for name in ("replica", "slot", "first_decode", "last_decode", "previous", "next_visit"):
        rows[name] = NOBODY


@dataclass(frozen=True, slots=True)
class PoolParts:
    """Equal replicas: how many, what prices their steps, their scheduler's settings and KV cache."""

    cost: Any
    cache: KvPool
    config: Numbers
    num_replicas: int = 1
    num_in_flight: int = 1
    prefill_s: Array | None = None
    """Seconds of a prompt alone by its tokens, for the preemption `cheaper`."""
    num_up: int | None = None
    """How many of them take requests from the beginning; `None`: all."""
    tiers: tuple[TierParts, ...] = ()
    """From the nearest on."""


@dataclass(frozen=True, slots=True)
class TierParts:
    """A tier of KV below the GPU: see `layout.TIER`."""

    num_blocks: int
    block_bytes: float
    bytes_per_s: float
    latency_s: float = 0.0
    is_shared: bool = False
    """Whether all replicas whose tiers have one of its name have it together."""
    name: str = "host"


@dataclass(frozen=True, slots=True)
class RouterParts:
    """Which replica a request goes to: see `layout.ROUTER`."""

    kind: int = layout.ROUND_ROBIN
    weight: float = 1.0
    refresh_s: float = 0.0
    max_queue: int = NOBODY
    holds: bool = False
    chooses_pairs: bool = False

    @property
    def foresees(self) -> bool:
        """Whether it asks for prefix hits and prompts that are owed, or looks now and then."""
        return self.kind in (layout.KV_AWARE, layout.LEAST_EXPECTED_TTFT) or self.refresh_s > 0

    @property
    def reads_state(self) -> bool:
        """Whether it sees how the replicas stand."""
        return self.kind not in (layout.ROUND_ROBIN, layout.RANDOM) or self.max_queue != NOBODY


@dataclass(frozen=True, slots=True)
class ChangeParts:
    """What changes in a cluster by itself: see `layout.AGENDA`, `FAULT_ROW` and `SCALER`."""

    first_token_timeout_s: float = np.inf
    timeout_s: float = np.inf
    backoff_s: float = 0.0
    max_retries: int = 0
    max_reroutes: int = 0
    mtbf_s: float = np.inf
    repair_s: float = np.inf
    faults: Sequence[tuple[float, float, float, int]] = ()
    """Rows of `FAULT_ROW`."""
    scalers: Sequence[tuple[int, Numbers, Sequence[tuple[float, int]]]] = ()
    """Place of the pool, fields of its `SCALER`, and what it plans: rows of `PLAN`."""
    draws: Array = field(default_factory=lambda: np.ones(1))
    """Exponentially distributed numbers of mean 1."""

    @property
    def num_more_visits(self) -> int:
        """Visits that a request may make to a stage beyond the first."""
        return self.max_retries + self.max_reroutes


@dataclass(frozen=True, slots=True)
class LinkParts:
    """What connects the replicas that hand requests over with those that take them: see `layout.LINK`."""

    bytes_per_s: float
    latency_s: float
    bytes_per_token: float
    num_layers: int = 1
    is_layered: bool = False


def new_cluster(
    requests: Array,
    pools: Sequence[PoolParts],
    routers: Sequence[RouterParts],
    *,
    num_entries: int | None = None,
    link: LinkParts | None = None,
    changes: ChangeParts | None = None,
    num_clients: int = 0,
    watched: int = layout.UNWATCHED,
    segments: Array | None = None,
    extras: Array | None = None,
    acceptance: Array | None = None,
    log_rows: int | None = None,
    turns: Array | None = None,
) -> World:
    """A world of pools of replicas in which nothing has happened, and whose records of requests are not made.

    `requests` has a `PLANNED` for each.
    `routers` are those of each stage; requests come to the first `num_entries` replicas (all), and with two
    stages are handed over to the others, over the `link`. `changes`: nothing does without. `segments` are
    needed for prefix caching, `extras` and `acceptance` for speculation and connectors (see
    `layout.Replica`). `num_clients` 0 makes an open loop. With `turns`, needed for two stages, requests come
    to be as they are sent (see `layout.World.planned`). Two worlds share no array but `requests` and costs,
    if both are given the same.
    """
    configs = config_records([{**DEFAULT_CONFIG, **parts.config} for parts in pools])
    place_of = [place for place, parts in enumerate(pools) for _ in range(parts.num_replicas)]
    R, changing = len(place_of), changes or ChangeParts()
    num_visits = len(routers) * (1 + changing.num_more_visits)
    num_requests = max(len(requests), 1) * num_visits
    num_entries = R if num_entries is None else num_entries

    def each(value: Callable[[PoolParts], Any]) -> Array:
        return np.array([value(pools[place]) for place in place_of])

    most = max(1, min(int(configs["max_num_seqs"].max()), num_requests))
    num_in_flight = max(parts.num_in_flight for parts in pools)
    own = np.zeros(R, layout.OWN)
    own["replica"], own["pool"] = np.arange(R), place_of
    # Ranks that work in step stand one behind the other.
    own["first_rank"] = own["replica"] - _within(place_of) % configs["num_ranks"][place_of].astype("i8")
    for name in ("next_s", "back_at_s", "fails_at_s", "restored_at_s"):
        own[name] = np.inf
    own["slowdown"] = 1.0
    if changes is not None:
        # They come up as the first thing that changes.
        for parts, first in zip(
            pools, np.cumsum([0, *(parts.num_replicas for parts in pools)]), strict=False
        ):
            num_up = parts.num_replicas if parts.num_up is None else parts.num_up
            own["state"][first : first + parts.num_replicas] = layout.STOPPED
            own["state"][first : first + num_up] = layout.STARTING
            own["back_at_s"][first : first + num_up] = 0.0
    own["num_in_flight"] = each(lambda parts: parts.num_in_flight)
    own["num_blocks"] = own["num_free"] = each(lambda parts: parts.cache.num_blocks)
    own["block_size"] = each(lambda parts: parts.cache.block_size)
    own["hit_size"] = each(lambda parts: parts.cache.hit_size)
    own["has_identities"] = each(lambda parts: parts.cache.has_numbers)
    own["prefix_caching"] = each(lambda parts: parts.cache.prefix_caching)
    own["looks_ahead"] = each(lambda parts: parts.cache.looks_ahead)
    own["drops_last_hit"] = each(lambda parts: parts.cache.drops_last_hit)
    own["steps_since_prefill"] = 2**31
    own["num_tiers"] = each(lambda parts: len(parts.tiers))
    own["unknown_first"] = each(lambda parts: parts.cache.unknown_first)
    for name in ("head", "due_head", "aged_head", "last_user"):
        own[name] = NOBODY
    is_aging = bool((configs["aging_s"] < np.inf).any())
    own["num_nodes"] = num_requests
    users = np.zeros((R, int(requests["user_number"].max(initial=0)) + 1), layout.USER)
    users["head"] = NOBODY
    planned, starts = new_planned(0), np.zeros(0, "i4")
    sent = np.zeros(len(requests), layout.REQUEST)
    if turns is not None:
        planned, sent = requests, np.zeros(len(requests) * num_visits, layout.REQUEST)
        starts = np.setdiff1d(np.arange(len(turns)), turns["next"]).astype("i4")
    heap = np.zeros(max(num_clients, len(starts), 1) * len(routers), layout.CLIENT)
    waiting = heap[:num_clients]
    waiting["order"], waiting["row"], waiting["visit"] = np.arange(num_clients), NOBODY, NOBODY
    clients = {
        "num_made": NOBODY,
        "is_closed": num_clients > 0,
        "is_planned": turns is not None,
        "size": num_clients,
        "order": num_clients,
        "watched": watched,
        "has_ranks": bool((configs["num_ranks"] > 1).any()),
    }
    groups = np.array(
        [
            parts.cache.group_rows(parts.num_in_flight * int(config["max_tokens_per_step"]))
            for parts, config in ((pools[place], configs[place]) for place in place_of)
        ]
    )
    own["num_groups"] = groups.shape[1]
    own["has_groups"] = (groups["window"] > 0).any(axis=1) | (groups.shape[1] > 1)
    # Requests whose KV is on its way hold blocks without running.
    has_connector = bool(configs["connector"].any())
    num_holders = most + _num_holders(requests, pools) if has_connector else most
    num_drafts, num_ahead = (
        int(configs[f"num_{name}_tokens"].max()) for name in ("speculative", "lookahead")
    )
    num_drafted = num_in_flight * (1 + num_drafts) + num_ahead
    blocks, keys, tables = _new_pool(requests, pools, groups, R, max(most, num_holders), num_drafted)
    with_batches = bool(configs["with_batches"].any())
    world = World(
        requests=sent,
        config=configs[place_of],
        costs=[parts.cost for parts in pools],
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
        prefill_s=_padded([parts.prefill_s for parts in pools]),
        blocks=blocks,
        keys=keys,
        segments=np.zeros(1, layout.SEGMENT) if segments is None else segments,
        tables=tables,
        groups=groups,
        shares=np.zeros(tables.shape[:2], layout.SHARE),
        extras=np.zeros(1 if extras is None else len(sent), layout.EXTRA),
        transfers=np.zeros((R, num_requests + 1 if has_connector else 1), "i4"),
        acceptance=np.zeros(1) if acceptance is None else acceptance,
        **_tiers(pools, requests, len(sent)),
        log=new_log(
            most, num_in_flight, with_batches, log_rows or _log_rows(requests), num_requests * has_connector
        ),
        routers=_routers(routers, num_entries, R),
        homes=np.full((len(routers), int(requests["affinity"].max(initial=0)) + 1), NOBODY, dtype="i4"),
        clients=record(layout.CLIENTS, clients),
        client_heap=heap,
        planned=planned,
        planned_extras=new_extras(0) if extras is None else extras,
        turns=np.zeros(0, layout.FOLLOWING) if turns is None else turns,
        starts=starts,
        link=_link(link),
        on_link=np.zeros(_num_transfers(pools, len(sent), link), layout.TRANSFER),
        **_changes(changes, pools, len(routers), num_requests),
        first_in_order=_first_of(R),
    )
    return with_replicas(world)


def _changes(
    changes: ChangeParts | None, pools: Sequence[PoolParts], num_stages: int, num_requests: int
) -> dict[str, Any]:
    """Fields of `World` about what changes by itself."""
    parts = changes or ChangeParts()
    names = ("first_token_timeout_s", "timeout_s", "backoff_s", "mtbf_s", "repair_s", "max_retries")
    numbers = {name: getattr(parts, name) for name in (*names, "max_reroutes")}
    firsts = np.cumsum([0, *(pool.num_replicas for pool in pools)])
    scalers = np.zeros(len(parts.scalers), layout.SCALER)
    plans: list[tuple[float, int]] = []
    for row, (place, given, planned) in zip(scalers, parts.scalers, strict=True):
        row["first"], row["end"], row["low_since_s"] = firsts[place], firsts[place + 1], np.inf
        row["first_plan"] = len(plans)
        plans += planned
        row["end_plan"] = len(plans)
        row["next_s"] = planned[0][0] if planned else given.get("interval_s", np.inf)
        for name, value in given.items():
            row[name] = value
    return {
        "agenda": record(
            layout.AGENDA,
            {
                **numbers,
                "next_s": np.inf if changes is None else 0.0,
                "link_back_at_s": np.inf,
                "failing": NOBODY,
                "is_open": changes is not None,
            },
        ),
        "faults": np.array(sorted(parts.faults), layout.FAULT_ROW),
        "draws": parts.draws,
        "scalers": scalers,
        "plans": np.array(plans, layout.PLAN),
        "held": np.zeros((num_stages, 1 if changes is None else num_requests + 1), "i4"),
    }


def _first_of(num_replicas: int) -> Array:
    """`World.first_in_order` while nothing is to happen anywhere."""
    tree = np.zeros(num_replicas, "i4")
    for place in range(num_replicas - 1, 0, -1):
        tree[place] = below(tree, 2 * place)
    return tree


def _num_holders(requests: Array, pools: Sequence[PoolParts]) -> int:
    """Most requests that hold blocks of a replica without running, each those of its prompt at least."""
    caches = [parts.cache for parts in pools]
    shortest = int(requests["num_prompt_tokens"].min(initial=2**31 - 1))
    least = 1
    if not any(cache.prefix_caching or any(group.window for group in cache.groups) for cache in caches):
        least = max(1, min(shortest // cache.block_size for cache in caches))
    return min(2 * len(requests), max(cache.num_blocks for cache in caches) // least)


def _within(place_of: Sequence[int]) -> Array:
    """The number of each replica within its pool."""
    return np.arange(len(place_of)) - np.searchsorted(place_of, place_of)


def _num_transfers(pools: Sequence[PoolParts], num_visits: int, link: LinkParts | None) -> int:
    """Most transfers under way at once: of each visit, and what each replica writes and reads in steps."""
    num_tiers = max(len(parts.tiers) for parts in pools)
    num_ends = num_tiers + (link is not None)
    return 1 + num_ends * num_visits + 2 * num_tiers * sum(parts.num_replicas for parts in pools)


def _tiers(pools: Sequence[PoolParts], requests: Array, num_visits: int) -> dict[str, Any]:
    """Fields of `World` about tiers of KV; none larger than all that could come into it."""
    num_tiers = max(len(parts.tiers) for parts in pools)
    made: list[TierParts] = []
    stores: list[list[int]] = []
    shared: dict[str, int] = {}
    for parts in pools:
        for _ in range(parts.num_replicas):
            row = []
            for tier in parts.tiers:
                place = shared.setdefault(tier.name, len(made)) if tier.is_shared else len(made)
                row.append(place)
                if place == len(made):
                    made.append(tier)
            stores.append(row + [0] * (max(num_tiers, 1) - len(row)))
    sizes = requests["num_prompt_tokens"].astype("i8") + requests["num_output_tokens"]
    smallest = min(parts.cache.block_size for parts in pools)
    most = (int(sizes.sum()) // smallest + 1) * max(max(len(parts.cache.groups), 1) for parts in pools)
    counts = [min(tier.num_blocks, most) for tier in made]
    rows = np.zeros(len(made), layout.TIER)
    num_heads = 1 + (len(stores) if shared else 1)
    blocks = np.zeros((len(made), max(counts, default=0) + num_heads), layout.BLOCK)
    keys = np.zeros((len(made), 2 * max(counts, default=0) + 2), layout.KEY)
    blocks["key"] = keys["key"] = NOBODY
    for each, tier, count, ring in zip(rows, made, counts, blocks, strict=True):
        each["num_blocks"], each["block_bytes"], each["bytes_per_s"] = (
            count,
            tier.block_bytes,
            tier.bytes_per_s,
        )
        each["latency_s"], each["is_shared"] = tier.latency_s, tier.is_shared
        _close_ring(ring, count + 1)
        for head in range(count + 1, count + num_heads):
            ring[head]["next_free"] = ring[head]["last_free"] = head
    return {
        "stores": np.array(stores, "i4"),
        "loads": np.zeros((num_visits if num_tiers else 1, max(num_tiers, 1)), "i4"),
        "tiers": rows,
        "tier_blocks": blocks,
        "tier_keys": keys,
    }


def _close_ring(ring: Array, size: int) -> None:
    """Have each of the first blocks follow the one before, the last of them as the head."""
    numbers = np.arange(size)
    ring["next_free"][:size], ring["last_free"][:size] = (numbers + 1) % size, (numbers - 1) % size


def _padded(rows: Sequence[Array | None]) -> Array:
    """Rows of one length."""
    known = [np.zeros(1) if row is None else row for row in rows]
    padded = np.zeros((len(known), max(map(len, known))))
    for into, row in zip(padded, known, strict=True):
        into[: len(row)] = row
    return padded


def _routers(several: Sequence[RouterParts], num_entries: int, num_replicas: int) -> Array:
    """`World.routers`: of those to whom requests come, and of the others."""
    routers = np.zeros(len(several), layout.ROUTER)
    ends = [(0, num_entries), (num_entries, num_replicas)]
    for row, parts, (first, end) in zip(routers, several, ends, strict=False):
        row["first"], row["next"], row["end"], row["seen_at_s"] = first, first, end, -np.inf
        for each in fields(parts):
            row[each.name] = getattr(parts, each.name)
        row["reads_state"] = parts.reads_state and (end - first > 1 or parts.max_queue != NOBODY)
    return routers


def _link(parts: LinkParts | None) -> Any:
    """`World.link`."""
    if parts is None:
        return record(layout.LINK, {"next_s": np.inf})
    numbers = {each.name: getattr(parts, each.name) for each in fields(parts)}
    return record(layout.LINK, {**numbers, "next_s": np.inf})


def new_log(most: int, num_in_flight: int, with_batches: bool, rows: int, num_loads: int = 0) -> Log:
    """An empty log for replicas that run up to `most` requests in `num_in_flight` steps at a time.

    In one call `num_loads` may fail.
    """
    # One call or one end of a step may add rows for each running request, and cut off the steps under way.
    margin, num_events = LOG_MARGIN * (most + 2), ROWS_OF_LOAD * num_loads
    few, num_batches = rows // 4 + margin, rows + margin if with_batches else 0
    limits = {"steps": rows, "events": few + num_events, "batches": num_batches, "changes": NUM_CHANGES}
    limits |= dict.fromkeys(("prefills", "decodes", "gaps"), few)
    return Log(
        lengths=record(layout.LENGTHS, {f"max_{name}": limit for name, limit in limits.items()}),
        steps=np.zeros(rows + LOG_MARGIN + num_in_flight, layout.STEP_ROW),
        events=np.zeros(few + num_events + margin, layout.EVENT_ROW),
        prefills=np.zeros(few + margin, layout.PREFILL_ROW),
        decodes=np.zeros(few + margin, layout.DECODES_ROW),
        gaps=np.zeros(few + margin, "f8"),
        batches=np.zeros(num_batches + margin if with_batches else 1, layout.BATCH_ROW),
        changes=np.zeros(NUM_CHANGES + LOG_MARGIN, layout.CHANGE_ROW),
    )


def _log_rows(requests: Array) -> int:
    """Rows of the log: enough for all steps of a short run, at most `LOG_ROWS`."""
    num_tokens = int(requests["num_output_tokens"].sum()) + len(requests)
    return int(min(LOG_ROWS, max(256, num_tokens)))


def new_extras(num_requests: int) -> Array:
    """Records of what speculation and connectors need, for requests that bring nothing along."""
    extras = np.zeros(num_requests, layout.EXTRA)
    extras["first_bad_block"] = extras["found_in_call"] = extras["partner"] = NOBODY
    return extras


def _new_pool(
    requests: Array, pools: Sequence[PoolParts], groups: Array, R: int, most: int, num_drafted: int
) -> tuple[Array, Array, Array]:
    """Arrays `blocks`, `keys` and `tables` of `World`; as small as can be where blocks are only counted.

    `most` requests hold blocks at a time; each may come to hold KV of `num_drafted` tokens beyond its own.
    """
    caches = [parts.cache for parts in pools]
    has_numbers, num_groups = any(cache.has_numbers for cache in caches), groups.shape[1]
    num_blocks = max(cache.num_blocks for cache in caches) + 1 if has_numbers else 1
    blocks = np.zeros((R, num_blocks), layout.BLOCK)
    blocks["key"] = NOBODY
    keys = np.zeros((R, 2 * num_blocks if any(cache.prefix_caching for cache in caches) else 1), layout.KEY)
    keys["key"] = NOBODY
    places = [cache for cache, parts in zip(caches, pools, strict=True) for _ in range(parts.num_replicas)]
    for ring, cache in zip(blocks, places, strict=True):
        _close_ring(ring, cache.num_blocks + 1 if has_numbers else 1)
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
