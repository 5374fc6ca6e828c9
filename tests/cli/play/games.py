"""Small experiments to play, and what must hold of a replica between any two steps."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cbsim.cli.play.replica import Replica, score_of
from cbsim.cli.play.session import Session
from cbsim.core.pool import blocks_for
from cbsim.studies.experiment import Experiment
from cbsim.workload.request import Request, RequestState

ROWS = (
    (0.0, 40, 10),
    (0.0, 12, 24),
    (1.0, 48, 14),
    (2.5, 24, 18),
    (3.0, 8, 30),
    (9.0, 30, 1),
)
SCHEDULERS: dict[str, dict[str, Any]] = {
    "static": {"type": "static", "max_num_seqs": 2, "max_model_len": 64, "batch_timeout_s": 2.0},
    "continuous": {"type": "continuous", "max_num_seqs": 4, "max_tokens_per_step": 64},
    "chunked_prefill": {
        "type": "chunked_prefill",
        "max_num_seqs": 4,
        "max_tokens_per_step": 24,
        "chunk_size": 16,
    },
    "preemptive": {"type": "preemptive", "max_num_seqs": 4, "max_tokens_per_step": 24, "chunk_size": 16},
    "swap": {
        "type": "preemptive",
        "max_num_seqs": 4,
        "max_tokens_per_step": 24,
        "chunk_size": 16,
        "preemption": "swap",
        "policy": "priority",
    },
    "vllm": {"type": "vllm", "max_num_seqs": 4, "max_tokens_per_step": 24, "async_scheduling": False},
    "vllm-async": {"type": "vllm", "max_num_seqs": 4, "max_tokens_per_step": 24, "watermark": 0.1},
}
"""Settings by what they show."""


def experiment(
    folder: Path,
    scheduler: Mapping[str, Any],
    rows: Sequence[tuple[float, int, int]] = ROWS,
    *,
    shares_prefix: bool = False,
    **settings: Any,
) -> Experiment:
    """`rows` are `(arrival_s, prompt tokens, output tokens)`; a step takes a second, a prefill token 1/16."""
    lines = []
    for number, (arrival_s, num_prompt_tokens, num_output_tokens) in enumerate(rows):
        row = {
            "request_id": f"r{number}",
            "arrival_s": arrival_s,
            "num_prompt_tokens": num_prompt_tokens,
            "num_output_tokens": num_output_tokens,
            "priority": number % 3,
        }
        if shares_prefix:
            parts = (("shared", min(num_prompt_tokens, 16)), (f"own{number}", num_prompt_tokens - 16))
            row["prompt"] = [part for part in parts if part[1] > 0]
        lines.append(json.dumps(row))
    path = folder / "requests.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    mapping = {
        "model": "tiny",
        "engine": "reference",
        "workload": {"type": "trace", "path": str(path)},
        "scheduler": dict(scheduler),
        "kv_cache": {"num_blocks": 32, "block_size": 4, "prefix_caching": shares_prefix},
        "cost_model": {"type": "constant", "step_s": 1.0, "per_prefill_token_s": 0.0625},
        **settings,
    }
    return Experiment.from_mapping(mapping)


def play_out(session: Session) -> None:
    """To the end."""
    while session.step():
        for replica in session.fleet.replicas:
            check(replica)
    assert session.fleet.is_over


def standing(replica: Replica) -> object:
    """All that a player can see of a replica."""
    return (
        replica.now_s,
        replica.stepper.own.num_blocks,
        [(event.time_s, event.step, event.what, event.detail) for event in replica.log.events],
        [_figures(request) for request in replica.present],
        [request.request_id for request in replica.stepper.running],
        [request.request_id for request in replica.stepper.waiting(replica.now_s)],
        score_of(replica.stepper.world.requests, replica.stepper.world.records.planned),
        replica.experiment,
    )


def check(replica: Replica) -> None:
    """Blocks, places and tokens are all there, once."""
    stepper = replica.stepper
    stepper.check_integrity()
    here = [request for request in stepper.world.requests if request.replica == replica.number]
    assert sum(request.num_blocks for request in here) == sum(r.num_blocks for r in replica.present)
    running, waiting = stepper.running, replica.waiting
    assert len(running) == stepper.own.num_running
    assert len(waiting) == stepper.own.num_waiting
    assert stepper.head(replica.now_s) is (waiting[0] if waiting else None)
    places = Counter(request.request_id for request in (*running, *waiting, *replica.holding))
    assert places == Counter(request.request_id for request in replica.live)
    assert stepper.num_outstanding == len(replica.live)
    for request in running:
        assert request.state == RequestState.RUNNING
        num_written = min(request.num_computed_tokens, request.num_known_tokens)
        assert request.num_blocks >= blocks_for(stepper.records, num_written)
        assert len(set(stepper.blocks_of(request))) == request.num_blocks
    for request in waiting:
        assert request.num_blocks == 0
        assert request.num_computed_tokens == 0 or request.num_swapped_blocks
    num_swapped = sum(request.num_swapped_blocks for request in here)
    assert stepper.own.num_swapped_blocks == num_swapped
    for request in replica.live:
        assert 0 <= request.num_generated_tokens < request.num_output_tokens


def check_ended(session: Session) -> None:
    """Everybody finished or was rejected, once, with every token; the blocks are free."""
    replicas = session.fleet.replicas
    events = [event for replica in replicas for event in replica.log.events]
    ends = Counter(
        event.request.request_id
        for event in events
        if event.request is not None and event.what in ("finished", "rejected")
    )
    assert ends == Counter(request.request_id for request in session.requests())
    finished = {event.request for event in events if event.what == "finished"}
    assert all(r is not None and r.num_generated_tokens == r.num_output_tokens for r in finished)
    assert session.fleet.score.num_finished == len(finished)
    assert not any(replica.stepper.num_blocks_used or replica.present for replica in replicas)


def _figures(request: Request) -> tuple[object, ...]:
    return (
        request.request_id,
        RequestState(request.state),
        request.num_computed_tokens,
        request.num_generated_tokens,
        request.num_preemptions,
        request.num_blocks,
    )
