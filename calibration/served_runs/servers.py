"""The servers and clients that were measured, set up as their documentation and scripts say."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from calibration.served_runs.checkpoints import KIMI, LLAMA_70B, MINIMAX, OSS, R1
from calibration.served_runs.rules import INFERENCE_MAX, SHORTEST_SHARE
from cbsim.base.units import GIB
from cbsim.lab.calibrate.named_spec import load_gpu
from cbsim.lab.calibrate.nvidia import SYSTEMS
from cbsim.lab.calibrate.nvidia_tables import Release, numbers_of
from cbsim.specs import GpuSpec

if TYPE_CHECKING:
    from calibration.served_runs.sample import ServedRun

Settings = Mapping[str, Any]
"""Settings of an experiment by dotted key."""

REQUESTS_PER_CLIENT = 10
"""As InferenceMAX's scripts and aiconfigurator's own runner (`genai_perf_runner.py`) have it."""
BLACKWELL = ("b200_sxm", "b300_sxm", "gb200", "gb300")
SINCE_ASYNC = (0, 14)
"""The release of vLLM that made asynchronous scheduling the default (release notes)."""
SINCE_FUSED, SINCE_FUSED_B300 = (0, 17), (0, 19)
TOLD_TO_FUSE = {
    ("vllm", True): (LLAMA_70B, OSS, KIMI),
    ("vllm", "h100_sxm"): (LLAMA_70B,),
    ("sglang", True): (R1,),
}
"""Models whose all-reduces InferenceMAX's scripts told to normalise, by framework and system, true for
Blackwell."""
SINCE_OWN_EXPERTS = (1, 2)
"""The release of TensorRT-LLM with which InferenceMAX's scripts for DeepSeek-R1 changed
(`benchmarks/dsr1_fp8_b200_trt.sh`)."""


@cache
def gpu_of(system: str) -> GpuSpec:
    """The GPU of a system of the tables."""
    name = SYSTEMS[system].gpu
    assert name is not None
    return load_gpu(name)


def set_up(run: ServedRun) -> dict[str, Any]:
    """Settings of a run's clients and server, or of its servers that decode."""
    return {**lengths(run), **(SETUPS[run.framework](run) if run.prefill is None else worker(run))}


def worker(run: ServedRun) -> Settings:
    """Of servers that prefill or decode alone: as of one that does both.

    SGLang's rule of prompts first is void there, and it takes blocks as they are needed. Where weights take
    all that its rule of memory leaves (DeepSeek-R1 in FP8 on four GB200s) it was told to take more.
    """
    settings = {**SETUPS[run.framework](run)}
    if run.framework == "sglang":
        del settings["scheduler.prefill_first"]
        settings |= {"scheduler.type": "vllm", "scheduler.max_num_seqs": run.clients_of_rank}
        if _weights_share(run) >= settings["kv_cache.gpu_memory_utilization"]:
            settings["kv_cache.gpu_memory_utilization"] = 0.95
    if run.seats is not None:
        settings["scheduler.max_num_seqs"] = run.seats
    return settings


def _weights_share(run: ServedRun) -> float:
    """What weights take of a GPU's memory."""
    model = run.checkpoint.load(run.framework, run.system)
    return model.weight_bytes_of_gpu(run.parallel) / gpu_of(run.system).memory_bytes


def lengths(run: ServedRun) -> Settings:
    """Those of the clients.

    Where a server lets the ranks of attention start prompts together alone (TensorRT-LLM's
    `attention_dp_config.enable_balance`, in all of InferenceMAX's scripts), all are the mean: equal requests
    keep ranks in step.
    """
    sizes = {"prompt_tokens": run.num_prompt_tokens, "output_tokens": run.num_output_tokens}
    is_balanced = run.framework == "trtllm" and run.parallel.data > 1
    if run.origin != INFERENCE_MAX or is_balanced:
        fixed = {key: mean_length(run, size) for key, size in sizes.items()}
        return {f"workload.{key}": {"type": "fixed", "value": size} for key, size in fixed.items()}
    return {
        f"workload.{key}": {"type": "uniform", "min": round(SHORTEST_SHARE * size), "max": size}
        for key, size in sizes.items()
    }


def mean_length(run: ServedRun, tokens: int) -> int:
    """What a length of a run is on average, tokens."""
    return tokens if run.origin != INFERENCE_MAX else round((1 + SHORTEST_SHARE) / 2 * tokens)


