"""Recorded decisions of vLLM against cbsim: `python tests/vllm_cases.py FOLDER...`.

Every case of the folders (`case_NAME.json`, `case_NAME.steps.jsonl`) is run through `cbsim.run`, compiled and
interpreted, and its rows are made again from the tables of the result; once more it is gone through step by
step, for what no table holds (queues, blocks of each request). All keys of all rows must be equal. A case
that differs prints a line with its first row that does, the key, what vLLM did and what cbsim did.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cbsim
from cbsim.base.binding import can_compile
from cbsim.core import layout, loop
from cbsim.core.stepping import StepwiseWorld, WatchedStepper
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_cost_model, make_workload
from cbsim.studies.setup import setup_of
from cbsim.studies.simulation import step_through, stepwise

Row = dict[str, Any]
KINDS = {"pd": "remote", "tier_sync": "tier_read", "tier_async": "tier_loaded"}
SCHEDULER_KEYS = {
    "max_num_seqs": "max_num_seqs",
    "max_num_batched_tokens": "max_tokens_per_step",
    "long_prefill_token_threshold": "chunk_size",
    "policy": "policy",
    "enable_chunked_prefill": "enable_chunked_prefill",
    "reserve_full_isl": "reserve_full_isl",
    "watermark": "watermark",
    "max_num_active_seqs": "max_num_active_seqs",
    "long_prefill_token_threshold_adaptive": "adaptive_chunk_size",
    "prefill_schedule_interval": "prefill_schedule_interval",
}
REQUEST_KEYS = {
    "id": "request_id",
    "prompt_tokens": "num_prompt_tokens",
    "output_tokens": "num_output_tokens",
    "priority": "priority",
    "prompt": "prompt",
    "accept": "accepted",
    "propose": "proposed",
    "load_s": "load_s",
    "send_s": "send_s",
    "tier_tokens": "tier_tokens",
    "fail_from_block": "fail_from_block",
}
EVENTS = {
    "admitted": "new",
    "resumed": "resumed",
    "preempted": "preempted",
    "load_started": "load_started",
    "read": "read_sync",
    "emitted": "emitted",
    "finished": "finished",
    "loaded": "received",
    "sent": "sent",
    "failed": "failed",
}
MODEL = {
    "name": "any",
    **{"num_layers": 1, "hidden_size": 1, "num_heads": 1, "num_kv_heads": 1, "head_size": 1},
    **{"intermediate_size": 1, "vocab_size": 1},
}
"""No decision depends on it."""
IN_TABLES = (
    *("start", "scheduled_at", "sched", "cached", "running", "waiting", "used", "drafts", "accepted"),
    *("tokens", "padded", "skip_drafts", *EVENTS.values()),
)
"""Keys that the tables of a result hold, for rows with a step."""


def experiment_of(case: Mapping[str, Any], trace: Path, engine: str) -> dict[str, Any]:
    """The experiment of a case, whose requests lie in `trace`."""
    config = case["config"]
    stages = config.get("pipeline_parallel_size", 1)
    scheduler: dict[str, Any] = {
        "type": "vllm",
        "async_scheduling": config.get("async_scheduling", False),
        **{ours: config[theirs] for theirs, ours in SCHEDULER_KEYS.items() if theirs in config},
    }
    if "speculative" in config:
        given = config["speculative"]
        scheduler["speculative"] = {
            "method": given["method"],
            "num_tokens": given["num_speculative_tokens"],
            "draft_share": 0.0,
            "lookahead_block_hashes": not given.get("disable_lookahead_block_hashes", False),
        }
    if "connector" in config:
        given = config["connector"]
        scheduler["connector"] = {
            "kind": KINDS[given["kind"]],
            "role": given.get("role", "kv_both").removeprefix("kv_"),
            "load_failure": given.get("load_failure_policy", "fail"),
        }
    kv_cache: dict[str, Any] = {
        "num_blocks": config["num_gpu_blocks"] - 1,  # vLLM keeps one as its null block
        "block_size": config["block_size"],
        "prefix_caching": config["enable_prefix_caching"],
        "prefix_cache_retention_interval": config.get("prefix_cache_retention_interval", 0),
    }
    if "kv_groups" in config:
        kv_cache["groups"] = config["kv_groups"]
    return {
        "name": case["name"],
        "model": {**MODEL, "max_model_len": config.get("max_model_len", 1_000_000)},
        "workload": {"type": "trace", "path": str(trace), "format": "cbsim"},
        "scheduler": scheduler,
        "kv_cache": kv_cache,
        "parallel": {"pipeline": stages},
        "cost_model": {"type": "constant", "step_s": float(stages)},
        "engine": engine,
        "output": {"batches": True},
    }


def write_trace(case: Mapping[str, Any], path: Path) -> None:
    """The requests of a case as a trace; who arrives together stays in the order of the list."""
    with path.open("w") as file:
        for given in case["requests"]:
            row = {ours: given[theirs] for theirs, ours in REQUEST_KEYS.items() if theirs in given}
            row["arrival_s"] = float(given.get("arrival_s", given.get("arrival_step")))
            for name in ("remote_prefill", "remote_decode"):
                row[name] = int(given.get(name, False))
            file.write(json.dumps(row) + "\n")


def recorded_rows(path: Path) -> list[Row]:
    """What vLLM did. Rows of the oldest synchronous cases say only `step`, and idle seconds are left out."""
    rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()]
    if "start" in rows[0]:
        return rows
    return [
        {**row, "scheduled_at": float(row["step"]), "start": float(row["step"]), "end": row["step"] + 1.0}
        for row in rows
        if row.get("sched")
    ]


def table_rows(result: Any) -> list[Row]:
    """A row for each step, from the tables of a result."""
    rows: list[Row] = []
    for step in result.steps.to_dict("records"):
        rows.append(
            {
                "scheduled_at": step["scheduled_at_s"],
                "start": step["start_s"],
                "running": step["num_running"],
                "waiting": step["num_waiting"],
                "used": step["kv_blocks_used"],
                "skip_drafts": bool(step.get("skips_drafts", 0)),
                **{name: {} for name in ("cached", "tokens", "drafts", "accepted", "read_sync")},
                **{name: [] for name in ("sched", "padded", *EVENTS.values()) if name != "read_sync"},
            }
        )
    for part in result.batches.to_dict("records"):
        row, name = rows[part["step"]], part["request_id"]
        row["sched"].append([name, part["num_tokens"], part["num_computed_tokens"]])
        if part.get("num_drafts"):
            row["drafts"][name] = part["num_drafts"]
            row["accepted"][name] = part["num_accepted"]
        if part.get("is_padded"):
            row["padded"].append(name)
    for event in result.events.to_dict("records"):
        key, name, count = EVENTS.get(event["event"]), event["request_id"], event["num_tokens"]
        if key is None or event["step"] != event["step"] or event["step"] is None:
            continue
        row = rows[int(event["step"])]
        if key == "load_started":
            row[key].append([name, count])
        elif key == "read_sync":
            row[key][name] = count
        else:
            row[key].append(name)
        if key in ("new", "resumed") and count:
            row["cached"][name] = count
        if key == "emitted" and count > 1:
            row["tokens"][name] = count
    for row in rows:
        # Drafts of a request that had ended, or whose sample was dropped, were not decided about.
        row["accepted"] = {name: n for name, n in row["accepted"].items() if name in row["emitted"]}
    return rows


class Recorder(WatchedStepper):
    """A replica gone through step by step that takes down a row for each call of its scheduler."""

    def __init__(self, world: StepwiseWorld, number: int) -> None:
        self.rows: dict[int, Row] = {}
        super().__init__(world, number)

    def decided(self, step: Any) -> None:
        """What a call decided, with queues and blocks as they stand right after it."""
        records, names = self.records, self._names
        parts = records.slices[step.place][: step.num_slices]
        decisions: dict[str, list[Any]] = {}
        for what, request, count in self.decisions(step):
            decisions.setdefault(EVENTS[what], []).append((request.request_id, count))
        begun = [*decisions.get("new", []), *decisions.get("resumed", [])]
        moving = records.transfers[: self.own.num_transfers]
        holding = [i for i in moving if records.extras[i].transfer in (layout.LOADING, layout.READY)]
        by_priority = records.config.policy == layout.PRIORITY
        queued = sorted(holding, key=lambda i: (self.requests[i].priority, i)) if by_priority else holding
        self.rows[step.call] = {
            "scheduled_at": step.now,
            "start": None,
            "end": None,
            "sched": [[*names([p.request]), p.num_tokens, p.num_computed_tokens] for p in parts],
            **{key: [name for name, _ in decisions.get(key, [])] for key in ("new", "resumed", "preempted")},
            "cached": {name: count for name, count in begun if count},
            "load_started": [list(each) for each in decisions.get("load_started", [])],
            "read_sync": dict(decisions.get("read_sync", [])),
            "drafts": {names([p.request])[0]: p.num_drafts for p in parts if p.num_drafts},
            "padded": names([p.request for p in parts if p.is_padded]),
            "skip_drafts": bool(step.skips_drafts and parts),
            "loading": names([i for i in sorted(holding) if not records.extras[i].is_known]),
            "running": self.own.num_running,
            "waiting": step.num_waiting,
            "used": step.kv_blocks_used,
            "running_q": names(records.running[: self.own.num_running]),
            "waiting_q": names(queued)
            + [each.request_id for each in self.waiting(step.now) if each.index not in holding],
            "blocks": dict(self._held()),
        }

    def began(self, step: Any) -> None:
        """When its step runs."""
        self.rows[step.call].update(start=step.start_s, end=step.end_s)

    def taken(self, step: Any, events: Sequence[Any]) -> None:
        """What the result of a call brought, which may have no step."""
        row = self.rows[step.call]
        parts = self.records.slices[step.place][: step.num_slices]
        row["num_found"] = step.num_found
        for event in events:
            key = {layout.LOADED: "received", layout.SENT: "sent", layout.FAILED_NOW: "failed"}.get(
                event.event, "finished" if event.event == layout.FINISHED_NOW else ""
            )
            if key:
                row.setdefault(key, []).extend(self._names([event.request]))
        row["emitted"] = self._names([p.request for p in parts if p.num_emitted])
        row["tokens"] = {self._names([p.request])[0]: p.num_emitted for p in parts if p.num_emitted > 1}
        row["accepted"] = {
            self._names([p.request])[0]: p.num_accepted for p in parts if p.num_drafts and p.num_emitted
        }
        if parts or any(event.event >= layout.LOADED for event in events):
            row["end"] = step.end_s if parts else events[-1].time_s
            row["used_end"], row["cached_free_end"] = self.num_blocks_used, self.own.num_cached_free

    def _names(self, indices: Sequence[int]) -> list[str]:
        return [self.requests[index].request_id for index in indices]

    def _held(self) -> Iterator[tuple[str, Any]]:
        """Blocks of each request that holds any, by group if there are several."""
        for request in self.world.requests:
            extras = self.records.extras
            if extras and extras[request.index].transfer == layout.RELEASING:
                continue
            if not self.own.has_identities and request.num_blocks:
                yield request.request_id, request.num_blocks
            held = [sum(block >= 0 for block in blocks) for blocks in self.blocks_by_group(request)]
            if any(held):
                yield request.request_id, held[0] if len(held) == 1 else held


def stepwise_rows(config: Mapping[str, Any]) -> list[Row]:
    """A row for each call that did something, all keys of a recording included."""
    experiment = Experiment.from_mapping(config)
    setup = setup_of(experiment, make_workload(experiment), make_cost_model(experiment))
    made: list[Recorder] = []
    first_event = 0

    def next_under_way(records: Any) -> None:
        nonlocal first_event
        step = records.under_way[records.own.first_under_way]
        end = records.log.lengths.events
        brought = [layout.FINISHED_NOW, layout.LOADED, layout.SENT, layout.FAILED_NOW]
        events = [event for event in records.log.events[first_event:end] if event.event in brought]
        first_event = end
        made[0].taken(step, events)
        loop.next_under_way(records)

    def make(world: StepwiseWorld, number: int) -> Recorder:
        made.append(Recorder(world, number))
        return made[-1]

    world = stepwise(setup, watches={"next_under_way": next_under_way}, make_replica=make)
    step_through(world, setup)
    made[0].check_integrity()
    keys = ("sched", "preempted", "load_started", "received", "sent", "failed", "num_found")
    rows = [row for row in made[0].rows.values() if any(row.get(key) for key in keys)]
    return [{key: value for key, value in row.items() if key != "num_found"} for row in rows]


def difference(got: Sequence[Row], want: Sequence[Row], keys: Sequence[str] | None = None) -> str | None:
    """The first row and key in which rows differ, and both values; `None` if none does."""
    for place, (ours, theirs) in enumerate(zip(got, want, strict=False)):
        shown = keys or [key for key in dict.fromkeys([*theirs, *ours]) if key not in ("step", "num_found")]
        for key in shown:
            if key not in theirs and key in (
                "running_q",
                "waiting_q",
                "blocks",
                "cached_free_end",
                "used_end",
            ):
                continue  # recorded in some cases only
            mine, vllms = ours.get(key), theirs.get(key)
            if key == "read_sync" and isinstance(vllms, list):
                vllms = dict(vllms)
            if (mine or vllms) and mine != vllms:
                return f"row {place}: {key}: vLLM {vllms}, cbsim {mine}"
    if len(got) != len(want):
        return f"vLLM has {len(want)} rows, cbsim {len(got)}"
    return None


def check_case(path: Path, engines: Sequence[str] = ("compiled", "interpreted")) -> str | None:
    """How a case differs, in words; `None` if it does not."""
    case = json.loads(path.read_text())
    recorded = recorded_rows(path.with_name(f"{path.stem}.steps.jsonl"))
    begun = [row for row in recorded if row.get("start") is not None]
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "requests.jsonl"
        write_trace(case, trace)
        for engine in engines:
            result = cbsim.run(experiment_of(case, trace, engine))
            found = difference(table_rows(result), begun, IN_TABLES)
            if found is not None:
                return f"{engine}: {found}"
        return difference(stepwise_rows(experiment_of(case, trace, "interpreted")), recorded)


def cases_of(*folders: Path) -> list[Path]:
    """The cases that lie in folders."""
    found = (path for folder in folders for path in sorted(folder.glob("case_*.json")))
    return [path for path in found if not path.name.endswith(".steps.jsonl")]


def main(folders: Sequence[str]) -> int:
    """Check all cases; 0 if all are identical."""
    engines = ("compiled", "interpreted") if can_compile() else ("interpreted",)
    paths, num_identical = cases_of(*map(Path, folders)), 0
    for path in paths:
        try:
            found = partial(check_case, path, engines)()
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        num_identical += found is None
        if found is not None:
            print(f"{path.stem.removeprefix('case_')}: {found}")
    print(f"{num_identical} of {len(paths)} identical")
    return 0 if paths and num_identical == len(paths) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
