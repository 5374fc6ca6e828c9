"""Prefill and decode apart: requests handed over from pool to pool, at both speeds, by laws and by hand."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import pytest

import cbsim
from cbsim.base.binding import can_compile
from cbsim.base.errors import ConfigError
from cbsim.cluster.router import ROUTERS
from cbsim.core.building import LinkParts, RouterParts
from cbsim.results.run_log import RunLog
from cbsim.studies.experiment import Experiment
from cbsim.studies.setup import Setup
from cbsim.studies.simulation import simulate_core
from cbsim.testing import Case, differences
from cbsim.workload.request import RequestState
from tests.core.drawn import Setting, chance, draw_requests, pick, request, with_turns
from tests.core.runs import few_records

BYTES_PER_TOKEN = 1000.0
NUM_CASES = 60


def apart(
    rows: tuple[dict[str, Any], ...],
    *,
    counts: tuple[int, int] = (1, 1),
    num_blocks: tuple[int, int] = (64, 64),
    settings: dict[str, Any] | None = None,
    link: LinkParts | None = None,
    routers: tuple[str, str] = ("round_robin", "round_robin"),
    **case: Any,
) -> Setup:
    """One pool computes prompts, the other decodes; every step takes the time that the case says."""
    pools = []
    for role, count, blocks in zip(("prefill", "decode"), counts, num_blocks, strict=True):
        made = Case(rows, settings or {}, num_blocks=blocks, num_replicas=count, **case)
        setup = Setting("vllm", made).make_setup(with_batches=True)
        cache = replace(setup.pool, has_identities=True)
        pools.append(replace(setup, pool=cache, pool_name=role, role=role))
    return replace(
        pools[0],
        others=(pools[1],),
        router=RouterParts(ROUTERS.get(routers[0]).kind),
        decode_router=RouterParts(ROUTERS.get(routers[1]).kind),
        link=link or LinkParts(inf, 0.0, BYTES_PER_TOKEN),
    )


def run(setup: Setup, engine: str = "interpreted") -> RunLog:
    with few_records():
        log, world, speed = simulate_core(setup, engine)
    assert speed.is_compiled == (engine == "compiled"), speed.notes
    if setup.until_s == inf:
        assert (world.own["num_free"] == world.own["num_blocks"]).all(), "KV blocks are left behind"
        assert not world.own["num_links"].any()
    return log


def draw(seed: int) -> Setup:
    random = np.random.default_rng([seed, 7])
    rows = draw_requests(random, 4, most=24)
    if chance(random, 0.3):
        rows = with_turns(random, rows)
    need = max(-(-(row["num_prompt_tokens"] + row["num_output_tokens"]) // 4) for row in rows) + 2
    tight = pick(random, [0, 3, 40])
    return replace(
        apart(
            rows,
            counts=(pick(random, [1, 2, 3]), pick(random, [1, 2, 3])),
            num_blocks=(need + tight, need + pick(random, [0, 3, 40])),
            settings={
                "max_num_seqs": pick(random, [2, 8, 64]),
                "max_tokens_per_step": pick(random, [8, 64, 256]),
                "async_scheduling": chance(random, 0.5),
            },
            link=LinkParts(
                pick(random, [inf, 2e4, 1e6]),
                pick(random, [0.0, 0.25]),
                BYTES_PER_TOKEN,
                4,
                chance(random, 0.5),
            ),
            routers=(pick(random, ROUTERS.builtin_names()), pick(random, ROUTERS.builtin_names())),
            prefix_caching=chance(random, 0.5),
            step_s=0.125,
            token_s=pick(random, [0.0, 0.125]),
            concurrency=pick(random, [None, None, 3]),
        ),
        until_s=pick(random, [inf, inf, inf, 3.0]),
    )


@pytest.mark.xdist_group("core-vllm")
@pytest.mark.skipif(not can_compile(), reason="numba is missing")
def test_compiled_equals_interpreted() -> None:
    num_over = num_preempted = num_shared = 0
    for seed in range(NUM_CASES):
        setup = draw(seed)
        log = run(setup)
        assert differences(log, run(setup, "compiled")) == [], seed
        assert log.visits is not None
        num_over += int((log.visits["state"] == RequestState.HANDED_OVER).sum())
        num_preempted += int(log.requests["num_preemptions"].sum())
        num_shared += log.num_prompt_tokens_hit
    assert num_over > 3 * NUM_CASES
    assert num_preempted > 10
    assert num_shared > 100


def test_blocks_need_no_numbers() -> None:
    """Counted they are handed over alike, in far less memory."""
    for seed in range(20):
        setup = draw(seed)
        assert not differences(run(setup), run(only_counted(setup))), seed


def only_counted(setup: Setup) -> Setup:
    """With blocks that are counted, but for pools that cache prefixes."""
    pools = [replace(each, pool=replace(each.pool, has_identities=False)) for each in (setup, *setup.others)]
    return replace(pools[0], others=tuple(pools[1:]))


def test_laws() -> None:
    """Nothing is lost, nobody decodes before the KV is there, and figures of requests are those of visits."""
    for seed in range(NUM_CASES):
        setup = draw(seed)
        if seed % 2:
            setup = only_counted(setup)
        log = run(replace(setup, until_s=inf))
        requests, visits = log.requests, log.visits
        assert visits is not None
        assert (requests["state"] == RequestState.FINISHED).all()
        assert (requests["num_generated_tokens"] == requests["num_output_tokens"]).all()
        generated = np.bincount(visits["request"], visits["num_output_tokens"])
        assert (generated == requests["num_output_tokens"]).all()
        over = visits["state"] == RequestState.HANDED_OVER
        assert (np.bincount(visits["request"]) == 1 + (requests["num_output_tokens"] > 1)).all()
        assert (visits["num_output_tokens"][over] == 1).all()
        assert (visits["left_at_s"] >= visits["admitted_at_s"]).all()
        num_gaps = sum(int(count.sum()) for _, count in log.gaps)
        assert num_gaps == (requests["num_output_tokens"] - 1).sum()
        check_transfers(log, setup)


def check_transfers(log: RunLog, setup: Setup) -> None:
    """Each request's KV takes at least its bytes over the whole link, and is there before it decodes."""
    events, link = log.events, setup.link
    assert link is not None
    times = {
        name: dict(zip(events["request"][at].tolist(), events["time_s"][at].tolist(), strict=True))
        for name, code in (("load_started", 7), ("loaded", 8), ("handed_over", 12), ("sent", 10))
        for at in [events["event"] == code]
    }
    assert (
        set(times["load_started"]) == set(times["loaded"]) == set(times["handed_over"]) == set(times["sent"])
    )
    num_brought = events["num_tokens"][events["event"] == 8] - 1
    order = events["request"][events["event"] == 8].tolist()
    for request_, num_tokens in zip(order, num_brought.tolist(), strict=True):
        taken_s = times["loaded"][request_] - times["load_started"][request_]
        share = 1 / link.num_layers if link.is_layered else 1.0
        assert taken_s >= num_tokens * BYTES_PER_TOKEN * share / link.bytes_per_s + link.latency_s - 1e-9
        assert times["load_started"][request_] >= times["handed_over"][request_]
        assert times["sent"][request_] >= times["loaded"][request_] - 2 * 0.125 * 300
    assert log.visits is not None
    admitted = log.visits["admitted_at_s"]
    for row, request_ in enumerate(log.visits["request"].tolist()):
        if log.visits["num_prefill_tokens"][row] == log.requests["num_prompt_tokens"][request_] + 1:
            assert admitted[row] >= times["loaded"][request_]