def vllm(run: ServedRun) -> Settings:
    """Of vLLM 0.11 to 0.19: 8192 tokens a step on GPUs from 70 GiB (`EngineArgs.get_batch_defaults`).

    InferenceMAX gives Llama a seat for each client, gpt-oss at most 512 of them, MiniMax and Kimi vLLM's own
    1024 and 95 % of the memory, and asks for asynchronous scheduling, which became the default with 0.14.
    """
    is_scripted = run.origin == INFERENCE_MAX
    seats = {LLAMA_70B: run.clients_of_rank, OSS: 512} if is_scripted else {}
    is_async = is_scripted or _release(run.version) >= SINCE_ASYNC
    return {
        "scheduler.type": "vllm",
        "scheduler.version": "0.15",
        "scheduler.async_scheduling": is_async,
        "scheduler.max_tokens_per_step": 8192,
        "scheduler.max_num_seqs": min(seats.get(run.checkpoint.model, 1024), run.clients_of_rank),
        "kv_cache.gpu_memory_utilization": 0.95 if run.checkpoint.model in (MINIMAX, KIMI) else 0.9,
        "cost_model.host": "async" if is_async else "sync",
    }


DYNAMO = {"0.5.1-": (1, 1, 0, 5), "0.8.1.": (1, 2, 0, 6), "1.1.0-dev": (1, 3, 0, 11)}
"""How releases of NVIDIA Dynamo begin, which the sample gives for its servers that prefill and decode apart,
and the TensorRT-LLM in them (Dynamo's support matrix: 1.1.0rc5 in 0.6.0, 1.2.0rc6.post2 in 0.8.1.post2,
1.3.0rc11 in 1.1.1)."""
UNNAMED = (1, 1, 0, 2)
"""The TensorRT-LLM of InferenceMAX's runs that name none: its images were of 1.1.0rc2.post2 then
(`.github/configs/nvidia-master.yaml`), gpt-oss's from a branch of August 2025, before 1.1."""


def release_of(run: ServedRun) -> Release | None:
    """TensorRT-LLM's release whose kernels a run is predicted with, None for another framework: of vLLM and
    SGLang the older tables time other kernels than their servers ran (nvfp4 experts take 1.1 to 3.6 times as
    long, attention in FP8 half).
    """
    if run.framework != "trtllm":
        return None
    return Release(run.framework, _trtllm_release(run) or UNNAMED)


def _trtllm_release(run: ServedRun) -> tuple[int, ...]:
    """All numbers of TensorRT-LLM's release; empty if it isn't said."""
    of_dynamo = [own for begin, own in DYNAMO.items() if run.version.startswith(begin)]
    return of_dynamo[0] if of_dynamo else numbers_of(run.version)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def sglang(run: ServedRun) -> Settings:
    """SGLang: prompts before decodes and never beside them, the host hidden; 8192 tokens at a time, 16,384 on
    GPUs from 160 GiB (`server_args.py`), 32,768 where InferenceMAX's scripts say so, for DeepSeek-R1 in FP8.

    Weights and KV cache get what its rule leaves: on 80 GB, of 81,559 MiB all but 1.5 for each of these
    tokens, 2 for each of 256 CUDA graph sizes and about 100 for a GPU's neighbours.
    """
    tokens = 16_384 if gpu_of(run.system).memory_bytes / GIB >= 160 else 8192
    if run.origin == INFERENCE_MAX and run.checkpoint.model == R1 and run.checkpoint.dtype == "fp8_block":
        tokens = 32_768
    return {
        "scheduler.type": "continuous",
        "scheduler.prefill_first": True,
        "scheduler.max_tokens_per_step": tokens,
        "cost_model.host": "async",
        "kv_cache.gpu_memory_utilization": 0.84,
        "kv_cache.activation_gib": 0.0,
    }


