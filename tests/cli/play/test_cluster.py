"""Pools played together: as they run, with all that is between them on the screen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cbsim.base.errors import ConfigError
from cbsim.cli.play.screen import Status, draw
from cbsim.cli.play.session import Session
from cbsim.studies.core_log import stepwise_log
from cbsim.studies.run import make_workload, simulate
from cbsim.testing.conformance import differences
from tests.cli.play.games import SCHEDULERS, check, experiment, standing

ROWS = tuple((number * 1.5, 8 + 7 * number % 40, 4 + 5 * number % 20) for number in range(16))
POOLS = [{"name": "prompts", "role": "prefill"}, {"name": "answers", "role": "decode"}]
SLOW = {"bandwidth_gb_s": 1e-6, "latency_s": 0.25}
CLUSTERS: dict[str, dict[str, Any]] = {
    "slow": {"pools": POOLS, "link": SLOW},
    "layered": {"pools": [POOLS[0], {**POOLS[1], "count": 2}], "link": {**SLOW, "layer_by_layer": True}},
    "pairs": {
        "pools": [{**POOLS[0], "count": 2}, {**POOLS[1], "count": 2}],
        "router": "random",
        "decode_router": "least_kv",
        "decode_chosen_at": "arrival",
    },
    "given back": {"pools": POOLS, "preempted": "give_back"},
    "ranks": {"pools": [POOLS[0], {**POOLS[1], "parallel": {"data": 2}}], "link": SLOW},
    "both": {
        "pools": [{"name": "a"}, {"name": "b", "scheduler": {"max_num_seqs": 2}}],
        "router": {"type": "kv_aware", "refresh_s": 3.0},
    },
    "changing": {
        "pools": [{"name": "a", "count": 1, "autoscale": {"type": "queue", "min": 1, "max": 2, "target": 1}}],
        "faults": [{"pool": "a", "at_s": 9.0, "repair_s": 4.0}],
        "clients": {"timeout_s": 60.0},
    },
}


def session_of(folder: Path, name: str, scheduler: str = "vllm", **settings: Any) -> Session:
    if name == "ranks":
        settings["model"] = "mixtral-8x7b"
    return Session(experiment(folder, SCHEDULERS[scheduler], ROWS, cluster=CLUSTERS[name], **settings))


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [*((name, "vllm-async") for name in CLUSTERS), ("slow", "preemptive"), ("given back", "preemptive")],
)
def test_pools_are_played_as_they_run(name: str, scheduler: str, tmp_path: Path) -> None:
    session = session_of(tmp_path, name, scheduler, shares_prefix=True)
    while session.step():
        for replica in session.fleet.replicas:
            check(replica)
    assert session.fleet.is_over
    assert not any(replica.stepper.num_blocks_used for replica in session.fleet.replicas)
    run, _ = simulate(session.experiment, make_workload(session.experiment))
    played = stepwise_log(session.fleet.world, session.fleet.setup)
    assert differences(replace(played, end_s=run.end_s), run) == []


SHOWN = """\
cbsim play  experiment  5 vllm  6 steps  7.5000 s  1 under way  paused
t max_tokens_per_step 24  c chunk_size 0  n max_num_seqs 4  k blocks 16
tab prompts 0: 1 run 0 wait 1 kept 88%    answers 1: 1 run 0 wait 1 fetch 100%
─ link: 1 under way 8.19e-06 GB/s a replica ────────────────────────────────────
B r1 prompts 0 → answers 1 ██░░░░░░░░░ 8.00/40.0 KiB, 8.19e-06 GB/s, 4.00 s left

─ ▸ prompts 0: batch of step 2 1.50 s ───────── ─ queue: 0 ─────────────────────
budget 8/24 ▓▓▓▓▓░░░░░░░░░ 0 decodes, 8 prefill nobody will come
B r1 chunk    +8 █████████████▓▓▓│▓░  10 blocks
C r2 in step +16 ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓│░░ 16/16  0/2




─ KV cache 14/16 blocks of 4 tokens ─────────── ─ events ───────────────────────
 0 C C C C B B B B B B B B B B · ·                 0 A r0 admitted
A filled  · free                                   0 B r1 admitted
                                                   0 A r0 handed over
                                                   2 B r1 handed over
                                                   2 A r0 KV was fetched
                                                   3 C r2 admitted
0/3 finished  TTFT 4.50 s  TPOT -  0 preemptions