SYNC = {"async_scheduling": False}


def test_by_hand() -> None:
    """Steps of 1 s. A prompt of 10 tokens is computed from 0 to 1; its 10,000 bytes take 2.5 s at 4,000 a
    second and 0.25 s more, and are there at 3.75; three tokens more are decoded from then on.
    """
    link = LinkParts(4000.0, 0.25, BYTES_PER_TOKEN)
    log = run(apart((request(0, 0.0, 10, 4),), settings=SYNC, link=link, step_s=1.0))
    assert log.requests["first_token_at_s"].tolist() == [1.0]
    assert log.requests["finished_at_s"].tolist() == [6.75]
    assert log.requests["max_itl_s"].tolist() == [3.75]
    assert log.visits is not None
    assert log.visits["left_at_s"].tolist() == [1.0, 6.75]
    assert log.visits["arrived_at_s"].tolist() == [0.0, 1.0]
    assert log.visits["admitted_at_s"].tolist() == [0.0, 3.75]
    assert log.steps["start_s"].tolist() == [0.0, 3.75, 4.75, 5.75]
    assert log.steps["replica"].tolist() == [0, 1, 1, 1]
    assert log.steps["num_prefill_tokens"].tolist() == [10, 0, 0, 0], (
        "the last token is decoded, not prefilled"
    )


