"""The servers that were measured, set up as their documentation says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibration.served_runs.sample import ServedRun

SYSTEM = "h100_sxm"
Settings = Mapping[str, Any]
"""Settings of an experiment by dotted key."""


@dataclass(frozen=True, slots=True)
class Series:
    """The runs of one model on one server."""

    name: str
    path: str
    """The model's name in the sample."""
    model: str
    framework: str
    setup: Callable[[ServedRun], Settings]
    """How the server of a run is set up."""


def vllm(run: ServedRun) -> Settings:
    """Of vLLM 0.12: on an H100 8192 tokens and 1024 requests a step (`EngineArgs.get_batch_defaults`).

    Asynchronous scheduling became its default with 0.14 (release notes).
    """
    return {
        "scheduler.type": "vllm",
        "scheduler.version": "0.15",
        "scheduler.async_scheduling": False,
        "scheduler.max_tokens_per_step": 8192,
        "scheduler.max_num_seqs": 1024,
        "cost_model.host": "sync",
    }


def sglang(run: ServedRun) -> Settings:
    """SGLang on 80 GB: prompts before decodes and never beside them, 8192 tokens at a time, the host hidden.

    Weights and KV cache get what its rule leaves (`server_args.py`): of 81,559 MiB all but 1.5 for each of
    these tokens, 2 for each of 256 CUDA graph sizes and about 100 for a GPU's neighbours.
    """
    return {
        "scheduler.type": "continuous",
        "scheduler.prefill_first": True,
        "scheduler.max_tokens_per_step": 8192,
        "cost_model.host": "async",
        "kv_cache.gpu_memory_utilization": 0.84,
        "kv_cache.activation_gib": 0.0,
    }


def trtllm(run: ServedRun) -> Settings:
    """TensorRT-LLM as aiconfigurator, which made the sample, writes its configuration (`trtllm.rule`).

    Decodes first, then whole prompts; a seat for each client; all of them, a prompt and 1500 tokens fit in a
    step; a CUDA graph for each batch size; the overlap scheduler hides the host.
    """
    return {
        "scheduler.type": "vllm",
        "scheduler.enable_chunked_prefill": False,
        "scheduler.max_tokens_per_step": run.concurrency + run.num_prompt_tokens + 1500,
        "scheduler.max_num_seqs": run.concurrency,
        "cost_model.host": "async",
        "cost_model.cuda_graph_batch_sizes": [],
    }


SERIES = (
    Series("Qwen3-32B, vLLM", "Qwen/Qwen3-32B", "qwen3-32b", "vllm", vllm),
    Series("Qwen3-32B, SGLang", "Qwen/Qwen3-32B", "qwen3-32b", "sglang", sglang),
    Series("Llama-3.1-8B, TensorRT-LLM", "meta-llama/Llama-3.1-8B-Instruct", "llama-3-8b", "trtllm", trtllm),
)
