"""Timelines worked by hand: every `*.yaml` here, and what the simulator makes of it, column by column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cbsim.schedulers import SCHEDULERS
from cbsim.testing import Call, Case, Commit, Observation, check_case

FOLDER = Path(__file__).parent
GOLDENS = {
    f"{path.stem}: {name}": golden
    for path in sorted(FOLDER.glob("*.yaml"))
    for name, golden in yaml.safe_load(path.read_text()).items()
}
CASE_KEYS = {
    "num_blocks",
    "block_size",
    "prefix_caching",
    "step_s",
    "token_s",
    "max_model_len",
    "concurrency",
}


@pytest.mark.parametrize("name", GOLDENS)
def test_the_timeline_is_the_one_worked_by_hand(name: str) -> None:
    golden = GOLDENS[name]
    settings = dict(golden["scheduler"])
    scheduler = SCHEDULERS.get(settings.pop("type"))
    case = Case(
        requests=tuple(request_of(*item) for item in golden["requests"].items()),
        settings=settings,
        **{key: golden[key] for key in CASE_KEYS & golden.keys()},
    )
    seen = check_case(scheduler, case)
    columns, expected = table_of(golden["timeline"])
    observed = rows_of(seen)
    got = [[cells[column] for column in columns] for cells in observed]
    assert show(columns, got) == show(columns, expected)
    assert {
        seen.log.requests["request_id"][row]: why for row, why in seen.log.rejections.items()
    } == golden.get("rejected", {})


def test_no_golden_is_left_out() -> None:
    for name, golden in GOLDENS.items():
        known = CASE_KEYS | {"why", "scheduler", "requests", "timeline", "rejected"}
        assert golden.keys() <= known, name
        assert golden["why"].strip(), f"{name} is not derived"


def request_of(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """`{at: 0, prompt: 4, output: 2, priority: 1}`; a prompt of segments is `{system: 8, own: 2}`."""
    segments = row["prompt"] if isinstance(row["prompt"], dict) else None
    return {
        "request_id": name,
        "arrival_s": float(row["at"]),
        "num_prompt_tokens": sum(segments.values()) if segments else row["prompt"],
        "num_output_tokens": row["output"],
        "priority": row.get("priority", 0),
        "prompt": tuple(segments.items()) if segments else None,
    }


def table_of(text: str) -> tuple[list[str], list[list[str]]]:
    """The columns' names and the cells of each row of a table drawn with `|`."""
    lines = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    return lines[0], lines[1:]


def show(columns: list[str], rows: list[list[str]]) -> str:
    """The table as text again, so that a failure shows both side by side."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    return "\n".join(
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [columns, *rows]
    )


def rows_of(seen: Observation) -> list[dict[str, str]]:
    """One row for each call that scheduled or preempted something, in every column that a table may have."""
    (replica,) = seen.replicas
    commits = {entry.step: entry for entry in replica.history if isinstance(entry, Commit)}
    steps = seen.log.steps
    start_s = dict(zip(steps["step"].tolist(), steps["start_s"].tolist(), strict=True))
    duration_s = dict(zip(steps["step"].tolist(), steps["duration_s"].tolist(), strict=True))
    rows = []
    for call in replica.calls:
        if not call.parts and not call.decided("preempted"):
            continue
        row = cells_of_call(call)
        if call.parts:
            commit = commits[call.step]
            row |= {
                "start": f"{start_s[call.step]:g}",
                "end": f"{start_s[call.step] + duration_s[call.step]:g}",
                "out": " ".join(commit.emitted),
                "done": " ".join(commit.finished),
                "used after": str(commit.num_blocks_used),
                "cached after": str(commit.num_cached_free),
            }
        rows.append(row)
    return rows


def cells_of_call(call: Call) -> dict[str, str]:
    """`a:4@8` is 4 tokens of a on top of 8; `a+8` in `in` is a newcomer that found 8 in the prefix cache."""
    admitted = {**call.decided("admitted"), **call.decided("resumed")}
    return {
        "at": f"{call.now:g}",
        "start": "-",
        "end": "-",
        "step": " ".join(
            f"{part.request_id}:{part.num_tokens}@{part.num_computed_tokens}" for part in call.parts
        ),
        "in": " ".join(f"{name}+{found}" if found else name for name, found in admitted.items()),
        "preempted": " ".join(call.decided("preempted")),
        "running": " ".join(call.running),
        "waiting": " ".join(call.waiting),
        "blocks": " ".join(f"{name}:{standing.num_blocks}" for name, standing in call.after.items()),
        "used": str(call.num_blocks_used),
        "padding": str(call.num_padding_tokens),
        "out": "",
        "done": "",
        "used after": "",
        "cached after": "",
    }
