"""NVIDIA's own estimates of served runs, made by another Python and kept as they come."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from calibration.served_runs import estimator
from calibration.served_runs.answers import AnswerFile, Found
from calibration.served_runs.checkpoints import (
    KIMI,
    LLAMA_8B,
    LLAMA_70B,
    MINIMAX,
    OSS,
    QWEN_32B,
    QWEN_235B,
    R1,
)
from calibration.served_runs.sample import ROLES, ServedRun
from calibration.served_runs.servers import BLACKWELL
from cbsim.base.errors import CbsimError
from cbsim.base.units import MS_PER_S

FIGURES = ("ttft_s", "tpot_s")
NAMES = {
    LLAMA_8B: "meta-llama/Meta-Llama-3.1-8B",
    LLAMA_70B: "meta-llama/Meta-Llama-3.1-70B",
    QWEN_32B: "Qwen/Qwen3-32B",
    QWEN_235B: "Qwen/Qwen3-235B-A22B",
    R1: "deepseek-ai/DeepSeek-R1",
    KIMI: "moonshotai/Kimi-K2.5",
    MINIMAX: "MiniMaxAI/MiniMax-M2.5",
    OSS: "openai/gpt-oss-120b",
}
"""Models by the estimator's names."""
MODES = {
    "bf16": ("bfloat16", "bfloat16"),
    "fp8": ("fp8_static", "fp8"),
    "fp8_block": ("fp8_block", "fp8_block"),
    "nvfp4": ("nvfp4", "nvfp4"),
    "int4": ("bfloat16", "int4_wo"),
    "mxfp4": ("bfloat16", "w4a16_mxfp4"),
}
"""What the estimator calls the dtypes of matrix products and of experts, by ours; checkpoints in FP8 hold the
scales of activations."""


def case_of(run: ServedRun) -> dict[str, Any]:
    """A run as the estimator is asked for it, with parallelism and dtypes put right as for us."""
    products, experts = MODES[run.checkpoint.dtype]
    if experts == "w4a16_mxfp4" and run.system in BLACKWELL:
        experts = "w4a8_mxfp4_mxfp8"
    model, parallel = run.checkpoint.load(run.framework, run.system), run.parallel
    case: dict[str, Any] = {
        "key": run.id,
        "model_path": NAMES[run.checkpoint.model],
        "system_name": run.system,
        "backend_name": run.framework,
        "isl": run.num_prompt_tokens,
        "osl": run.num_output_tokens,
        "batch_size": run.clients_of_rank,
        "tp_size": parallel.tensor,
        "attention_dp_size": parallel.data,
        "gemm_quant_mode": products,
        "moe_quant_mode": experts,
        "kvcache_quant_mode": model.kv_dtype or model.dtype,
    }
    if run.checkpoint.has_experts:
        case |= {"moe_tp_size": parallel.expert_tensor, "moe_ep_size": parallel.expert}
    return case if run.prefill is None else case | _apart(run)


def _apart(run: ServedRun) -> dict[str, Any]:
    """What it is told of servers that prefill and decode apart: a prompt at a time, as the sample has it."""
    told: dict[str, Any] = {"mode": "disagg"}
    for role, server in zip(ROLES, run.servers, strict=True):
        parallel = server.parallel
        told |= {
            f"{role}_num_workers": server.num_workers,
            f"{role}_batch_size": 1 if role == "prefill" else server.clients_of_rank,
            f"{role}_tp_size": parallel.tensor,
            f"{role}_attention_dp_size": parallel.data,
            f"{role}_moe_tp_size": parallel.expert_tensor,
            f"{role}_moe_ep_size": parallel.expert,
        }
    return told


def estimate_all(python: Path, runs: Sequence[ServedRun], file: AnswerFile) -> dict[str, Found]:
    """The estimates of runs by id: those that the file knows, and the others as `python` makes them.

    Raises `CbsimError` if that Python can't be started.
    """
    waiting = [case_of(run) for run in runs if file.known(run.id) is None]
    for done, answer in enumerate(_answers(python, waiting), start=1):
        figures = [answer[name] / MS_PER_S for name in ("ttft_ms", "tpot_ms") if name in answer]
        file.add(answer["key"], figures or answer["problem"])
        if done % 20 == 0:
            print(f"estimates: {done:,} of {len(waiting):,}", file=sys.stderr, flush=True)
    return file.found(run.id for run in runs)


def _answers(python: Path, cases: Sequence[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    if not cases:
        return
    command = [str(python), estimator.__file__]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError as error:
        raise CbsimError(f"{python}: can't be started: {error.strerror or error}") from error
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        for case in cases:
            process.stdin.write(json.dumps(case) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise CbsimError(f"{python}: ended before its answer to {case['key']}")
            yield json.loads(line)
        process.stdin.close()
