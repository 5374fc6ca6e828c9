"""Clusters that change: faults, pools that grow and shrink, full queues, clients that stop waiting.

At both speeds, by laws over drawn clusters, by queueing theory and by hand.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import pytest

from cbsim.base.binding import can_compile
from cbsim.cluster.router import ROUTERS
from cbsim.core import layout
from cbsim.core.building import ChangeParts, LinkParts, RouterParts
from cbsim.results.run_log import CHANGES, RunLog
from cbsim.studies.setup import Setup
from cbsim.studies.simulation import simulate_core
from cbsim.testing import Case, differences
from cbsim.workload.request import RequestState
from tests.cluster.test_handed_over import BYTES_PER_TOKEN, SYNC, apart
from tests.core.drawn import Setting, chance, draw_requests, pick, request, with_turns
from tests.core.runs import few_records

NUM_CASES = 150


def together(rows: tuple[dict[str, Any], ...], count: int, num_blocks: int, **case: Any) -> Setup:
    """One pool that serves requests whole."""
    made = Case(rows, case.pop("settings", {}), num_blocks=num_blocks, num_replicas=count, **case)
    return Setting("vllm", made).make_setup(with_batches=True)


def run(setup: Setup, engine: str = "interpreted") -> RunLog:
    with few_records():
        log, world, speed = simulate_core(setup, engine)
    is_compiled = engine == "compiled"
    assert speed.is_compiled == is_compiled, speed.notes
    if setup.until_s == inf:
        own = world.own
        assert (own["num_free"] == own["num_blocks"]).all(), "KV blocks are left behind"
        for name in ("num_links", "num_running", "num_waiting", "num_holding", "num_transfers", "num_news"):
            assert not own[name].any(), name
        assert not world.tiers["num_links"].any()
        assert not (is_compiled and world.tier_blocks["num_holders"].any()), "never written"
        for name in ("num_outstanding", "num_owed_tokens", "num_promised", "num_kv_tokens", "num_sending"):
            assert not own[name].any(), name
    return log


def draw(seed: int) -> Setup:
    """Small and tight, with steps, arrivals and faults at multiples of 1/8 s, so that many things meet."""
    random = np.random.default_rng([seed, 18])
    rows = draw_requests(random, 4)
    if chance(random, 0.3):
        rows = with_turns(random, rows)
    need = max(-(-(row["num_prompt_tokens"] + row["num_output_tokens"]) // 4) for row in rows) + 2
    names = ROUTERS.builtin_names()
    case: dict[str, Any] = {
        "settings": {
            "max_num_seqs": pick(random, [1, 2, 8, 64]),
            "max_tokens_per_step": pick(random, [8, 64, 256]),
            "async_scheduling": chance(random, 0.5),
        },
        "prefix_caching": chance(random, 0.5),
        "step_s": 0.125,
        "token_s": pick(random, [0.0, 0.125]),
        "concurrency": pick(random, [None, None, 3]),
    }
    is_staged = chance(random, 0.6)
    if is_staged:
        counts = (pick(random, [1, 2, 3]), pick(random, [1, 2, 3]))
        link = LinkParts(
            pick(random, [inf, 2e4, 1e6]), pick(random, [0.0, 0.25]), BYTES_PER_TOKEN, 4, chance(random, 0.5)
        )
        blocks = (need + pick(random, [0, 3, 40]), need + pick(random, [0, 3, 40]))
        setup = apart(rows, counts=counts, num_blocks=blocks, link=link, **case)
        setup = replace(
            setup,
            others=(replace(setup.others[0], gives_back_preempted=chance(random, 0.4)),),
            decode_router=draw_router(random, names, holds=True),
        )
    else:
        counts = (pick(random, [1, 2, 4]),)
        setup = together(rows, counts[0], need + pick(random, [0, 3, 40]), **case)
    setup = replace(
        setup,
        router=replace(
            draw_router(random, names, holds=chance(random, 0.5)),
            max_queue=pick(random, [layout.NOBODY, layout.NOBODY, 0, 1, 3]),
            chooses_pairs=is_staged and chance(random, 0.4),
        ),
        changes=draw_changes(random, counts, is_staged=is_staged),
    )
    return replace(setup, until_s=pick(random, [inf, inf, inf, inf, 5.0]))


def draw_router(random: np.random.Generator, names: list[str], *, holds: bool) -> RouterParts:
    kind = ROUTERS.get(pick(random, names)).kind
    return RouterParts(kind, 1.0, pick(random, [0.0, 0.0, 1.0]), holds=holds)


def draw_changes(random: np.random.Generator, counts: tuple[int, ...], *, is_staged: bool) -> ChangeParts:
    num_replicas = sum(counts)
    faults = [
        (
            int(random.integers(0, 100)) / 8,
            pick(random, [0.5, 2.0, 8.0]),
            pick(random, [1.0, 1.0, 1.0, 2.0]),
            layout.NOBODY if is_staged and chance(random, 0.2) else int(random.integers(0, num_replicas)),
        )
        for _ in range(pick(random, [0, 1, 3, 8]))
    ]
    scalers: list[Any] = []
    for place, count in enumerate(counts):
        if chance(random, 0.4):
            kind = pick(random, [layout.BY_QUEUE, layout.BY_OUTSTANDING, layout.BY_KV, layout.BY_TTFT])
            numbers = {
                "kind": kind,
                "least": 1,
                "most": count,
                "interval_s": pick(random, [0.5, 2.0]),
                "target": {layout.BY_KV: 0.5, layout.BY_TTFT: 0.25}.get(kind, 2.0),
                "delay_s": pick(random, [0.0, 0.5]),
                "stabilization_s": pick(random, [0.0, 2.0]),
            }
            plan: list[tuple[float, int]] = []
            if chance(random, 0.2):
                numbers["kind"] = layout.BY_SCHEDULE
                plan = [(0.5, 1), (2.0, count)]
            scalers.append((place, numbers, plan))
    drawn = {}
    if chance(random, 0.25):
        drawn = {"mtbf_s": pick(random, [1.0, 10.0]), "repair_s": 0.5, "draws": random.exponential(size=64)}
    return ChangeParts(
        first_token_timeout_s=pick(random, [inf, inf, 1.0, 4.0]),
        timeout_s=pick(random, [inf, inf, 3.0, 10.0]),
        backoff_s=pick(random, [0.0, 0.5]),
        max_retries=pick(random, [0, 1, 2]),
        max_reroutes=pick(random, [1, 3, 20]),
        faults=faults,
        scalers=scalers,
        **drawn,  # type: ignore[arg-type]
    )


@pytest.mark.xdist_group("core-vllm")
@pytest.mark.skipif(not can_compile(), reason="numba is missing")
def test_compiled_equals_interpreted() -> None:
    seen: dict[str, int] = {}
    for seed in range(NUM_CASES):
        setup = draw(seed)
        log = run(setup)
        assert differences(log, run(setup, "compiled")) == [], seed
        for name, count in log.losses.items():
            seen[name] = seen.get(name, 0) + count
        assert log.changes is not None
        for name, count in zip(
            CHANGES, np.bincount(log.changes["change"], minlength=len(CHANGES)), strict=True
        ):
            seen[name] = seen.get(name, 0) + int(count)
    causes = ("num_lost_to_failures", "num_timed_out", "num_refused", "num_retries", "num_reroutes")
    assert min(seen.get(name, 0) for name in (*CHANGES, *causes)) > 10, seen


def test_laws() -> None:
    """Nobody is lost: whoever came has all tokens, or a reason; nothing runs while a replica is down.

    Parts of latencies are told unless somebody came again, and make them up.
    """
    num_split = {True: 0, False: 0}
    for seed in range(NUM_CASES):
        setup = replace(draw(seed), until_s=inf)
        log = run(setup)
        requests = log.requests
        state = requests["state"]
        ends = (RequestState.FINISHED, RequestState.REJECTED, RequestState.FAILED)
        assert np.isin(state, ends).all(), seed
        has_all = requests["num_generated_tokens"] == requests["num_output_tokens"]
        assert has_all[state == RequestState.FINISHED].all()
        assert not has_all[state != RequestState.FINISHED].any()
        assert len(log.rejections) == (state == RequestState.REJECTED).sum()
        check_visits(log)
        check_replicas_that_are_down(log)
        num_split[log.parts is not None] += 1
        assert (log.parts is None) == bool({"num_reroutes", "num_retries"} & {*log.losses}), seed
        if log.parts is not None:
            parts = np.sum([log.parts[name] for name in log.parts if name.startswith("part_")], axis=0)
            e2e_s = requests["finished_at_s"] - requests["arrival_s"]
            assert parts == pytest.approx(e2e_s, abs=1e-6, nan_ok=True), seed
    assert min(num_split.values()) > 10


def check_visits(log: RunLog) -> None:
    """A request is in one place at a time, and each visit follows when the one before has ended."""
    visits = log.visits
    if visits is None:
        return
    for number in range(len(log.requests["state"])):
        rows = np.flatnonzero(visits["request"] == number)
        arrived, left = visits["arrived_at_s"][rows], visits["left_at_s"][rows]
        assert len(rows) >= 1
        known = ~np.isnan(left[:-1])
        assert (arrived[1:][known] >= left[:-1][known]).all()
        went_on = visits["state"][rows][:-1]
        assert np.isin(went_on, (RequestState.HANDED_OVER, RequestState.FAILED, RequestState.REJECTED)).all()


def check_replicas_that_are_down(log: RunLog) -> None:
    """No step is under way, and nothing comes, while a replica is down or not there."""
    assert log.changes is not None
    steps, events = log.steps, log.events
    begin_s, end_s = steps["start_s"], steps["start_s"] + steps["duration_s"]
    gone_since: dict[int, float] = {}
    for time_s, replica, change in zip(
        *(log.changes[name].tolist() for name in ("time_s", "replica", "change")), strict=True
    ):
        name = CHANGES[change]
        if name in ("failed", "stopped"):
            gone_since[replica] = time_s
        elif name in ("repaired", "ready") and replica in gone_since:
            check_gone(steps["replica"] == replica, begin_s, end_s, gone_since.pop(replica), time_s)
    for replica, since_s in gone_since.items():
        check_gone(steps["replica"] == replica, begin_s, end_s, since_s, inf)
        admitted = (events["event"] == layout.ADMITTED) & (events["replica"] == replica)
        assert not (events["time_s"][admitted] > since_s).any()


def check_gone(is_there: Any, begin_s: Any, end_s: Any, from_s: float, to_s: float) -> None:
    assert not (is_there & (begin_s < to_s) & (end_s > from_s) & (end_s > begin_s)).any()


def test_a_replica_fails_by_hand() -> None:
    """Steps of 1 s. A prompt is done at 1, two tokens are out as the replica fails at 2.5; it is repaired at
    4.5, when the prompt and these tokens are computed again: tokens 3 and 4 come at 5.5 and 6.5.
    """
    changes = ChangeParts(max_reroutes=1, faults=[(2.5, 2.0, 1.0, 0)])
    setup = replace(together((request(0, 0.0, 10, 4),), 1, 64, settings=SYNC, step_s=1.0), changes=changes)
    log = run(setup)
    assert log.requests["first_token_at_s"].tolist() == [1.0]
    assert log.requests["finished_at_s"].tolist() == [6.5]
    assert log.requests["max_itl_s"].tolist() == [3.5]
    assert log.visits is not None
    assert log.visits["num_prefill_tokens"].tolist() == [10, 12]
    assert log.visits["num_output_tokens"].tolist() == [2, 2]
    assert log.visits["left_at_s"].tolist() == [2.5, 6.5]
    assert log.steps["start_s"].tolist() == [0.0, 1.0, 2.0, 4.5, 5.5]
    assert log.steps["duration_s"].tolist() == [1.0, 1.0, 0.5, 1.0, 1.0]
    assert log.losses == {"num_lost_to_failures": 1, "num_reroutes": 1}


def test_another_replica_takes_over_by_hand() -> None:
    """With a second one the request goes on at once: the prompt anew from 2.5 to 3.5."""
    changes = ChangeParts(max_reroutes=1, faults=[(2.5, 2.0, 1.0, 0)])
    setup = replace(together((request(0, 0.0, 10, 4),), 2, 64, settings=SYNC, step_s=1.0), changes=changes)
    log = run(setup)
    assert log.requests["finished_at_s"].tolist() == [4.5]
    assert log.requests["replica"].tolist() == [1]
    never = replace(setup, changes=replace(changes, max_reroutes=0))
    log = run(never)
    assert log.requests["state"].tolist() == [RequestState.FAILED]


def test_a_slow_replica_by_hand() -> None:
    """From 1.5 to 3.5 steps that begin take twice as long: those that begin at 2 and 4 end at 4 and 5."""
    changes = ChangeParts(faults=[(1.5, 2.0, 2.0, 0)])
    setup = replace(together((request(0, 0.0, 10, 4),), 1, 64, settings=SYNC, step_s=1.0), changes=changes)
    assert run(setup).steps["start_s"].tolist() == [0.0, 1.0, 2.0, 4.0]


def test_a_client_stops_waiting_and_sends_again_by_hand() -> None:
    """One runs at a time, 4 steps of 1 s. The second stops waiting at 2 and sends again at 2.5. It runs from
    4 on, but its client stops waiting at 4.5, amid the step, and sends again at 5.5, when nobody is there.
    """
    changes = ChangeParts(first_token_timeout_s=2.0, backoff_s=0.5, max_retries=2)
    rows = (request(0, 0.0, 10, 4), request(1, 0.0, 10, 2))
    settings = {"max_num_seqs": 1, **SYNC}
    log = run(replace(together(rows, 1, 64, settings=settings, step_s=1.0), changes=changes))
    assert log.requests["finished_at_s"].tolist() == [4.0, 7.5]
    assert log.requests["first_token_at_s"].tolist() == [1.0, 6.5]
    assert log.losses == {"num_timed_out": 2, "num_retries": 2}
    changes = replace(changes, max_retries=0)
    log = run(replace(together(rows, 1, 64, settings=settings, step_s=1.0), changes=changes))
    assert log.requests["state"].tolist() == [RequestState.FINISHED, RequestState.FAILED]


def test_a_full_queue_refuses_or_holds() -> None:
    rows = tuple(request(i, 0.0, 10, 4) for i in range(4))
    setup = together(rows, 1, 64, settings={"max_num_seqs": 1, **SYNC}, step_s=1.0)
    refusing = replace(setup, router=RouterParts(max_queue=1), changes=ChangeParts())
    log = run(refusing)
    states = [RequestState.FINISHED, *[RequestState.REJECTED] * 3]
    assert log.requests["state"].tolist() == states
    assert "HTTP 429" in log.rejections[1]
    holding = replace(setup, router=RouterParts(max_queue=0, holds=True), changes=ChangeParts())
    assert run(holding).requests["finished_at_s"].tolist() == [4.0, 8.0, 12.0, 16.0]


def test_a_decode_replica_gives_back_what_it_preempts() -> None:
    """Six blocks of 4 tokens hold the 9 tokens that each of two requests comes with, but not 13 of both: the
    second goes back, its prompt and the tokens so far are computed anew, and it is handed over again.
    """
    rows = (request(0, 0.0, 8, 12), request(1, 0.0, 8, 12))
    setup = apart(rows, num_blocks=(64, 6), settings=SYNC, step_s=1.0)
    giving = replace(setup.others[0], gives_back_preempted=True)
    log = run(replace(setup, others=(giving,), changes=ChangeParts(max_reroutes=3)))
    assert log.requests["state"].tolist() == [RequestState.FINISHED] * 2
    assert log.losses == {"num_given_back": 1, "num_reroutes": 1}
    assert log.visits is not None
    rows_of_second = log.visits["request"] == 1
    assert log.visits["replica"][rows_of_second].tolist() == [0, 1, 0, 1]
    assert log.visits["num_output_tokens"][rows_of_second].sum() == 12
    assert (log.steps["num_prefill_tokens"][log.steps["replica"] == 1] == 0).all()


def test_a_pool_grows_and_shrinks_by_hand() -> None:
    """At 2 s eight wait: three more replicas are started, and take requests from 3 s on. Once few are left
    for 4 s, all but one are let go.
    """
    rows = (*(request(i, 0.0, 10, 4) for i in range(9)), request(9, 30.0, 10, 4))
    numbers = {
        **{"kind": layout.BY_QUEUE, "least": 1, "most": 4, "interval_s": 2.0, "target": 2.0, "delay_s": 1.0},
        "stabilization_s": 4.0,
    }
    setup = together(rows, 4, 64, settings={"max_num_seqs": 1, **SYNC}, step_s=1.0)
    changes = ChangeParts(scalers=[(0, numbers, [])])
    router = RouterParts(layout.LEAST_OUTSTANDING, max_queue=0, holds=True)
    log = run(replace(setup, router=router, changes=changes, num_up=1))
    assert log.changes is not None
    events = [
        (time_s, CHANGES[change], replica)
        for time_s, change, replica in zip(
            *(log.changes[name].tolist() for name in ("time_s", "change", "replica")), strict=True
        )
    ]
    assert events[:7] == [
        (0.0, "ready", 0),
        *((2.0, "started", n) for n in (1, 2, 3)),
        *((3.0, "ready", n) for n in (1, 2, 3)),
    ]
    assert [event for _, event, _ in events[7:]].count("stopped") == 3
    # 0: 0-4, then 0 to 3 from 3 and 4 on, four at a time.
    assert log.requests["finished_at_s"].tolist() == [4.0, 7.0, 7.0, 7.0, 8.0, 11.0, 11.0, 11.0, 12.0, 34.0]


@pytest.mark.parametrize("stabilization_s", [0.0, 3.0])
def test_a_pool_follows_its_schedule_down_as_well(stabilization_s: float) -> None:
    """Two more from 10 s on, there 1 s later, and one alone from 20 s on, the last planned."""
    rows = tuple(request(i, 2.0 * i, 10, 4) for i in range(20))
    numbers = {
        **{"kind": layout.BY_SCHEDULE, "least": 1, "most": 4, "interval_s": 2.0, "delay_s": 1.0},
        "stabilization_s": stabilization_s,
    }
    setup = together(rows, 4, 64, settings=SYNC, step_s=0.125)
    changes = ChangeParts(scalers=[(0, numbers, [(10.0, 3), (20.0, 1)])])
    log = run(replace(setup, changes=changes, num_up=1))
    assert log.changes is not None
    times = {
        name: log.changes["time_s"][log.changes["change"] == CHANGES.index(name)].tolist()
        for name in ("started", "ready", "stopped")
    }
    gone_s = 20.0 + stabilization_s
    assert times == {"started": [10.0] * 2, "ready": [0.0, 11.0, 11.0], "stopped": [gone_s] * 2}


def test_requests_that_wait_at_the_router_wait_as_in_m_m_c() -> None:
    """c replicas that serve one request at a time, exponential times of arrival and service: Erlang C."""
    random = np.random.default_rng(3)
    num_requests, num_servers, load = 12_000, 4, 0.8
    arrival_s = np.cumsum(random.exponential(1 / (num_servers * load), num_requests))
    # Steps of 1/16 s: geometric answers are as good as exponential ones of mean 1 s.
    num_tokens = random.geometric(1 / 16, num_requests)
    rows = tuple(
        request(i, float(at_s), 1, int(n))
        for i, (at_s, n) in enumerate(zip(arrival_s, num_tokens, strict=True))
    )
    setup = together(rows, num_servers, 1000, settings={"max_num_seqs": 1, **SYNC}, step_s=1 / 16)
    router = RouterParts(layout.LEAST_OUTSTANDING, max_queue=0, holds=True)
    setup = replace(setup, router=router, changes=ChangeParts(), with_batches=False)
    log = run(setup, "compiled" if can_compile() else "interpreted")
    waited_s = log.requests["first_scheduled_at_s"] - log.requests["arrival_s"]
    a = num_servers * load
    terms = [a**k / np.prod(range(1, k + 1)) for k in range(num_servers + 1)]
    p_wait = terms[-1] / (1 - load) / (sum(terms[:-1]) + terms[-1] / (1 - load))
    # Geometric times of 16 steps vary less than exponential ones, by 1/16: Allen and Cunneen's correction.
    expected_s = p_wait / (num_servers * (1 - load)) * (1 + 15 / 16) / 2
    batches = waited_s.reshape(20, -1).mean(axis=1)
    error_s = batches.std(ddof=1) / len(batches) ** 0.5
    assert error_s < 0.15 * expected_s
    assert abs(waited_s.mean() - expected_s) < 3 * error_s
