"""cbsim against the oracle in drawn cases, tight enough that every rule of the scheduler comes to bear."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import cbsim
from tests.oracle.oracle import Request, Settings, Step, replay

NUM_CASES = int(os.environ.get("CBSIM_ORACLE_CASES", "240"))
FIRST_SEED = int(os.environ.get("CBSIM_ORACLE_SEED", "0"))

Rows = list[dict[str, Any]]
Cost = dict[str, float]
Table = list[tuple[Any, ...]]

COLUMNS = {
    "batches": "step start_s position request_id num_tokens num_computed_tokens kind",
    "steps": "step scheduled_at_s start_s duration_s num_prefill_tokens num_decode_tokens num_prefill_seqs "
    "num_decode_seqs num_running num_waiting num_preempted num_finished kv_blocks_used kv_blocks_total "
    "num_attention_pairs num_context_tokens num_logits",
    "events": "time_s step request_id event num_tokens",
    "requests": "request_id arrival_s queue_s ttft_s e2e_s finished_at_s num_prompt_tokens num_output_tokens "
    "num_cached_tokens num_preemptions priority state",
}
"""What is compared of each frame of a result."""
FEWEST = {
    "preempted": 100,
    "hit": 100,
    "hit on return": 50,
    "preempted and scheduled nothing": 10,
    "finished while waiting": 10,
}
"""How many of 240 cases must show each."""


def test_cbsim_decides_what_the_oracle_decides(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    for seed in range(FIRST_SEED, FIRST_SEED + NUM_CASES):
        steps = compare(f"seed {seed}", *drawn(seed), tmp_path)
        seen.update(set().union(*map(told_by, steps)))
    assert seen.keys() == FEWEST.keys()
    assert {what: seen[what] for what in FEWEST if seen[what] < FEWEST[what] * NUM_CASES / 240} == {}


SECOND: Cost = {"step_s": 1.0, "per_prefill_token_s": 0.0, "per_decode_s": 0.0}
CROWDED = Settings(
    max_num_seqs=9,
    max_num_batched_tokens=6,
    block_size=2,
    num_gpu_blocks=15,
    long_prefill_token_threshold=4,
    policy="priority",
    reserve_full_isl=False,
)


def test_a_victims_tokens_serve_those_behind_it(tmp_path: Path) -> None:
    """13: in step 4 `last` finds the 4 tokens that went to the victim before, not only the one left over."""
    rows = [row("victim", 0.0, 27, 2, 9), row("urgent", 0.5, 2, 9, 0), row("last", 0.5, 12, 1, 1)]
    steps, _ = replayed(CROWDED, rows, SECOND)
    assert steps[4].row["preempted"] == ["victim"]
    assert steps[4].row["sched"] == [["urgent", 1, 4], ["last", 4, 2]]
    compare("by hand", CROWDED, rows, SECOND, tmp_path)


def test_blocks_of_a_step_that_never_ran_are_not_hit(tmp_path: Path) -> None:
    """25: on return the victim finds its eight computed blocks, and not the ninth."""
    settings = replace(CROWDED, max_num_batched_tokens=8, num_gpu_blocks=13, enable_prefix_caching=True)
    rows = [row("victim", 0.0, 22, 2, 9), row("urgent", 0.5, 3, 3, 0)]
    steps, _ = replayed(settings, rows, SECOND)
    assert steps[3].row["preempted"] == ["victim"]
    assert steps[4].row["cached"] == {"victim": 16}
    compare("by hand", settings, rows, SECOND, tmp_path)


def row(name: str, arrival_s: float, num_prompt: int, num_output: int, priority: int) -> dict[str, Any]:
    lengths = {"prompt_tokens": num_prompt, "output_tokens": num_output}
    return {"id": name, "arrival_s": arrival_s, "priority": priority, **lengths}


def compare(which: str, settings: Settings, rows: Rows, cost: Cost, folder: Path) -> list[Step]:
    """Every row of cbsim's result against the oracle's; returns the oracle's steps."""
    steps, requests = replayed(settings, rows, cost)
    wanted = tables_of(settings, steps, requests)
    result = simulated(settings, rows, cost, folder / "requests.jsonl")
    for name, columns in COLUMNS.items():
        found = table(getattr(result, name), columns)
        differs = [n for n, (got, want) in enumerate(zip(found, wanted[name], strict=False)) if got != want]
        assert found == wanted[name], f"{which}, {name}, rows {differs[:3]}: {settings}"
    return steps


