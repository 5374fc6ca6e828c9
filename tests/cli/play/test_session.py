"""A session decides what a run decides, and changes are as if a run had begun with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbsim.base.errors import ConfigError, PluginError
from cbsim.cli.play.session import Session
from cbsim.core.layout import PREEMPTED_NOW
from cbsim.core.verbs import is_prefilling, schedule
from cbsim.results.run_log import RunLog
from cbsim.schedulers.chunked_prefill import ChunkedPrefillScheduler
from cbsim.schedulers.chunked_prefill import decide as decide_chunked
from cbsim.studies.core_log import stepwise_log
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_workload, run_experiment, simulate
from cbsim.testing.conformance import differences
from tests.cli.play.games import SCHEDULERS, check, check_ended, experiment, play_out, standing

RUNGS = ("static", "continuous", "chunked_prefill", "preemptive", "vllm")


def log_of(session: Session) -> RunLog:
    return stepwise_log(session.fleet.world, session.fleet.setup)


def log_of_run(run: Experiment) -> RunLog:
    log, _ = simulate(run, make_workload(run))
    return log


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(experiment(tmp_path, SCHEDULERS["preemptive"]))


@pytest.mark.parametrize("shares_prefix", [False, True], ids=["", "prefix"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_played_without_changes_it_is_the_run(scheduler: str, shares_prefix: bool, tmp_path: Path) -> None:
    played = experiment(tmp_path, SCHEDULERS[scheduler], shares_prefix=shares_prefix)
    session = Session(played)
    play_out(session)
    check_ended(session)
    run = log_of_run(played)
    assert differences(replace(log_of(session), end_s=run.end_s), run) == []


@pytest.mark.parametrize(
    "router", ["round_robin", "random", "least_outstanding", "kv_aware", "prefix_affinity"]
)
@pytest.mark.parametrize("scheduler", ["static", "vllm-async"])
def test_two_replicas_are_played_as_they_run(router: str, scheduler: str, tmp_path: Path) -> None:
    """Each serves whom it serves in a run, at the same times, also where a change came before."""
    rows = tuple((number / 3, 8 + 7 * number % 40, 4 + 5 * number % 20) for number in range(16))
    replicas = {"count": 2, "router": router}
    played = experiment(tmp_path, SCHEDULERS[scheduler], rows, replicas=replicas, shares_prefix=True)
    session = Session(played)
    session.change("scheduler.max_num_seqs=3")
    play_out(session)
    check_ended(session)
    run = log_of_run(session.experiment)
    assert differences(replace(log_of(session), end_s=run.end_s), run) == []
    num_used = len(set(run.requests["replica"].tolist()))
    assert num_used == (1 if router == "prefix_affinity" else 2), "one prefix, one replica"


def test_another_scheduler_comes_to_both_replicas_at_once(tmp_path: Path) -> None:
    """Steps under way end on both, then all queue; to take it back shows what was there."""
    rows = tuple((number / 3, 8 + 7 * number % 40, 4 + 5 * number % 20) for number in range(16))
    session = Session(experiment(tmp_path, SCHEDULERS["vllm"], rows, replicas={"count": 2}))
    for _ in range(9):
        session.step()
    session.show_next()
    assert session.replica.number == 1
    before = [standing(replica) for replica in session.fleet.replicas]
    session.use_scheduler("chunked_prefill")
    for replica in session.fleet.replicas:
        assert (replica.now_s, len(replica.stepper.under_way)) == (session.fleet.now_s, 0)
        check(replica)
    session.undo()
    assert [standing(replica) for replica in session.fleet.replicas] == before
    session.use_scheduler("preemptive")
    play_out(session)
    check_ended(session)


@pytest.mark.parametrize(
    "setting",
    [
        "scheduler.max_tokens_per_step=72",
        "scheduler.max_num_seqs=1",
        "scheduler.chunk_size=5",
        "kv_cache.num_blocks=17",
        "kv_cache.num_blocks=50",
    ],
)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_change_before_the_first_step_is_as_if_it_had_begun_so(
    scheduler: str, setting: str, tmp_path: Path
) -> None:
    session = Session(experiment(tmp_path, SCHEDULERS[scheduler]))
    section, _, name = setting.partition("=")[0].partition(".")
    if section == "scheduler" and not hasattr(session.experiment.scheduler, name):
        with pytest.raises(ConfigError, match=f"{name}: unknown key"):
            session.change(setting)
        return
    session.change(setting)
    play_out(session)
    run = log_of_run(session.experiment)
    assert differences(replace(log_of(session), end_s=run.end_s), run) == []


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_from_any_scheduler_to_any_other_nobody_is_lost(scheduler: str, rung: str, tmp_path: Path) -> None:
    session = Session(experiment(tmp_path, SCHEDULERS[scheduler]))
    for _ in range(4):
        session.step()
    session.use_scheduler(rung)
    play_out(session)
    check_ended(session)


def test_its_figures_are_those_of_a_run(session: Session) -> None:
    play_out(session)
    summary = run_experiment(session.experiment).summary
    score = session.fleet.score
    assert score.mean_ttft_s == pytest.approx(summary["ttft_s"]["mean"], rel=1e-12)
    assert score.mean_tpot_s == pytest.approx(summary["tpot_s"]["mean"], rel=1e-12)
    assert session.replica.log.num_preemptions == summary["num_preemptions"] > 0


def test_limits_change_for_those_who_run(session: Session) -> None:
    while len(session.replica.stepper.running) < 3:
        session.step()
    running = list(session.replica.stepper.running)
    said = session.change("scheduler.max_num_seqs=1")
    assert said == "scheduler.max_num_seqs 4 -> 1"
    assert session.replica.stepper.running == running
    assert session.replica.log.num_preemptions == 0
    session.step()
    assert session.replica.head_reason is not None
    assert session.replica.head_reason[1] == "no slot: 3 run, max_num_seqs is 1"


def test_another_scheduler_preempts_all_and_serves_them_again(session: Session) -> None:
    while len(session.replica.stepper.running) < 3:
        session.step()
    running = [request.request_id for request in session.replica.stepper.running]
    assert session.use_scheduler("vllm") == "scheduler preemptive -> vllm"
    assert session.replica.stepper.running == []
    assert session.replica.stepper.num_blocks_used == 0
    assert [request.request_id for request in session.replica.stepper.waiting(session.replica.now_s)][
        :3
    ] == running
    assert session.replica.log.num_preemptions == 3
    play_out(session)
    check_ended(session)


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_what_is_counted_goes_on_under_another_scheduler(scheduler: str, rung: str, tmp_path: Path) -> None:
    session = Session(experiment(tmp_path, SCHEDULERS[scheduler], shares_prefix=True))
    for _ in range(9):
        session.step()
    before = {
        name: getattr(session.replica.stepper.own, name)
        for name in ("num_steps", "last_end_s", "num_tokens_queried", "num_tokens_hit", "num_padding_tokens")
    }
    session.use_scheduler(rung)
    for name, count in before.items():
        assert getattr(session.replica.stepper.own, name) >= count
    play_out(session)
    log = log_of(session)
    assert log.steps["step"].tolist() == list(range(session.num_steps))
    assert (log.events["event"] == PREEMPTED_NOW).sum() == session.replica.log.num_preemptions
    assert log.requests["num_preemptions"].sum() == session.replica.log.num_preemptions
    assert sum(int(count.sum()) for _, count in log.gaps) == (log.requests["num_output_tokens"] - 1).sum()
    assert (np.diff(log.steps["start_s"]) > 0).all()


def test_an_answer_begun_elsewhere_costs_a_static_batch_no_more_than_decodes(session: Session) -> None:
    while session.fleet.score.mean_tpot_s is None:
        session.step()
    session.use_scheduler("static")
    assert any(request.num_generated_tokens for request in session.replica.live)
    session.step()
    while session.replica.stepper.running:
        session.step()
        assert session.replica.last_step is not None
        assert session.replica.last_step.end_s - session.replica.last_step.start_s == 1.0


def test_asynchronous_steps_end_before_another_scheduler_begins(tmp_path: Path) -> None:
    session = Session(experiment(tmp_path, SCHEDULERS["vllm-async"]))
    for _ in range(3):
        session.step()
    assert len(session.replica.stepper.under_way) == 1
    before_s = session.replica.now_s
    session.use_scheduler("preemptive")
    assert not session.replica.stepper.under_way
    assert session.replica.now_s > before_s
    session.step()
    assert len(session.replica.stepper.under_way) == 1  # the new scheduler has taken that over
    session.change("scheduler.async_scheduling=false")
    session.step()
    assert not session.replica.stepper.under_way
    play_out(session)
    check_ended(session)


def test_blocks_in_use_stay(session: Session) -> None:
    for _ in range(4):
        session.step()
    num_used = session.replica.stepper.num_blocks_used
    assert num_used > 17
    before = standing(session.replica)
    with pytest.raises(ConfigError, match=f"got 17, but {num_used} blocks are in use"):
        session.change("kv_cache.num_blocks=17")
    assert standing(session.replica) == before
    session.change(f"kv_cache.num_blocks={num_used}")
    assert session.replica.stepper.own.num_free == 0
    play_out(session)
    check_ended(session)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("kv_cache.num_blocks=10", "r0 could never be served: needs 13 KV blocks, the cache has 10"),
        ("kv_cache.num_blocks=1000001", "kv_cache.num_blocks: got 1000001; cbsim play has 1000000 at most"),
        ("scheduler.max_tokens_per_step=0", "scheduler.max_tokens_per_step: got 0"),
        ("scheduler.max_num_seq=3", "scheduler.max_num_seq: unknown key; did you mean 'max_num_seqs'?"),
        ("kv_cache.block_size=8", "kv_cache.block_size: can't change while it runs"),
        ("model=llama-3-8b", "model.name: can't change while it runs"),
        ("nonsense", "got 'nonsense'; expected KEY=VALUE"),
    ],
)
def test_what_can_not_be_is_refused_and_nothing_has_changed(
    session: Session, setting: str, problem: str
) -> None:
    session.step()
    before = standing(session.replica)
    with pytest.raises(ConfigError) as raised:
        session.change(setting)
    assert problem in raised.value.problems[0]
    assert standing(session.replica) == before
    assert session.history == []


def test_schedulers_that_split_nothing_get_what_they_need(session: Session) -> None:
    session.step()
    assert session.use_scheduler("continuous") == (
        "scheduler preemptive -> continuous; "
        "max_tokens_per_step raised to 48, the longest prompt: continuous splits none"
    )
    assert session.experiment.scheduler.model_dump()["max_tokens_per_step"] == 48
    assert session.use_scheduler("static") == (
        "scheduler continuous -> static; max_model_len 62, the longest request: so much is reserved for each "
        "slot"
    )
    assert session.experiment.scheduler.model_dump()["max_model_len"] == 62
    assert session.use_scheduler("static") == "the scheduler is static already"
    with pytest.raises(ConfigError, match="unknown scheduler 'vlm'; did you mean 'vllm'"):
        session.use_scheduler("vlm")


def test_added_requests_arrive_now_and_under_names_of_their_own(session: Session) -> None:
    for _ in range(3):
        session.step()
    assert session.add(20, 5, priority=-1) == "added-1"
    assert session.add(20, 5) == "added-2"
    added = [request for request in session.replica.present if request.request_id.startswith("added")]
    assert [request.arrival_s for request in added] == [session.replica.now_s] * 2
    assert session.num_requests == 8
    session.add(5000, 1)
    assert session.fleet.score.num_rejected == 1
    with pytest.raises(ConfigError, match="output tokens: got 0"):
        session.add(5, 0)
    play_out(session)
    check_ended(session)


def test_undo_takes_back_one_move_after_the_other(session: Session) -> None:
    seen = [standing(session.replica)]

    def note() -> None:
        seen.append(standing(session.replica))

    for _ in range(5):
        session.step()
        note()
    session.change("scheduler.chunk_size=4")
    note()
    session.step()
    note()
    session.use_scheduler("continuous")
    note()
    session.add(10, 3)
    note()
    session.step()
    for before in reversed(seen):
        assert session.undo()
        assert standing(session.replica) == before
    assert not session.undo()
    assert session.history == []
    assert session.additions == []


def test_a_restart_begins_with_all_that_stands_now(session: Session) -> None:
    for _ in range(6):
        session.step()
    session.change("scheduler.max_tokens_per_step=40")
    session.add(16, 4)
    session.use_scheduler("chunked_prefill")
    at_s = session.additions[0].arrival_s
    session.restart()
    assert session.num_steps == 0
    assert session.experiment.scheduler.type == "chunked_prefill"
    assert [addition.arrival_s for addition in session.additions] == [at_s]
    assert [line.partition(": ")[2] for line in session.history] == [
        "scheduler.max_tokens_per_step 24 -> 40",
        "added added-1: 16 + 4 tokens",
        "scheduler preemptive -> chunked_prefill",
        "begun again",
    ]
    assert not session.undo()
    play_out(session)
    check_ended(session)


def decide_until_a_decode(self: Any, step: Any) -> None:
    """Works until somebody decodes."""
    running = [self.requests[index] for index in self.running[: self.own.num_running]]
    decodes = [request for request in running if not is_prefilling(request)]
    decide_chunked(self, step)
    if decodes:
        raise ZeroDivisionError("no idea")


def decide_too_much(self: Any, step: Any) -> None:
    """Gives the first who decodes two tokens."""
    for place in range(self.own.num_running):
        request = self.requests[self.running[place]]
        if not is_prefilling(request):
            schedule(self, step, request, 2)
            return
    decide_chunked(self, step)


class Broken(ChunkedPrefillScheduler):
    decide = decide_until_a_decode


class Greedy(ChunkedPrefillScheduler):
    decide = decide_too_much


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Broken", r"scheduler Broken failed: ZeroDivisionError: no idea \(test_session.py:"),
        ("Greedy", "Greedy.* schedules 2 tokens of request r1, which has 1 left"),
    ],
)
def test_a_scheduler_that_fails_is_named_and_what_was_played_stays(
    name: str, problem: str, session: Session
) -> None:
    session.step()
    assert session.use_scheduler(f"{__name__}:{name}") == f"scheduler preemptive -> {__name__}:{name}"
    while all(is_prefilling(request) for request in session.replica.stepper.running):
        session.step()
    before = standing(session.replica)
    with pytest.raises(PluginError, match=problem):
        session.step()
    assert standing(session.replica) == before
    session.use_scheduler("chunked_prefill")
    play_out(session)
    check_ended(session)


def test_all_that_can_not_be_played_is_told_at_once(tmp_path: Path) -> None:
    wrong = experiment(tmp_path, SCHEDULERS["vllm"], replicas={"count": 9}, stop_at_s=5.0)
    with pytest.raises(ConfigError) as raised:
        Session(wrong)
    assert raised.value.problems == (
        "replicas.count: got 9; cbsim play has 1 to 8 replicas",
        "stop_at_s: got 5; cbsim play goes on until every request has ended: null",
    )
