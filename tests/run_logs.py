"""A `RunLog` worked out on paper, and random ones, for tests of everything above the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cbsim.results.metrics import Deployment, summarize
from cbsim.results.result import Result
from cbsim.results.run_log import EVENTS, RunLog
from cbsim.specs import GpuSpec, ModelSpec
from cbsim.workload.request import RequestState

NEVER = np.nan
# 34 layer weights: q, k, v, o of 2 x 2 and three MLP matrices of 2 x 3. 60 parameters with 4 + 2 norms and
# two embeddings of 5 x 2. So 68 FLOP a token, 20 a row of logits, 8 a pair; 120 bytes, 8 a token of KV.
MODEL = ModelSpec(
    name="paper",
    num_layers=1,
    hidden_size=2,
    num_heads=1,
    num_kv_heads=1,
    head_size=2,
    intermediate_size=3,
    vocab_size=5,
    max_model_len=64,
    dtype="float16",
)
# 1000 bytes and 1000 FLOP a second.
GPU = GpuSpec(
    name="abacus",
    memory_gib=1.0,
    memory_bandwidth_gb_s=1e-6,
    bf16_tflops=1e-9,
    fp32_tflops=1e-9,
    link_gb_s=1.0,
    host_link_gb_s=1.0,
)
PAPER = Deployment(MODEL, GPU, kv_block_size=2)


def paper_log(**changed: Any) -> RunLog:
    """Four requests on one replica of 10 blocks of 2 tokens, stopped at 5 s.

    time     0         1         2         3              4.5   5
    a        prefill 4 decode    decode  | finished
    b          waits   prefill 2 | finished
    c                    waits   prefill 5 decode         | finished
    d        arrives at 2 s and is rejected
    """
    finished, rejected = RequestState.FINISHED, RequestState.REJECTED
    ids = np.empty(4, dtype=object)
    ids[:] = ["a", "b", "c", "d"]
    requests = {
        "request_id": ids,
        "replica": np.array([0, 0, 0, -1], dtype=np.int32),
        "arrival_s": np.array([0.0, 0.5, 1.0, 2.0]),
        "first_scheduled_at_s": np.array([0.0, 1.0, 2.0, NEVER]),
        "first_token_at_s": np.array([1.0, 2.0, 3.0, NEVER]),
        "finished_at_s": np.array([3.0, 2.0, 4.5, NEVER]),
        "num_prompt_tokens": np.array([4, 2, 5, 99]),
        "num_output_tokens": np.array([3, 1, 2, 7]),
        "num_generated_tokens": np.array([3, 1, 2, 0]),
        "num_cached_tokens": np.array([0, 0, 1, 0]),
        "num_preemptions": np.array([0, 0, 2, 0]),
        "priority": np.array([0, 0, 1, 0]),
        "state": np.array([finished, finished, finished, rejected], dtype=np.int8),
        "max_itl_s": np.array([1.0, NEVER, 1.5, NEVER]),
    }
    steps = {
        "replica": np.zeros(4, dtype=np.int32),
        "step": np.arange(4),
        "scheduled_at_s": np.array([0.0, 1.0, 2.0, 3.0]),
        "start_s": np.array([0.0, 1.0, 2.0, 3.0]),
        "duration_s": np.array([1.0, 1.0, 1.0, 1.5]),
        "num_prefill_tokens": np.array([4, 2, 5, 0]),
        "num_decode_tokens": np.array([0, 1, 1, 1]),
        "num_prefill_seqs": np.array([1, 1, 1, 0]),
        "num_decode_seqs": np.array([0, 1, 1, 1]),
        "num_running": np.array([1, 2, 2, 1]),
        "num_waiting": np.array([0, 0, 0, 0]),
        "num_preempted": np.array([0, 0, 0, 0]),
        "num_finished": np.array([0, 1, 1, 1]),
        "kv_blocks_used": np.array([3, 4, 7, 4]),
        "kv_blocks_total": np.array([10, 10, 10, 10]),
        # a: 1+2+3+4; b: 1+2, a: 5; c: 1+..+5, a: 6; c: 6
        "num_attention_pairs": np.array([10, 8, 21, 6]),
        "num_context_tokens": np.array([4, 7, 11, 6]),
        "num_logits": np.array([1, 2, 2, 1]),
        "num_kv_tokens": np.array([4, 7, 11, 6]),
    }
    happened = [
        (0.0, 0, -1, 0, "arrived"),
        (0.0, 0, 0, 0, "admitted"),
        (0.5, 0, -1, 1, "arrived"),
        (2.0, -1, -1, 3, "arrived"),
        (2.0, -1, -1, 3, "rejected"),
        (3.0, 0, 2, 0, "finished"),
    ]
    events = {
        "time_s": np.array([row[0] for row in happened]),
        "replica": np.array([row[1] for row in happened], dtype=np.int32),
        "step": np.array([row[2] for row in happened]),
        "request": np.array([row[3] for row in happened]),
        "event": np.array([EVENTS.index(row[4]) for row in happened], dtype=np.int8),
        "num_tokens": np.zeros(len(happened), dtype=np.int64),
    }
    parts = {
        "requests": requests,
        "steps": steps,
        "events": events,
        "batches": None,
        "gaps": [(np.array([1.0, 1.5]), np.array([2, 1]))],
        "rejections": {3: "too long"},
        "num_tokens_recomputed": 3,
        "end_s": 5.0,
    }
    return RunLog(**(parts | changed))


def paper_batches() -> dict[str, Any]:
    """The slices of the second step."""
    return {
        "replica": np.zeros(2, dtype=np.int32),
        "step": np.array([1, 1]),
        "start_s": np.array([1.0, 1.0]),
        "position": np.array([0, 1]),
        "request": np.array([0, 1]),
        "num_tokens": np.array([1, 2]),
        "num_computed_tokens": np.array([4, 0]),
        "kind": np.array([1, 0], dtype=np.int8),
    }


def empty_log() -> RunLog:
    """A run to which nobody came."""
    log = paper_log()
    requests, steps, events = (
        {name: column[:0] for name, column in table.items()}
        for table in (log.requests, log.steps, log.events)
    )
    none = np.empty(0)
    return RunLog(requests, steps, events, None, gaps=[(none, none.astype(np.int64))])


def random_log(seed: int, num_requests: int = 50, num_steps: int = 400) -> RunLog:
    """Finished requests and back-to-back steps idle time between some; not a possible run in every detail."""
    rng = np.random.default_rng(seed)
    arrival_s = np.sort(rng.uniform(0, 20, num_requests))
    queue_s = rng.exponential(0.1, num_requests)
    num_output = rng.integers(1, 40, num_requests)
    ids = np.empty(num_requests, dtype=object)
    ids[:] = [f"r{number}" for number in range(num_requests)]
    first_s = arrival_s + queue_s + rng.lognormal(-3, 1, num_requests)
    requests = {
        "request_id": ids,
        "replica": np.zeros(num_requests, dtype=np.int32),
        "arrival_s": arrival_s,
        "first_scheduled_at_s": arrival_s + queue_s,
        "first_token_at_s": first_s,
        "finished_at_s": first_s + (num_output - 1) * 0.02,
        "num_prompt_tokens": rng.integers(1, 500, num_requests),
        "num_output_tokens": num_output,
        "num_generated_tokens": num_output,
        "num_cached_tokens": np.zeros(num_requests, dtype=np.int64),
        "num_preemptions": rng.integers(0, 2, num_requests),
        "priority": np.zeros(num_requests, dtype=np.int64),
        "state": np.full(num_requests, RequestState.FINISHED, dtype=np.int8),
        "max_itl_s": np.where(num_output > 1, 0.02, NEVER),
    }
    duration_s = rng.lognormal(-4, 0.5, num_steps)
    idle_s = rng.exponential(0.02, num_steps) * rng.integers(0, 2, num_steps)
    start_s = np.cumsum(duration_s + idle_s) - duration_s
    steps = {name: rng.integers(0, 50, num_steps) for name in paper_log().steps}
    steps |= {
        "replica": np.zeros(num_steps, dtype=np.int32),
        "step": np.arange(num_steps),
        "scheduled_at_s": start_s,
        "start_s": start_s,
        "duration_s": duration_s,
        "kv_blocks_total": np.full(num_steps, 64),
    }
    end_s = max(float(requests["finished_at_s"].max()), float(start_s[-1] + duration_s[-1]))
    gaps = {"gaps": [(duration_s, rng.integers(1, 9, num_steps))]}
    return paper_log(requests=requests, steps=steps, **gaps, rejections={}, end_s=end_s)


CONFIG: dict[str, Any] = {
    "seed": 0,
    "model": MODEL.model_dump(mode="json"),
    "gpu": GPU.model_dump(mode="json"),
    "workload": {"type": "trace"},
    "scheduler": {"type": "vllm"},
    "kv_cache": {"block_size": 16},
    "cost_model": {"type": "constant"},
    "replicas": {"count": 2},
}
"""What `config.yaml` holds at least."""


def make_result(log: RunLog, name: str = "paper", **summary: Any) -> Result:
    """A result with the timings of its simulation left out."""
    figures = summarize(log, PAPER, **summary)
    figures["simulation"] = {"cpu_s": 0.5, "wall_s": 0.5, "metrics_cpu_s": 0.1}
    return Result.from_log(log, figures, CONFIG | {"name": name}, {"versions": {}, "seed": 0, "inputs": []})


def forget_hashes(folder: str | Path) -> None:
    """Make the manifest one of a former version, which knew none."""
    path = Path(folder, "manifest.json")
    manifest = json.loads(path.read_text())
    del manifest["files"]
    path.write_text(json.dumps(manifest))