def test_two_transfers_share_the_link() -> None:
    """Both prompts end at 1 s. Each of 8,000 bytes goes at 2,000 a second: both are there at 5."""
    rows = (request(0, 0.0, 8, 2), request(1, 0.0, 8, 2))
    log = run(apart(rows, settings=SYNC, link=LinkParts(4000.0, 0.0, BYTES_PER_TOKEN), step_s=1.0))
    assert log.requests["first_token_at_s"].tolist() == [1.0, 1.0]
    assert log.requests["finished_at_s"].tolist() == [6.0, 6.0]
    wide = run(
        apart(rows, counts=(2, 2), settings=SYNC, link=LinkParts(4000.0, 0.0, BYTES_PER_TOKEN), step_s=1.0)
    )
    assert wide.requests["finished_at_s"].tolist() == [4.0, 4.0], "links of their own"


def test_layers_sent_while_others_are_computed() -> None:
    """Of 8,000 bytes 4,000 are sent in the second of the prompt; all but the last of 8 layers could be."""
    log = run(
        apart(
            (request(0, 0.0, 8, 2),), settings=SYNC, link=LinkParts(4000.0, 0.0, 1000.0, 8, True), step_s=1.0
        )
    )
    assert log.requests["finished_at_s"].tolist() == [3.0]
    fast = LinkParts(1e6, 0.0, 1000.0, 8, True)
    log = run(apart((request(0, 0.0, 8, 2),), settings=SYNC, link=fast, step_s=1.0))
    assert log.requests["finished_at_s"].tolist() == [pytest.approx(2.001)]


def test_a_full_decode_side_keeps_blocks_on_the_other() -> None:
    """Room for one request to decode: the others' KV waits where it was computed, and so do new prompts."""
    rows = tuple(request(i, 0.0, 12, 9) for i in range(6))
    log = run(apart(rows, num_blocks=(8, 6), settings=SYNC, step_s=1.0))
    assert (log.requests["state"] == RequestState.FINISHED).all()
    on_prefill = log.steps["replica"] == 0
    assert log.steps["start_s"][on_prefill].max() > 8.0, "prompts wait until blocks are fetched"


def test_the_log_has_room_for_all_loads_that_a_call_begins() -> None:
    """A call lets any number of requests load, though two may run: here when the log is nearly full."""
    rows = tuple(
        request(1000 * burst + n, 100.0 * burst, 4, 1, extra={"is_remote_prefill": 1, "load_s": 1.0})
        for burst, number in enumerate((300, 300, 300, 300, 85, 500, 600))
        for n in range(number)
    )
    settings = {"max_num_seqs": 2, "connector": {"kind": "remote"}, **SYNC}
    setup = Setting("vllm", Case(rows, settings, num_blocks=700, step_s=0.125)).make_setup()
    log = run(replace(setup, pool=replace(setup.pool, has_identities=True)))
    assert (log.requests["state"] == RequestState.FINISHED).all()


def test_what_the_decode_side_can_never_hold_is_refused() -> None:
    rows = (request(0, 0.0, 12, 200), request(1, 0.0, 4, 2))
    log = run(apart(rows, num_blocks=(64, 8), settings=SYNC, step_s=1.0))
    assert log.requests["state"].tolist() == [RequestState.REJECTED, RequestState.FINISHED]
    assert list(log.rejections) == [0]


PLAIN: dict[str, Any] = {
    "model": "llama-3-8b",
    "gpu": "h200",
    "workload": {"type": "trace", "path": "azure-like.csv", "limit": 120, "rate_scale": 3.0},
    "scheduler": {"type": "vllm"},
}


def test_a_cluster_of_one_pool_equals_replicas() -> None:
    replicas = cbsim.run({**PLAIN, "replicas": {"count": 3, "router": "least_outstanding"}})
    pool = {"name": "all", "count": 3}
    cluster = cbsim.run({**PLAIN, "cluster": {"pools": [pool], "router": "least_outstanding"}})
    assert cluster.requests.drop(columns="pool").equals(replicas.requests.drop(columns="pool"))
    assert cluster.steps.drop(columns="pool").equals(replicas.steps.drop(columns="pool"))
    assert cluster.events.equals(replicas.events)
    assert set(cluster.requests["pool"]) == {"all"}
    names = ("ttft_s", "tpot_s", "mfu", "mbu", "busy_fraction", "kv_utilization")
    assert {name: cluster.summary[name] for name in names} == {name: replicas.summary[name] for name in names}