def trtllm(run: ServedRun) -> Settings:
    """TensorRT-LLM: decodes first, then whole prompts; the overlap scheduler hides the host; a CUDA graph for
    each batch size.

    A step holds what InferenceMAX's scripts say (`max_num_tokens`): 16,384 tokens for Llama, 20,000 for
    gpt-oss, for DeepSeek clients, a prompt and 64 more, since release 1.2 at least 8192; or, as
    aiconfigurator writes its own runs' configuration (`trtllm.rule`), clients, a prompt and 1500 more. The KV
    cache gets a share of the memory that weights leave.
    """
    tokens, share = run.clients_of_rank + run.num_prompt_tokens + 1500, 0.9
    if run.origin == INFERENCE_MAX:
        shares = {LLAMA_70B: (16_384, 0.9), OSS: (20_000, 0.85)}
        needed = (run.clients + run.num_prompt_tokens + 64 + 63) // 64 * 64
        if _trtllm_release(run) >= SINCE_OWN_EXPERTS:
            needed = max(needed, 8192)
        tokens, share = shares.get(run.checkpoint.model, (needed, 0.8))
    left = 1.0 - _weights_share(run)
    return {
        "scheduler.type": "vllm",
        "scheduler.enable_chunked_prefill": False,
        "scheduler.max_tokens_per_step": tokens,
        "scheduler.max_num_seqs": run.clients_of_rank,
        "kv_cache.gpu_memory_utilization": 1.0 - (1.0 - share) * max(0.0, left),
        "cost_model.host": "async",
        "cost_model.cuda_graph_batch_sizes": [],
    }


def experts_framework(run: ServedRun) -> str | None:
    """Whose table has the experts' kernel that a server was told to run, None for its framework's own.

    InferenceMAX's scripts ask TensorRT-LLM on Blackwell for `moe_config.backend: TRTLLM` since release 1.2,
    before and with attention's ranks for DeepGEMM. In FP8 blocks its own table has DeepGEMM alone; the other
    kernel, which FlashInfer ships, was timed by SGLang. SGLang's ranks of attention in FP8 blocks run
    DeepGEMM too, behind DeepEP (`deepepmoe` of the tables, timed over 4, 16 and 32 GPUs but not 8: as long as
    TensorRT-LLM's within 10 % up to 512 tokens, up to 18 % shorter beyond).
    """
    if run.framework == "sglang" and run.checkpoint.dtype == "fp8_block" and run.parallel.data > 1:
        return "trtllm"
    is_told = run.origin == INFERENCE_MAX and run.framework == "trtllm" and run.parallel.data == 1
    is_told = is_told and _trtllm_release(run) >= SINCE_OWN_EXPERTS and run.system in BLACKWELL
    return "sglang" if is_told and run.checkpoint.dtype == "fp8_block" else None


def experts_kernel(run: ServedRun) -> str | None:
    """The kernel of experts that a server was told to run, None for the fastest.

    InferenceMAX's scripts for DeepSeek-R1 in nvfp4 ask TensorRT-LLM for `moe_config.backend: TRTLLM`, but for
    `CUTLASS` with 256 clients or more, and with more than 32 where prompts are long
    (`benchmarks/dsr1_fp4_b200_trt.sh`, and before it `dsr1_fp4_b200_trt_slurm.sh`).
    """
    is_told = run.origin == INFERENCE_MAX and run.framework == "trtllm" and run.system == "b200_sxm"
    is_told = is_told and not run.version.startswith(tuple(DYNAMO))
    if not (is_told and run.checkpoint.model == R1 and run.checkpoint.dtype == "nvfp4"):
        return None
    return (
        "CUTLASS" if run.clients >= 256 or (run.num_prompt_tokens == 8192 and run.clients > 32) else "TRTLLM"
    )


def reduces_with_norms(run: ServedRun) -> bool | None:
    """Whether a server's all-reduces normalise too, None for its framework's habit.

    vLLM's do by default since 0.17, on B300s since 0.19 (its pull requests 34299 and 37755), without ranks of
    attention. InferenceMAX's scripts asked for it before on Blackwell, of vLLM for Llama (on H100s too),
    gpt-oss and Kimi (`fuse_allreduce_rms`), and of SGLang for DeepSeek-R1
    (`--enable-flashinfer-allreduce-fusion`).
    """
    models = TOLD_TO_FUSE.get((run.framework, run.system in BLACKWELL or run.system), ())
    is_told = run.origin == INFERENCE_MAX and run.checkpoint.model in models
    if run.framework == "vllm":
        since = SINCE_FUSED_B300 if run.system in ("b300_sxm", "gb300") else SINCE_FUSED
        return is_told or _release(run.version) >= since
    return True if is_told else None


SETUPS = {"vllm": vllm, "sglang": sglang, "trtllm": trtllm}
