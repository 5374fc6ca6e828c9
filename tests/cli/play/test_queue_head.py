"""Why the head of the queue waits: each reason on a case made for it, and all against the step's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cbsim.cli.play.replica import Replica
from cbsim.cli.play.session import Session
from cbsim.core import layout
from tests.cli.play.games import SCHEDULERS, experiment

TWO = ((0.0, 16, 8), (0.0, 16, 8))


def reason_after_a_step(
    folder: Path, scheduler: dict[str, Any], rows: Any = TWO, num_steps: int = 1, **settings: Any
) -> str:
    session = Session(experiment(folder, scheduler, rows, **settings))
    for _ in range(num_steps):
        session.step()
    assert session.replica.head_reason is not None
    return session.replica.head_reason[1]


@pytest.mark.parametrize(
    ("scheduler", "num_blocks", "reason"),
    [
        ({"type": "vllm", "max_num_seqs": 1}, 32, "no slot: 1 run, max_num_seqs is 1"),
        (
            {"type": "preemptive", "max_tokens_per_step": 8},
            32,
            "no budget: all 8 tokens are taken",
        ),
        ({"type": "preemptive"}, 7, "no KV blocks: 4 needed, 3 free"),
        ({"type": "preemptive", "watermark": 0.3}, 9, "no KV blocks: 7 needed, 5 free"),
        ({"type": "chunked_prefill"}, 11, "no KV blocks: prompt and answer take 6, 5 free"),
        (
            {"type": "continuous", "max_tokens_per_step": 20},
            32,
            "no budget: prompt of 16 tokens, 4 left, and none is split",
        ),
        (
            {"type": "vllm", "max_tokens_per_step": 20, "enable_chunked_prefill": False},
            32,
            "no budget: its prompt must stay whole, 4 tokens left",
        ),
        (
            {"type": "static", "max_num_seqs": 1},
            32,
            "the batch of 1 runs until its last request has ended",
        ),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else None,
)
def test_each_reason(scheduler: dict[str, Any], num_blocks: int, reason: str, tmp_path: Path) -> None:
    kv_cache = {"num_blocks": num_blocks, "block_size": 4}
    if "async" not in scheduler and scheduler["type"] == "vllm":
        scheduler = {**scheduler, "async_scheduling": False}
    assert reason_after_a_step(tmp_path, scheduler, kv_cache=kv_cache) == reason


def test_a_step_that_preempts(tmp_path: Path) -> None:
    # 16 tokens fill 4 blocks; with the 17th of both, 10 are needed, and there are 9.
    kv_cache = {"num_blocks": 9, "block_size": 4}
    assert (
        reason_after_a_step(tmp_path, {"type": "preemptive"}, num_steps=2, kv_cache=kv_cache)
        == "a step that preempts admits nobody"
    )


def test_a_batch_that_fills_up(tmp_path: Path) -> None:
    scheduler = {"type": "static", "max_num_seqs": 2, "max_model_len": 32, "batch_timeout_s": 5.0}
    # The first of two replicas gets two requests, and begins; the other one gets one, and waits for more.
    session = Session(experiment(tmp_path, scheduler, (*TWO, (0.0, 16, 8)), replicas={"count": 2}))
    session.step()
    other = session.fleet.replicas[1]
    assert other.head_reason is not None
    assert other.head_reason[1] == "the batch fills up: 1 of 2, until 5.00 s"
    while other.last_step is None:
        assert session.step()
    assert other.last_step.start_s == 5.0


@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name != "static"])
def test_it_is_the_reason_that_the_step_gives(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = Replica.decided
    told = set()

    def note_and_compare(replica: Replica, now: float) -> None:
        note(replica, now)
        if replica.head_reason is None or not replica.stepper.under_way:
            return
        reason, step = replica.head_reason[1], replica.stepper.under_way[-1]
        if step.num_waiting and step.waiting_for != layout.NOBODY_WAITS:
            told.add(step.waiting_for)
            is_kv, is_slot = reason.startswith("no KV"), reason.startswith("no slot")
            assert is_kv == (step.waiting_for == layout.KV_BLOCKS), reason
            assert is_slot == (step.waiting_for == layout.SLOT), reason

    monkeypatch.setattr(Replica, "decided", note_and_compare)
    rows = tuple((number / 2, 8 + 7 * number % 40, 4 + 5 * number % 20) for number in range(12))
    session = Session(experiment(tmp_path, SCHEDULERS[scheduler], rows))
    while session.step():
        pass
    assert told
