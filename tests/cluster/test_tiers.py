"""Tiers of KV below the GPU: at both speeds, by laws over drawn cases, and by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import pytest

import cbsim
from cbsim.base.binding import can_compile
from cbsim.base.errors import ConfigError
from cbsim.core.building import ChangeParts, LinkParts, TierParts
from cbsim.results.hand_overs import HandOvers
from cbsim.studies.experiment import Experiment
from cbsim.studies.setup import Setup
from cbsim.studies.simulation import stepwise
from cbsim.testing import Case, differences
from cbsim.workload.request import RequestState
from tests.cluster.test_changes import draw_changes, run
from tests.cluster.test_handed_over import apart
from tests.core.drawn import Setting, chance, draw_requests, pick, request, with_turns

NUM_CASES = 80
SYNC = {"async_scheduling": False}
COSTS: dict[str, Any] = {"step_s": 0.125, "token_s": 0.125}


def setup_of(
    rows: tuple[dict[str, Any], ...],
    tiers: tuple[TierParts, ...],
    *,
    kind: str = "vllm",
    num_blocks: int = 8,
    count: int = 1,
    windows: tuple[int, ...] = (),
    loads_ahead: bool = True,
    stores_through: bool = True,
    **case: Any,
) -> Setup:
    made = Case(rows, case.pop("settings", SYNC), num_blocks=num_blocks, num_replicas=count, **case)
    setting = Setting(kind, replace(made, prefix_caching=True), windows=windows)
    setup = setting.make_setup(with_batches=True)
    cache = replace(setup.pool, has_identities=True)
    changes = ChangeParts() if tiers else None
    return replace(
        setup,
        pool=cache,
        tiers=tiers,
        loads_ahead=loads_ahead,
        stores_through=stores_through,
        changes=changes,
    )


def tier(
    num_blocks: int, block_s: float, latency_s: float = 0.0, shared: bool = False, name: str = "host"
) -> TierParts:
    """A tier that takes `block_s` seconds to bring one of its blocks, of 8 bytes, or to write it."""
    return TierParts(num_blocks, 8.0, 8.0 / block_s if block_s else inf, latency_s, shared, name)


def draw(seed: int, *, changes: bool = False) -> Setup:
    """Small tiers below one pool, or below those of a pair that shares a store, of models with windows or
    without; with `changes` among replicas that fail, come and go.
    """
    random = np.random.default_rng([seed, 4])
    rows = tuple(with_document(random, row) for row in draw_requests(random, 4))
    if chance(random, 0.5):
        rows = with_turns(random, rows)
    windows = pick(random, [(), (), (), (0, 5), (3, 0, 3), (6,)])
    need = max(-(-(row["num_prompt_tokens"] + row["num_output_tokens"]) // 4) for row in rows) + 2
    settings = {
        "max_num_seqs": pick(random, [2, 8]),
        "max_tokens_per_step": pick(random, [8, 64]),
        "async_scheduling": chance(random, 0.5),
    }
    case = {
        "step_s": 0.125,
        "token_s": pick(random, [0.0, 0.125]),
        "concurrency": pick(random, [None, None, 3]),
    }
    store = replace(draw_tier(random), is_shared=True, name="store")
    is_staged = chance(random, 0.5)
    counts = tuple(pick(random, [1, 1, 2, 3]) for _ in range(1 + is_staged))
    pools = []
    for role, count in zip(("prefill", "decode") if is_staged else ("both",), counts, strict=True):
        tiers = [replace(draw_tier(random), name=role)] if chance(random, 0.8) else []
        if not tiers or chance(random, 0.4):
            tiers.insert(pick(random, [0, len(tiers)]), store)
        setup = setup_of(
            rows,
            tuple(tiers),
            kind="vllm",
            num_blocks=max(len(windows), 1) * need + pick(random, [0, 2]),
            count=count,
            windows=windows,
            loads_ahead=chance(random, 0.6),
            stores_through=chance(random, 0.5),
            settings=settings,
            **case,
        )
        setup = replace(setup, pool=replace(setup.pool, retention_interval=pick(random, [0, None])))
        pools.append(
            replace(setup, role=role, pool_name=role, gives_back_preempted=changes and role == "decode")
        )
    link = LinkParts(pick(random, [inf, 2e4]), pick(random, [0.0, 0.25]), 1000.0, 4, chance(random, 0.5))
    return replace(
        pools[0],
        others=tuple(pools[1:]),
        link=link if is_staged else None,
        changes=draw_changes(random, counts, is_staged=is_staged) if changes else ChangeParts(),
    )


def with_document(random: np.random.Generator, row: dict[str, Any]) -> dict[str, Any]:
    """A request with a prompt of 28 tokens, most of them those of one of four documents."""
    num_common, number = pick(random, [8, 16, 24]), int(random.integers(4))
    prompt = ((f"document {number}", num_common), (row["request_id"], 28 - num_common))
    num_output = min(row["num_output_tokens"], 24)
    return {**row, "num_prompt_tokens": 28, "num_output_tokens": num_output, "prompt": prompt}


def draw_tier(random: np.random.Generator) -> TierParts:
    sizes, block_s = [1, 8, 1000, 1000], [0.0, 0.03125, 0.25]
    return tier(pick(random, sizes), pick(random, block_s), pick(random, [0.0, 0.5]))


@pytest.mark.xdist_group("core-vllm")
@pytest.mark.skipif(not can_compile(), reason="numba is missing")
def test_compiled_equals_interpreted() -> None:
    num_loaded: Counter[str] = Counter()
    for seed in range(NUM_CASES):
        setup = draw(seed, changes=seed % 3 == 0)
        log = run(setup)
        assert differences(log, run(setup, "compiled")) == [], seed
        num_loaded.update(log.num_tokens_from_tiers)
        num_loaded["with windows"] += sum(log.num_tokens_from_tiers.values()) * bool(setup.pool.groups)
    assert min(num_loaded.values()) > 50, num_loaded


def test_laws() -> None:
    """All are served, by ranks that work in step, too; what is computed and what is found, on the GPU or
    below, makes up each prompt, and the parts of a latency make it up.
    """
    for seed in range(NUM_CASES):
        setup = draw(seed)
        if seed % 4 == 0:
            pools = [replace(pool, num_ranks=2, num_replicas=2 * pool.num_replicas) for pool in setup.pools]
            setup = replace(pools[0], others=tuple(pools[1:]))
        log = run(setup)
        requests = log.requests
        assert (requests["state"] == RequestState.FINISHED).all()
        assert (requests["num_generated_tokens"] == requests["num_output_tokens"]).all()
        if log.parts is not None:
            parts = np.sum([log.parts[name] for name in log.parts if name.startswith("part_")], axis=0)
            assert parts == pytest.approx(requests["finished_at_s"] - requests["arrival_s"], abs=1e-6), seed
        if setup.is_staged:
            continue
        computed = log.steps["num_prefill_tokens"].sum() + log.steps["num_decode_tokens"].sum()
        needed = (requests["num_prompt_tokens"] + requests["num_output_tokens"] - 1).sum()
        found = requests["num_cached_tokens"].sum()
        assert log.num_tokens_recomputed is not None
        assert computed == needed - found + log.num_tokens_recomputed


def shared(index: int, at_s: float, number: int) -> dict[str, Any]:
    """A request of 12 tokens, of which 8 are those of a document."""
    return request(index, at_s, 12, 1, prompt=[[f"document {number}", 8], [f"question {index}", 4]])


ROWS = (shared(0, 0.0, 1), shared(1, 5.0, 2), shared(2, 10.0, 3), shared(3, 15.0, 1))
"""Three documents of 2 blocks pass through a cache of 4; the first comes again."""


def test_by_hand() -> None:
    """Steps take 1/8 s, and as much for each token. The last request finds its 8 tokens below the GPU: two
    blocks of 1/4 s after a latency of 1/2 s, from 15 to 16, and computes 4, until 16.625; without a tier 12
    take as long. A load of 1/4 s within the step comes on top of it.
    """
    costs = {"num_blocks": 4, **COSTS}
    slow = (tier(100, 0.25, 0.5),)
    assert run(setup_of(ROWS, (), **costs)).requests["finished_at_s"][3] == 16.625
    log = run(setup_of(ROWS, slow, **costs))
    assert log.requests["finished_at_s"].tolist()[3] == 16.625
    assert log.requests["num_cached_tokens"].tolist() == [0, 0, 0, 8]
    assert log.requests["first_scheduled_at_s"].tolist()[3] == 16.0
    fast = run(setup_of(ROWS, (tier(100, 0.125),), loads_ahead=False, **costs))
    assert fast.requests["finished_at_s"].tolist()[3] == 15.875
    assert fast.steps["transfer_s"].tolist()[3] == 0.25
    assert fast.requests["first_scheduled_at_s"].tolist()[3] == 15.0


@pytest.mark.parametrize("through", [True, False])
def test_a_full_tier_drops_what_was_used_least_recently(through: bool) -> None:
    """Room for 4 blocks: when document 1 comes again, those written since have driven it out; where the GPU's
    cache writes what it drops, later blocks first, its first block is left. With a second tier it lies there.
    """
    rows = (*ROWS, shared(4, 20.0, 3))
    small = tier(4, 0.0)
    log = run(setup_of(rows, (small,), num_blocks=3, stores_through=through))
    assert log.requests["num_cached_tokens"].tolist()[:4] == [0, 0, 0, 0 if through else 4]
    two = run(setup_of(rows, (small, tier(100, 0.0)), num_blocks=3, stores_through=through))
    assert two.requests["num_cached_tokens"].tolist() == [0, 0, 0, 8, 8]


@pytest.mark.parametrize(("at_s", "num_cached", "finished_at_s"), [(4.5, 0, 6.125), (4.75, 8, 9.375)])
def test_what_is_written_takes_its_time(at_s: float, num_cached: int, finished_at_s: float) -> None:
    """Three blocks of document 1, computed at 1.625, are written until 4.625, at 1 s each, and can be hit
    from then on. Until 9.625 those of document 2 are written, which were ready at 3.625. So the two blocks
    that are loaded from 4.75 on come at half the speed, until 8.75.
    """
    rows = (shared(0, 0.0, 1), shared(1, 2.0, 2), shared(2, at_s, 1))
    log = run(setup_of(rows, (tier(100, 1.0),), num_blocks=3, **COSTS))
    assert log.requests["num_cached_tokens"].tolist() == [0, 0, num_cached]
    assert log.requests["finished_at_s"].tolist() == [1.625, 3.625, finished_at_s]


@pytest.mark.parametrize(
    ("block_s", "at_s", "num_cached", "finished_at_s"),
    [
        ((0.25, 1.0), 9.5, 0, 11.125),
        ((0.25, 1.0), 9.75, 8, 12.375),
        ((1.0, 0.25), 12.5, 0, 14.125),
        ((1.0, 0.25), 12.75, 8, 13.875),
    ],
)
def test_what_a_full_tier_drops_is_written_to_the_next(
    block_s: tuple[float, float], at_s: float, num_cached: int, finished_at_s: float
) -> None:
    """Room for 3 blocks: those of document 2, ready at 6.625, drive out those of document 1. A slow second
    tier takes 3 s to write them, until 9.625, and 2 s to bring two of them back. Of a slow first one they
    have half the bandwidth, beside what is written there: until 12.625.
    """
    rows = (shared(0, 0.0, 1), shared(1, 5.0, 2), shared(2, at_s, 1))
    tiers = (tier(3, block_s[0]), tier(100, block_s[1], name="disk"))
    log = run(setup_of(rows, tiers, num_blocks=3, **COSTS))
    assert log.requests["num_cached_tokens"].tolist()[2] == num_cached
    assert log.requests["finished_at_s"].tolist()[2] == finished_at_s


def test_replicas_share_the_bandwidth_of_a_store() -> None:
    """Both have 3 blocks to write from 1.625 on; at half of it each they are done at 7.625."""
    rows = (shared(0, 0.0, 1), shared(1, 0.0, 2), shared(2, 5.0, 3), shared(3, 5.0, 1), shared(4, 8.0, 2))
    log = run(setup_of(rows, (tier(100, 1.0, 0.0, True),), count=2, **COSTS))
    assert log.requests["replica"].tolist() == [0, 1, 0, 1, 0]
    assert log.requests["num_cached_tokens"].tolist() == [0, 0, 0, 0, 8]


def test_only_what_is_computed_is_written() -> None:
    """Of two steps under way the first ends at 1.125, and its two blocks are written until 3.125."""
    settings = {"async_scheduling": True, "max_tokens_per_step": 8}
    rows = (shared(0, 0.0, 1), shared(1, 3.5, 1))
    log = run(setup_of(rows, (tier(100, 1.0, 0.0, True),), count=2, settings=settings, **COSTS))
    assert log.requests["num_cached_tokens"].tolist() == [0, 8]


@pytest.mark.parametrize("is_shared", [True, False])
def test_what_a_replica_that_fails_had_to_write_is_lost(is_shared: bool) -> None:
    """Document 1 is being written until 7.625; the replica fails at 2. Document 2 is ready at 5.125 and has
    all the bandwidth, until 11.125. When the replica fails at 90 again, a store of its own is empty.
    """
    rows = tuple(
        shared(number, at_s, document)
        for number, (at_s, document) in enumerate(
            [(0, 1), (3.5, 2), (6, 3), (10.5, 2), (13, 3), (20, 2), (80, 1), (100, 2)]
        )
    )
    setup = setup_of(rows, (tier(100, 2.0, 0.0, is_shared),), num_blocks=3, **COSTS)
    faults = [(2.0, 1.0, 1.0, 0), (90.0, 1.0, 1.0, 0)]
    log = run(replace(setup, changes=ChangeParts(faults=faults)))
    assert log.requests["num_cached_tokens"].tolist() == [0, 0, 0, 0, 0, 8, 0, 8 * is_shared]


@pytest.mark.parametrize("loads_ahead", [True, False])
def test_what_lies_behind_windows_needs_no_blocks(loads_ahead: bool) -> None:
    """Of 28 tokens a window of 5 and chunks of 8 need 4 blocks at most, also where 24 are found below."""
    rows = tuple(
        request(n, 50.0 * n, 28, 1, prompt=[[f"document {document}", 24], [f"question {n}", 4]])
        for n, document in enumerate([1, 2, 3, 1])
    )
    settings = {**SYNC, "max_tokens_per_step": 8}
    log = run(
        setup_of(
            rows, (tier(100, 0.25),), num_blocks=4, windows=(5,), loads_ahead=loads_ahead, settings=settings
        )
    )
    assert log.requests["num_cached_tokens"].tolist() == [0, 0, 0, 24]
    assert log.num_tokens_from_tiers == {"host": 4}, "one block"
    assert (log.requests["state"] == RequestState.FINISHED).all()


def test_only_what_windows_still_need_is_kept_below() -> None:
    """Of a document of 8 tokens a window of 5 covers the last 4: two blocks of the layers that see everything
    and one of the others come back, 1/4 s each, from 10 to 10.75; 4 tokens are computed until 11.375.
    """
    rows = (shared(0, 0.0, 1), shared(1, 5.0, 2), shared(2, 10.0, 1))
    log = run(setup_of(rows, (tier(100, 0.25),), num_blocks=6, windows=(0, 5), **COSTS))
    assert log.requests["num_cached_tokens"].tolist() == [0, 0, 8]
    assert log.requests["first_scheduled_at_s"].tolist()[2] == 10.75
    assert log.requests["finished_at_s"].tolist()[2] == 11.375
    assert log.num_tokens_from_tiers == {"host": 8}


def pair(
    rows: tuple[dict[str, Any], ...],
    prefill: tuple[TierParts, ...],
    decode: tuple[TierParts, ...],
    counts: tuple[int, int] = (1, 1),
    num_blocks: tuple[int, int] = (3, 4),
) -> Setup:
    """Steps of 1 s; 1,000 bytes a token go over a link of 4,000 bytes a second."""
    setup = apart(
        rows,
        counts=counts,
        num_blocks=num_blocks,
        settings=SYNC,
        link=LinkParts(4000.0, 0.0, 1000.0),
        prefix_caching=True,
        step_s=1.0,
    )
    others = (replace(setup.others[0], tiers=decode),)
    return replace(setup, tiers=prefill, others=others, changes=ChangeParts())


@pytest.mark.parametrize(
    ("below", "finished_at_s"),
    [((), 25.5), ((0.75,), 24.0), ((0.25,), 23.5), ((0.25, 2.0), 25.0)],
    ids=["none", "slow", "fast", "late"],
)
def test_tiers_below_prefill_and_decode(below: tuple[float, ...], finished_at_s: float) -> None:
    """Document 1 comes again after another has driven it out of both caches. The prefill replica loads its
    two blocks from 20 to 20.5 and computes the rest until 21.5. To decode, 12 tokens come over the link in
    3 s; or 4 of them in 1 s, and beside them 8 from a tier there.
    """
    rows = tuple(
        shared(number, at_s, document) | {"num_output_tokens": 2}
        for number, (at_s, document) in enumerate([(0.0, 1), (10.0, 2), (20.0, 1)])
    )
    log = run(pair(rows, (tier(100, 0.25),), (tier(100, *below, name="below"),) if below else ()))
    assert log.requests["first_token_at_s"].tolist() == [1.0, 11.0, 21.5]
    assert log.requests["finished_at_s"].tolist() == [5.0, 15.0, finished_at_s]
    over = HandOvers.of(3, log.events)
    assert over is not None
    assert over.num_tokens.tolist() == [12, 12, 4 if below else 12]


def test_a_store_of_both_pools() -> None:
    """What a prefill replica has computed, a decode replica that never saw it finds in their store."""
    rows = tuple(shared(number, 10.0 * number, 1) | {"num_output_tokens": 2} for number in range(2))
    store = tier(100, 0.25, 0.0, True, "store")
    host = tier(100, 0.25)
    apart_ = run(pair(rows, (host,), (host,), (1, 2), (20, 20)))
    assert apart_.requests["finished_at_s"].tolist() == [5.0, 15.0]
    together = run(pair(rows, (store,), (host, store), (1, 2), (20, 20)))
    assert together.steps["replica"].tolist() == [0, 1, 0, 2]
    assert together.requests["finished_at_s"].tolist() == [5.0, 13.0]


def test_they_cannot_be_gone_through_step_by_step() -> None:
    """Nor where only another pool than the first has any."""
    with pytest.raises(ConfigError, match=r"kv_cache\.tiers: can't be gone through step by step"):
        stepwise(pair((request(0, 0.0, 4, 2),), (), (tier(100, 0.25),)))


def test_a_shared_store_serves_every_replica() -> None:
    """Document 1 is computed on one replica and found by the other, which loads it."""
    rows = (shared(0, 0.0, 1), shared(1, 5.0, 1))
    own = run(setup_of(rows, (tier(100, 0.0),), count=2))
    assert own.requests["num_cached_tokens"].tolist() == [0, 0]
    together = run(setup_of(rows, (tier(100, 0.0, 0.0, True),), count=2))
    assert together.requests["replica"].tolist() == [0, 1]
    assert together.requests["num_cached_tokens"].tolist() == [0, 8]


PLAIN: dict[str, Any] = {
    "model": {"name": "llama-3-8b", "max_model_len": 100_000},
    "gpu": "h200",
    "workload": {
        "type": "synthetic",
        "num_requests": 60,
        "prompt_tokens": {"type": "fixed", "value": 4000},
        "output_tokens": {"type": "fixed", "value": 20},
        "arrivals": {"type": "poisson", "rate_per_s": 0.5},
        "sessions": {"num_turns": {"type": "fixed", "value": 4}},
    },
    "scheduler": {"type": "vllm"},
}


def test_from_a_file() -> None:
    """A cache too small for the sessions under way finds more of them with a host's memory below it."""
    cache = {"prefix_caching": True, "num_blocks": 2000}
    host = {"name": "host", "size_gib": 64, "bandwidth_gb_s": 25}
    without = cbsim.run({**PLAIN, "kv_cache": cache})
    below = cbsim.run({**PLAIN, "kv_cache": {**cache, "tiers": [host]}})
    assert below.summary["num_tokens_from_tiers"]["host"] > 10_000
    assert below.summary["ttft_s"]["mean"] < 0.8 * without.summary["ttft_s"]["mean"]