s step  r run  u undo  1-5 scheduler  tcnk limits  a add  w save  ? help  q quit"""
ANSWERS = """\
─ ▸ answers 1: batch of step 2 1.00 s ───────── ─ queue: 0 fetching KV: 1 ──────
budget 1/24 █░░░░░░░░░░░░░ 1 decodes, 0 prefill B r1 40+4 KV 20%
A r0 decode  +1 ██████████████│██▓░░ 16/16  4/6"""


def text_of(session: Session, width: int, height: int) -> str:
    return "\n".join(line.plain.rstrip() for line in draw(session, Status(), width, height))


def hand_over(folder: Path) -> Session:
    """A link of a token in 1/8 s."""
    rows, kv_cache = ((0.0, 16, 6), (0.0, 40, 4), (3.0, 16, 2)), {"num_blocks": 16, "block_size": 4}
    cluster = {"pools": POOLS, "link": {"bandwidth_gb_s": 8.192e-6, "latency_s": 0}}
    return Session(experiment(folder, SCHEDULERS["vllm"], rows, cluster=cluster, kv_cache=kv_cache))


def test_a_hand_over_worked_by_hand(tmp_path: Path) -> None:
    # Step 0 of the prompts: r0 and 8 tokens of r1, in 1 + 24/16 s; r0 goes over: 16 KiB take 2 s, and it
    # decodes from 4.5 s on, a second a token. Step 1: 24 tokens of r1, 2.5 s. Step 2: its last 8, to 6.5 s.
    # r2 came at 3 s: its 4 blocks are there when those of r0 were fetched. At 6.5 s r1 finds its blocks on
    # the other side: of its 40 KiB the link brings 8 in a second.
    session = hand_over(tmp_path)
    session.step()
    session.step()
    session.step()
    reason = session.replica.head_reason
    assert reason is not None
    assert reason[1] == "no KV blocks: 4 needed, 2 free, 4 kept until fetched"
    for _ in range(3):
        session.step()
    assert text_of(session, 80, 24) == SHOWN
    session.show_next()
    assert ANSWERS in text_of(session, 80, 24)
    shown = text_of(session, 160, 40)
    session.step()
    session.undo()
    assert text_of(session, 160, 40) == shown
    beside = next(line for line in shown.splitlines() if "batch of" in line)
    assert "prompts 0: batch of step 2 1.50 s" in beside
    assert "answers 1: batch of step 2 1.00 s" in beside


@pytest.mark.parametrize(("width", "height"), [(60, 18), (80, 24), (120, 40), (200, 50)])
def test_every_line_has_the_width_of_the_screen(width: int, height: int, tmp_path: Path) -> None:
    session = session_of(tmp_path, "layered")
    while not session.fleet.transfers:
        session.step()
    lines = draw(session, Status(), width, height)
    assert len(lines) == height
    assert {line.cell_len for line in lines} == {width}
    assert f"layer {session.fleet.transfers[0].layer}/2" in "\n".join(line.plain for line in lines)


def test_limits_change_in_the_pool_that_is_shown(tmp_path: Path) -> None:
    session = session_of(tmp_path, "slow")
    session.show_next()
    assert session.change("scheduler.max_num_seqs=1") == "answers: scheduler.max_num_seqs 4 -> 1"
    assert session.change("kv_cache.num_blocks=40") == "answers: kv_cache.num_blocks 32 -> 40"
    prompts, answers = session.fleet.replicas
    assert (prompts.stepper.own.num_blocks, answers.stepper.own.num_blocks) == (32, 40)
    before = [standing(replica) for replica in session.fleet.replicas]
    with pytest.raises(ConfigError, match=r"scheduler.type: can't change between prefill and decode; name"):
        session.use_scheduler("preemptive")
    with pytest.raises(ConfigError, match=r"cluster.link.latency_s: can't change while it runs"):
        session.change("cluster.link.latency_s=3")
    assert [standing(replica) for replica in session.fleet.replicas] == before
    session.add(12, 3)
    while session.step():
        for replica in session.fleet.replicas:
            check(replica)
    assert session.fleet.is_over
    run, _ = simulate(session.experiment, make_workload(session.experiment))
    assert session.fleet.score.num_finished == len(run.requests["state"]) + 1


def test_a_scheduler_can_change_in_pools_that_serve_whole(tmp_path: Path) -> None:
    session = session_of(tmp_path, "both")
    for _ in range(9):
        session.step()
    session.use_scheduler("vllm")
    session.use_scheduler("preemptive")
    while session.step():
        for replica in session.fleet.replicas:
            check(replica)
    assert session.fleet.score.num_finished == len(ROWS)