def told_by(step: Step) -> set[str]:
    row = step.row
    late = {e.request.name for e in step.entries if e.request.num_preemptions > e.num_preemptions}
    told = {
        "preempted": row["preempted"],
        "hit": row["cached"],
        "hit on return": row["cached"].keys() & set(row["resumed"]),
        "preempted and scheduled nothing": not step.entries,
        "finished while waiting": late & set(row.get("finished", ())),
    }
    return {what for what, is_so in told.items() if is_so}


def drawn(seed: int) -> tuple[Settings, Rows, Cost]:
    """Settings, requests and the terms of a step's time."""
    random = Random(f"oracle {seed}")
    rows = drawn_requests(random)
    is_crowded = random.random() < 0.3
    block_size = random.choice([1, 2, 2, 4] if is_crowded else [1, 2, 3, 4, 4, 8, 16])
    longest = max(row["prompt_tokens"] + row["output_tokens"] for row in rows)
    num_usable = -(-(longest - 1) // block_size) + random.choice([0, 0, 0, 1, 1, 2, 3, 5, 8, 20])
    budget = random.choice([1, 2, 5, 8, 16, 16, 24, 32, 64])
    is_chunked = random.random() < 0.75
    settings = Settings(
        max_num_seqs=random.choice([1, 2, 3, 4, 6, 16, 16]),
        max_num_batched_tokens=budget if is_chunked else max(longest, budget),
        block_size=block_size,
        num_gpu_blocks=num_usable + 1,
        enable_chunked_prefill=is_chunked,
        long_prefill_token_threshold=random.choice([0, 0, 0, 1, 3, 7, 16]),
        policy=random.choice(["fcfs", "priority"]),
        enable_prefix_caching=random.random() < 0.6,
        reserve_full_isl=random.random() < 0.5,
        watermark=random.choice([0.0, 0.0, 0.05, 0.2, 0.5]),
        async_scheduling=random.random() < 0.6,
        version=random.choice(["0.15", "0.20", "0.33", "0.33"]),
    )
    if is_crowded:
        # Chunks of several prompts fill the budget, and blocks give out amid the running list (13).
        settings = replace(
            settings,
            policy="priority",
            enable_prefix_caching=random.random() < 0.8,
            max_num_seqs=16,
            max_num_batched_tokens=longest if not is_chunked else random.choice([8, 12, 16]),
            long_prefill_token_threshold=random.choice([3, 5, 7]),
            reserve_full_isl=False,
            watermark=0.0,
        )
    whole = {"step_s": random.choice([0.5, 1.0]), "per_prefill_token_s": 0.0, "per_decode_s": 0.0}
    eighths = {"step_s": 0.25, "per_prefill_token_s": 0.125, "per_decode_s": 0.0625}
    rounded = {"step_s": 0.7, "per_prefill_token_s": 0.013, "per_decode_s": random.choice([0.0, 0.11])}
    return settings, rows, random.choice([whole, whole, eighths, rounded])


def drawn_requests(random: Random) -> Rows:
    """Requests that arrive in bursts, and begin alike or with what was said before."""
    rows: Rows = []
    arrival = 0.0
    longest_prompt, longest_answer = random.choice([(8, 30), (40, 12), (40, 40), (90, 20)])
    for number in range(random.randint(2, 14)):
        arrival += random.choice([0.0, 0.0, 0.0, 0.125, 0.5, 1.0, 2.0, 6.5])
        own: list[Any] = [f"p:r{number}", random.randint(1, longest_prompt)]
        prompt = [own]
        if random.random() < 0.7:
            common = [random.choice("sst"), random.choice([4, 8, 16, random.randint(1, longest_prompt)])]
            prompt = random.choice([[common], [common, own], [common, common, own]])
            if rows and random.random() < 0.4:
                last = random.choice(rows)
                answer = [f"o:{last['id']}", random.randint(1, last["output_tokens"])]
                prompt = [*last["prompt"], answer, own]
        num_prompt = sum(length for _, length in prompt)
        num_output = random.choice([1, 2, random.randint(1, longest_answer)])
        made = row(f"r{number}", arrival, num_prompt, num_output, random.choice([-1, 0, 0, 1, 2]))
        rows.append(made | {"prompt": prompt})
    return rows


def replayed(settings: Settings, rows: Rows, cost: Cost) -> tuple[list[Step], list[Request]]:
    """What the oracle makes of it."""

    def duration(step: Step) -> float:
        num_decodes = sum(entry.is_decode for entry in step.entries)
        num_prefill = sum(entry.num_tokens for entry in step.entries if not entry.is_decode)
        return cost["step_s"] + cost["per_prefill_token_s"] * num_prefill + cost["per_decode_s"] * num_decodes

    return replay(settings, rows, duration)


def simulated(settings: Settings, rows: Rows, cost: Cost, trace: Path) -> cbsim.RunResult:
    """What cbsim makes of it."""
    names = {"id": "request_id", "prompt_tokens": "num_prompt_tokens", "output_tokens": "num_output_tokens"}
    lines = [json.dumps({names.get(key, key): value for key, value in row.items()}) for row in rows]
    trace.write_text("\n".join(lines) + "\n")
    scheduler = {
        "type": "vllm",
        "max_num_seqs": settings.max_num_seqs,
        "max_tokens_per_step": settings.max_num_batched_tokens,
        "chunk_size": settings.long_prefill_token_threshold,
        "policy": settings.policy,
        "enable_chunked_prefill": settings.enable_chunked_prefill,
        "reserve_full_isl": settings.reserve_full_isl,
        "watermark": settings.watermark,
        "async_scheduling": settings.async_scheduling,
        "version": settings.version,
    }
    kv_cache = {
        "num_blocks": settings.num_gpu_blocks - 1,
        "block_size": settings.block_size,
        "prefix_caching": settings.enable_prefix_caching,
    }
    return cbsim.run(
        {
            "workload": {"type": "trace", "path": str(trace)},
            "scheduler": scheduler,
            "kv_cache": kv_cache,
            "cost_model": {"type": "constant", **cost},
            "output": {"batches": True},
        }
    )


def table(frame: Any, columns: str) -> Table:
    """Columns of a frame as rows; `None` where there is nothing."""
    values = [frame[name].astype(object).where(frame[name].notna(), None) for name in columns.split()]
    return list(zip(*values, strict=True))


def tables_of(settings: Settings, calls: list[Step], requests: list[Request]) -> dict[str, Table]:
    """What the oracle decided, as `COLUMNS` has it."""
    steps = [step for step in calls if step.entries]
    return {
        "batches": [row for number, step in enumerate(steps) for row in batch_rows(number, step)],
        "steps": [step_row(number, step, settings) for number, step in enumerate(steps)],
        "events": event_rows(calls, requests),
        "requests": [request_row(request, calls) for request in requests],
    }


def batch_rows(number: int, step: Step) -> Table:
    return [
        (
            number,
            step.start,
            place,
            e.request.name,
            e.num_tokens,
            e.before,
            ["prefill", "decode"][e.is_decode],
        )
        for place, e in enumerate(step.entries)
    ]


def step_row(number: int, step: Step, settings: Settings) -> tuple[Any, ...]:
    decodes = [entry for entry in step.entries if entry.is_decode]
    prefills = [entry for entry in step.entries if not entry.is_decode]
    row = step.row
    return (
        *(number, step.scheduled_at, step.start, step.duration),
        *(sum(e.num_tokens for e in prefills), len(decodes), len(prefills), len(decodes)),
        *(row["running"], row["waiting"], len(row["preempted"]), len(row["finished"])),
        *(row["used"], settings.num_gpu_blocks - 1),
        sum(sum(range(e.before + 1, e.before + e.num_tokens + 1)) for e in step.entries),
        sum(e.before + e.num_tokens for e in step.entries),
        sum(e.emits for e in step.entries),
    )


def event_rows(calls: list[Step], requests: list[Request]) -> Table:
    """At one instant arrivals are told first, then results, then decisions."""
    rows: list[tuple[Any, ...]] = [(r.arrival, 0, None, r.name, "arrived", 0) for r in requests]
    numbers = count()
    for step in calls:
        number = next(numbers) if step.entries else None
        row, at = step.row, step.scheduled_at
        rows += [(at, 2, number, name, "preempted", 0) for name in row["preempted"]]
        for name, _, before in row["sched"]:
            for event, names in (("admitted", row["new"]), ("resumed", row["resumed"])):
                rows += [(at, 2, number, name, event, before)] if name in names else []
        if step.entries:
            rows += [(step.end, 1, number, name, "emitted", 1) for name in row["emitted"]]
            rows += [(step.end, 1, number, name, "finished", 0) for name in row["finished"]]
    rows.sort(key=lambda row: row[:2])
    return [(time, *event) for time, _, *event in rows]


def request_row(request: Request, calls: list[Step]) -> tuple[Any, ...]:
    first = next(step for step in calls if request.name in step.row["new"])
    assert request.first_token is not None
    assert request.finished is not None
    return (
        *(request.name, request.arrival, first.scheduled_at - request.arrival),
        *(request.first_token - request.arrival, request.finished - request.arrival, request.finished),
        *(len(request.prompt), request.num_output, first.row["cached"].get(request.name, 0)),
        *(request.num_preemptions, request.priority, "finished"),
    )