def test_windows_and_pools_from_a_file() -> None:
    """Turns of sessions of a model with sliding windows, in pools with tiers; less goes over the link."""
    host = {"name": "host", "size_gib": 64, "bandwidth_gb_s": 25}
    store = {"name": "store", "size_gib": 64, "bandwidth_gb_s": 25, "shared": True}
    cache = {"prefix_caching": True, "num_blocks": 2000}
    pools = [{"name": "first", "role": "prefill"}, {"name": "then", "role": "decode", "count": 2}]
    plain = {**PLAIN, "model": "gpt-oss-20b", "workload": {**PLAIN["workload"], "num_requests": 24}}
    num_bytes = []
    for tiers in ([], [host, store]):
        settings = {**plain, "kv_cache": {**cache, "tiers": tiers}, "cluster": {"pools": pools}}
        result = cbsim.run(settings)
        num_bytes.append(result.summary["kv_transfers"]["num_bytes"])
    assert set(result.summary["num_tokens_from_tiers"]) == {"host", "store"}
    assert result.summary["num_tokens_from_tiers"]["host"] > 10_000
    assert num_bytes[1] < 0.9 * num_bytes[0]


STORE = {"size_gib": 1, "bandwidth_gb_s": 1, "shared": True}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"kv_cache": {"tiers": [{"size_gib": 1, "bandwidth_gb_s": 1}]}}, "prefix_caching: false"),
        (
            {
                "scheduler": "continuous",
                "kv_cache": {"prefix_caching": True, "tiers": [{"size_gib": 1, "bandwidth_gb_s": 1}]},
            },
            "shares no KV",
        ),
        ({"kv_cache": {"prefix_caching": True, "tiers": [{"size_gib": 0, "bandwidth_gb_s": 1}]}}, "size_gib"),
        (
            {"kv_cache": {"prefix_caching": True, "tiers": [STORE, STORE]}},
            "got 'host' 2 times; allowed: each",
        ),
        (
            {
                "scheduler": {"type": "vllm", "connector": {}},
                "kv_cache": {"prefix_caching": True, "tiers": [STORE]},
            },
            "got a connector; expected null beside tiers",
        ),
        (
            {
                "kv_cache": {"prefix_caching": True, "tiers": [STORE]},
                "cluster": {"pools": [{"name": "a"}, {"name": "b", "kv_cache": {"block_size": 32}}]},
            },
            "pool 'b': kv_cache.tiers: got 'host' unlike in pool 'a'; expected equal settings",
        ),
    ],
)
def test_mistakes(changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Experiment.from_mapping({**PLAIN, **changed})
    assert problem in str(caught.value)
