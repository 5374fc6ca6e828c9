"""The observer `memory`: blocks worked by hand, against the record, and blocks that never come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import cbsim
from cbsim.base.errors import PluginError
from cbsim.core.pool import release
from cbsim.observers.audience import Audience
from cbsim.observers.memory_observer import MemoryObserver
from cbsim.schedulers.vllm import VllmScheduler
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_cost_model
from cbsim.studies.setup import setup_of
from cbsim.studies.simulation import Told, simulate_core
from tests.observers.test_hooks import KINDS, crowd
from tests.observers.watched import row, setting, watch
from tests.simulation import ListedWorkload


def columns(table: dict[str, Any], *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].tolist() for name in names), strict=True))


def test_blocks_of_four_tokens_by_hand() -> None:
    """a: 7 prompt tokens, 2 blocks; its 9th token takes a third, which b had. Then b from the start."""
    memory = MemoryObserver()
    watch(setting(num_blocks=4), [row("a", 0.0, 7, 4), row("b", 0.5, 7, 4)], memory)
    figures = ("time_s", "step", "kv_blocks_used", "kv_blocks_free", "num_kv_tokens", "num_empty_slots")
    assert columns(memory.blocks, *figures) == [
        (0.0, 0, 2, 2, 7, 1),
        (1.0, 1, 4, 0, 8 + 7, 1),
        (2.0, 2, 3, 1, 9, 3),
        (3.0, 3, 3, 1, 10, 2),
        (4.0, 3, 0, 4, 0, 0),
        (4.0, 4, 2, 2, 8, 0),
        (5.0, 5, 3, 1, 9, 3),
        (6.0, 6, 3, 1, 10, 2),
        (7.0, 6, 0, 4, 0, 0),
        (7.0, -1, 0, 4, 0, 0),
    ]
    assert memory.blocks["fragmentation"].tolist() == [1 / 8, 1 / 16, 1 / 4, 1 / 6, 0, 0, 1 / 4, 1 / 6, 0, 0]
    assert columns(memory.requests, "time_s", "step", "request_id", "num_blocks") == [
        (0.0, 0, "a", 2),
        (1.0, 1, "b", 2),
        (2.0, 2, "a", 3),
        (2.0, 2, "b", 0),
        (4.0, 3, "a", 0),
        (4.0, 4, "b", 2),
        (5.0, 5, "b", 3),
        (7.0, 6, "b", 0),
    ]


def test_a_shared_prefix_is_there_once_and_its_content_outlives_its_holders() -> None:
    """Two blocks of eight common tokens, found by b while a runs, and again by c when nobody does."""
    shared = {"prompt": (("s", 8), ("own", 2))}
    rows = [row("a", 0.0, 10, 4, **shared), row("b", 1.5, 10, 2, prompt=(("s", 8), ("b", 2)))]
    rows.append(row("c", 50.0, 10, 1, prompt=(("s", 8), ("c", 2))))
    memory = MemoryObserver()
    mapping = setting(num_blocks=20)
    mapping["kv_cache"]["prefix_caching"] = True
    log = watch(mapping, rows, memory)
    figures = ("time_s", "kv_blocks_used", "kv_blocks_cached", "num_shares", "num_kv_tokens")
    assert columns(memory.blocks, *figures)[:3] == [
        (0.0, 3, 0, 0, 10),
        (1.0, 3, 0, 0, 11),
        (2.0, 4, 0, 2, 12 + 10 - 8),
    ]
    last_but_two = {name: column[-3].item() for name, column in memory.blocks.items()}
    assert last_but_two["time_s"] == 50.0
    assert (last_but_two["kv_blocks_used"], last_but_two["num_shares"]) == (3, 0)
    assert log.requests["num_cached_tokens"].tolist() == [0, 8, 8]
    blocks = memory.blocks
    total = blocks["kv_blocks_used"] + blocks["kv_blocks_cached"] + blocks["kv_blocks_free"]
    assert (total == 20).all()
    # Of a's 13 tokens three blocks are full, of b's 11 and c's 10 the two shared ones.
    assert blocks["kv_blocks_cached"][-1] == 3
    assert (blocks["num_empty_slots"] >= 0).all()


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_seen_is_what_the_record_says(kind: str, is_async: bool) -> None:
    memory = MemoryObserver()
    mapping = setting(
        num_blocks=12, replicas={"count": 2}, scheduler={"type": kind, "async_scheduling": is_async}
    )
    if kind == "static":
        mapping["scheduler"]["max_model_len"] = 24
    log = watch(mapping, crowd(60), memory)
    blocks, steps = memory.blocks, log.steps
    for replica in range(2):
        own = (blocks["replica"] == replica) & (blocks["step"] >= 0)
        # The first look at each step is the one right after it was decided.
        _, first = np.unique(blocks["step"][own], return_index=True)
        recorded = steps["replica"] == replica
        for seen, name in (
            ("kv_blocks_used", "kv_blocks_used"),
            ("num_kv_tokens", "num_kv_tokens"),
            ("num_running", "num_running"),
            ("time_s", "scheduled_at_s"),
        ):
            assert blocks[seen][own][first].tolist() == steps[name][recorded].tolist(), seen
    # Whatever a request was given it has given back, and in between the changes add up.
    held: dict[str, int] = {}
    for name, num_blocks in columns(memory.requests, "request_id", "num_blocks"):
        held[name] = num_blocks
    assert set(held.values()) == {0}
    assert len(held) == (log.requests["num_generated_tokens"] > 0).sum()


def test_at_any_look_the_requests_blocks_add_up_to_those_used() -> None:
    memory = MemoryObserver()
    watch(setting(num_blocks=12), crowd(60), memory)
    changes = columns(memory.requests, "time_s", "step", "request_id", "num_blocks")
    held: dict[str, int] = {}
    for time_s, step, used in columns(memory.blocks, "time_s", "step", "kv_blocks_used"):
        while changes and changes[0][:2] == (time_s, step):
            held[changes[0][2]] = changes[0][3]
            changes.pop(0)
        assert sum(held.values()) == used
    assert not changes


def test_every_third_step_and_no_requests() -> None:
    every, third = MemoryObserver(), MemoryObserver(every=3, by_request=False)
    watch(setting(num_blocks=12), crowd(), every, third)
    steps = sorted(set(third.blocks["step"].tolist()) - {-1})
    assert steps == sorted({step for step in every.blocks["step"].tolist() if step % 3 == 0} - {-1})
    assert len(third.requests["num_blocks"]) == 0
    assert set(third.files()) == {"memory.parquet"}


def test_tables_lie_in_the_run_folder(tmp_path: Path) -> None:
    settings = {
        "workload": {"type": "trace", "path": "azure-like.csv", "limit": 20, "rate_scale": 20},
        "scheduler": "vllm",
        "observers": ["memory"],
    }
    memory = cbsim.run(settings, out=tmp_path / "run").observers[0]
    assert isinstance(memory, MemoryObserver)
    for name, table in (("memory", memory.blocks), ("memory_requests", memory.requests)):
        written = pq.read_table(tmp_path / "run" / f"{name}.parquet")
        assert written.column_names == list(table)
        assert written.num_rows == len(table["time_s"]) > 20
        assert written["time_s"].to_pylist() == table["time_s"].tolist()


def keep_a_block(self: Any, request: Any) -> None:
    """Keep a block of every other request."""
    if request.index % 2:
        request.num_blocks -= 1
    release(self, request)


def keep_all_of_the_first(self: Any, request: Any) -> None:
    """Keep all blocks of the first request."""
    if request.index:
        release(self, request)


class Leaky(VllmScheduler):
    left = keep_a_block


class Hoarding(VllmScheduler):
    left = keep_all_of_the_first


@pytest.mark.parametrize(
    ("rung", "problem"),
    [
        (Leaky, "replica 0: the KV blocks of Leaky don't add up: 0 KV blocks held, 18 free, 20 in all"),
        (Hoarding, "replica 0: Hoarding has not given back 3 of 20 KV blocks, held by a (3)"),
    ],
)
def test_a_leak_is_an_error_that_names_scheduler_and_holder(rung: type[VllmScheduler], problem: str) -> None:
    experiment = Experiment.from_mapping(setting(num_blocks=20))
    workload = ListedWorkload([row(name, 0.0, 7, 4) for name in "abcd"])
    setup = replace(setup_of(experiment, workload, make_cost_model(experiment)), rung=rung)
    simulate_core(setup)  # nobody notices
    with pytest.raises(PluginError) as caught:
        simulate_core(setup, told=Told(Audience([MemoryObserver()]), "leaking", "tiny"))
    assert str(caught.value) == f"observer MemoryObserver failed in on_run_end at 4 s: {problem}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_early_has_not_leaked(kind: str) -> None:
    mapping = setting(kind, num_blocks=12, stop_at_s=4.5)
    if kind == "static":
        mapping["scheduler"]["max_model_len"] = 24
    memory = MemoryObserver()
    watch(mapping, crowd(), memory)
    assert memory.blocks["kv_blocks_used"][-1] > 0