def test_pools_of_different_gpus() -> None:
    pools = [{"name": "new"}, {"name": "old", "gpu": "a100-80g", "kv_cache": {"num_blocks": 5000}}]
    result = cbsim.run({**PLAIN, "cluster": {"pools": pools}})
    steps = result.steps.groupby("pool", observed=True)
    assert steps["kv_blocks_total"].first()["old"] == 5000
    assert steps["duration_s"].median()["old"] > 1.5 * steps["duration_s"].median()["new"]
    assert set(result.summary["kv_cache_tokens"]) == {"new", "old"}
    profiled = {"type": "profile", "profile": "h200/llama-3-8b"}
    mixed = cbsim.run({**PLAIN, "cluster": {"pools": [{"name": "a", "cost_model": profiled}, {"name": "b"}]}})
    assert mixed.summary["num_finished"] == 120


def test_prefill_and_decode_from_a_file(tmp_path: Any) -> None:
    pools = [
        {"name": "prompts", "role": "prefill", "count": 1},
        {"name": "answers", "role": "decode", "count": 2, "scheduler": {"max_num_seqs": 64}},
    ]
    result = cbsim.run({**PLAIN, "cluster": {"pools": pools}}, out=tmp_path / "run")
    again = cbsim.load_run(tmp_path / "run")
    assert again.requests.equals(result.requests)
    visits = cbsim.run(again.config).make_table("visits").to_pandas()
    assert set(visits["pool"]) == {"prompts", "answers"}
    assert visits["reason"].value_counts()["handed_over"] == 120


@pytest.mark.parametrize(
    ("cluster", "problem"),
    [
        ({"pools": []}, "pools"),
        (
            {"pools": [{"name": "a", "role": "prefill"}]},
            "got roles prefill; allowed: both alone, or prefill and",
        ),
        ({"pools": [{"name": "a"}, {"name": "a"}]}, "got 'a' 2 times"),
        (
            {"pools": [{"name": "a", "gpu": "h2000"}]},
            "pool 'a': gpu: unknown gpu 'h2000'; did you mean 'h200'?",
        ),
        ({"pools": [{"name": "a", "scheduler": {"max_num_seq": 1}}]}, "pool 'a': scheduler.max_num_seq"),
        (
            {"pools": [{"name": "a"}, {"name": "b", "scheduler": "continuous"}]},
            "pool 'b': got scheduler continuous; expected vllm in all pools",
        ),
        ({"pools": [{"name": "a", "parallel": {"data": 2}}]}, "data"),
        ({"pools": [{"name": "a"}], "link": {"bandwidth_gb_s": 0}}, "bandwidth_gb_s"),
    ],
)
def test_mistakes(cluster: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Experiment.from_mapping({**PLAIN, "cluster": cluster})
    assert problem in str(caught.value)


def test_ranks_in_pools_work_in_step() -> None:
    """Steps of ranks of one worker begin and end together or don't overlap, in pools of one kind or both."""
    num_together = 0
    for seed in range(NUM_CASES):
        random = np.random.default_rng([seed, 11])
        setup = draw(seed)
        ranks = pick(random, [(2, 1), (1, 2), (2, 2), (3, 2)])
        pools = [
            replace(pool, num_ranks=number, num_replicas=pool.num_replicas * number)
            for pool, number in zip(setup.pools, ranks, strict=True)
        ]
        setup = replace(pools[0], others=(pools[1],), until_s=inf)
        log = run(setup)
        assert (log.requests["state"] == RequestState.FINISHED).all()
        check_transfers(log, setup)
        steps = {name: np.asarray(log.steps[name]) for name in ("replica", "start_s", "duration_s")}
        first = 0
        for pool in setup.pools:
            for rank in range(first, first + pool.num_replicas, pool.num_ranks):
                mine = (steps["replica"] >= rank) & (steps["replica"] < rank + pool.num_ranks)
                begin = steps["start_s"][mine]
                spans = np.unique(np.stack([begin, begin + steps["duration_s"][mine]]), axis=1)
                assert (spans[1, :-1] <= spans[0, 1:] + 1e-9).all(), seed
                num_together += len(begin) - spans.shape[1]
            first += pool.num_replicas
    assert num_together > 100


def test_any_number_of_transfers_may_be_known_to_have_ended_at_once() -> None:
    """Whose KV is fetched runs nowhere, so that there may be many more of them than run at once."""
    rows = tuple(request(n, 0.0, 4, 3) for n in range(150))
    setup = apart(rows, num_blocks=(1000, 1000), settings={"max_num_seqs": 2})
    log = run(setup)
    assert (log.requests["state"] == RequestState.FINISHED).all()
