"""Flags of serving engines, and names of others for settings: which key of an experiment each one means.

vLLM's are those of `vllm serve` 0.33 (`vllm/engine/arg_utils.py`), SGLang's those of `sglang.launch_server`,
TensorRT-LLM's those of `trtllm-serve` and of the YAML it takes (from the documentation of each).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from cbsim.base.registry import did_you_mean
from cbsim.base.text_files import parse_json

DERIVED = "@"
"""Before a name that stands in the place of a key: what it means depends on other flags, GPU or model."""


class Flag(NamedTuple):
    """What a flag becomes: a key with what its text is read by, or the reason why it becomes nothing."""

    key: str = ""
    read: Callable[[str], Any] = str
    """Raises ValueError with what is expected. `None` is what the experiment takes by itself."""
    reason: str = ""

    @property
    def is_switch(self) -> bool:
        """Whether it stands without a value."""
        return self.read in (on, off)


def count(text: str) -> int | None:
    """`8192`, `8k` (thousands), `8K` (of 1024), `1.5G`; `None` for `auto` and -1."""
    if text in ("auto", "-1"):
        return None
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)([kmgKMG]?)(?:i?B)?", text)
    if not found:
        raise ValueError("a whole number, as 8192, 8k or 8K")
    number, unit = found.groups()
    scale = 1024 if unit.isupper() else 1000
    return int(float(number) * scale ** " kmg".index(unit.lower() or " "))


def share(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number") from None


def on(text: str) -> bool:
    """A switch; engines also take `true` and `false` after it."""
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


def off(text: str) -> bool:
    """A switch that turns something off."""
    return not on(text)


def mapping(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError('a JSON object in quotes, as \'{"method": "ngram"}\'')
    return found


def among(**meanings: str | None) -> Callable[[str], str | None]:
    """Words, and what each one means."""

    def read(text: str) -> str | None:
        word = text.lower().replace("-", "_")
        if word not in meanings:
            raise ValueError(f"one of {', '.join(meanings)}")
        return meanings[word]

    return read


dtype = among(
    auto=None, bfloat16="bfloat16", float16="float16", half="float16", float="float32", float32="float32"
)
kv_dtype = among(
    **{"auto": None, "fp8": "fp8", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "fp8_inc": "fp8"},
    **{"bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16"},
)
weight_dtype = among(
    **{"none": None, "compressed_tensors": None, "fp8": "fp8", "modelopt": "fp8", "fbgemm_fp8": "fp8"},
    **{
        "ptpc_fp8": "fp8",
        "w8a8_fp8": "fp8",
        "blockwise_int8": "int8",
        "w8a8_int8": "int8",
        "experts_int8": "int8",
    },
    **dict.fromkeys(
        ("awq", "awq_marlin", "gptq", "gptq_marlin", "bitsandbytes", "auto_round", "w4afp8"), "int4"
    ),
    **{"mxfp4": "mxfp4", "modelopt_fp4": "nvfp4", "nvfp4": "nvfp4", "petit_nvfp4": "nvfp4"},
)

_PARALLEL = {
    "tensor-parallel-size tp-size tp": Flag("parallel.tensor", count),
    "pipeline-parallel-size pp-size pp": Flag("parallel.pipeline", count),
    "data-parallel-size dp-size dp": Flag("parallel.data", count),
}
_COMMON = {
    "model model-path": Flag("@model"),
    "config extra-llm-api-options": Flag("@config"),
    "kv-cache-dtype": Flag("kv_cache.dtype", kv_dtype),
    "dtype": Flag("model.dtype", dtype),
    "quantization q": Flag("model.weight_dtype", weight_dtype),
    "host port api-key served-model-name root-path uds uvicorn-log-level log-level ssl-keyfile ssl-certfile "
    "allowed-origins allowed-methods allowed-headers middleware api-server-count response-role chat-template "
    "tool-call-parser tool-parser reasoning-parser disable-uvicorn-access-log max-log-len "
    "disable-fastapi-docs num-postprocess-workers tokenizer-worker-num": Flag(
        reason="the server in front of the scheduler, which is not modelled"
    ),
    "enable-auto-tool-choice enable-reasoning disable-log-requests enable-log-requests disable-log-stats "
    "enable-metrics enable-request-id-headers enable-server-load-tracking log-requests enable-cache-report "
    "enable-prompt-tokens-details": Flag(read=on, reason="said of requests, not done with them"),
    "kv-events-config otlp-traces-endpoint collect-detailed-traces show-hidden-metrics-for-version "
    "decode-log-interval": Flag(reason="said of requests, not done with them"),
    "trust-remote-code skip-tokenizer-init enable-sleep-mode skip-server-warmup": Flag(
        read=on, reason="before the first request, where the simulation begins"
    ),
    "tokenizer tokenizer-path tokenizer-mode download-dir load-format model-loader-extra-config revision "
    "code-revision tokenizer-revision hf-token seed random-seed config-format safetensors-load-strategy "
    "watchdog-timeout model-impl": Flag(reason="before the first request, where the simulation begins"),
    "generation-config override-generation-config max-logprobs logits-processors structured-outputs-config "
    "guided-decoding-backend grammar-backend sampling-defaults sampling-backend": Flag(
        reason="how tokens are drawn; they are counted here, never computed"
    ),
    "limit-mm-per-prompt mm-processor-kwargs mm-encoder-tp-mode mm-processor-cache-gb media-io-kwargs "
    "language-model-only enable-multimodal allowed-local-media-path mm-attention-backend": Flag(
        reason="encoders are not modelled: count an image's tokens in its prompt"
    ),
    "enable-lora": Flag(read=on, reason="adapters are not modelled: steps would take longer"),
    "lora-modules max-loras max-lora-rank max-cpu-loras lora-paths max-loras-per-batch lora-dir": Flag(
        reason="adapters are not modelled: steps would take longer"
    ),
    "disable-custom-all-reduce enable-torch-compile enable-flashinfer-allreduce-fusion disable-cuda-graph "
    "disable-cuda-graph-padding enable-two-batch-overlap enable-dbo enable-nccl-nvls "
    "calculate-kv-scales": Flag(
        read=on, reason="which kernels run: a profile of such kernels (cost_model) would tell"
    ),
    "attention-backend attention-config moe-backend moe-runner-backend all2all-backend moe-a2a-backend "
    "compilation-config cc O O0 O1 O2 O3 optimization-level cudagraph-capture-sizes cuda-graph-bs "
    "cuda-graph-max-bs max-cudagraph-capture-size max-seq-len-to-capture kernel-config linear-backend "
    "gemm-backend backend mm-fusion deepep-mode fp8-gemm-backend prefill-attention-backend "
    "decode-attention-backend": Flag(
        reason="which kernels run: a profile of such kernels (cost_model) would tell"
    ),
    "headless": Flag(read=on, reason="where processes run"),
    "distributed-executor-backend nnodes node-rank master-addr master-port dist-init-addr nccl-init-addr "
    "data-parallel-size-local dpl data-parallel-address dpa data-parallel-rpc-port dpp data-parallel-backend "
    "dpb data-parallel-start-rank dpr data-parallel-rank ray-workers-use-nsight device gpus-per-node "
    "cluster-size base-gpu-id gpu-id-step mpi num-nodes max-parallel-loading-workers": Flag(
        reason="where processes run"
    ),
    "load-balance-method data-parallel-hybrid-lb data-parallel-external-lb": Flag(
        reason="which rank a request goes to: here the one with the fewest; see replicas.router"
    ),
    "stream-interval stream-output": Flag(
        reason="tokens reach the client in bunches: gaps between them are measured before that here"
    ),
    "cpu-offload-gb offload-backend": Flag(
        reason="weights in host memory are not modelled: steps would take much longer, and more KV would fit"
    ),
    "enable-eplb num-redundant-experts ep-num-redundant-experts eplb-config expert-placement-strategy": Flag(
        reason="experts on several GPUs are not modelled: their load would be evener, and less KV would fit"
    ),
    "rope-scaling rope-theta hf-overrides json-model-override-args": Flag(
        reason="changes the model's own figures: give its config.json with the change in it"
    ),
}
VLLM = {
    **_COMMON,
    **_PARALLEL,
    "max-num-batched-tokens": Flag("scheduler.max_tokens_per_step", count),
    "max-num-seqs": Flag("scheduler.max_num_seqs", count),
    "max-num-active-seqs": Flag("scheduler.max_num_active_seqs", count),
    "long-prefill-token-threshold": Flag("scheduler.chunk_size", count),
    "long-prefill-token-threshold-adaptive": Flag("scheduler.adaptive_chunk_size", on),
    "enable-chunked-prefill": Flag("scheduler.enable_chunked_prefill", on),
    "scheduling-policy": Flag("scheduler.policy", among(fcfs="fcfs", priority="priority")),
    "async-scheduling": Flag("scheduler.async_scheduling", on),
    "scheduler-reserve-full-isl": Flag("scheduler.reserve_full_isl", on),
    "watermark": Flag("scheduler.watermark", share),
    "prefill-schedule-interval": Flag("scheduler.prefill_schedule_interval", count),
    "enable-prefix-caching": Flag("kv_cache.prefix_caching", on),
    "prefix-cache-retention-interval": Flag("kv_cache.prefix_cache_retention_interval", count),
    "block-size": Flag("kv_cache.block_size", count),
    "gpu-memory-utilization": Flag("kv_cache.gpu_memory_utilization", share),
    "num-gpu-blocks-override": Flag("@blocks", count),
    "kv-cache-memory-bytes kv-cache-memory": Flag("@kv_bytes", count),
    "disable-hybrid-kv-cache-manager": Flag("kv_cache.hybrid", off),
    "enforce-eager": Flag("kv_cache.cuda_graphs", off),
    "max-model-len": Flag("model.max_model_len", count),
    "enable-expert-parallel ep": Flag("@experts", on),
    "speculative-config sc": Flag("@speculative", mapping),
    "kv-transfer-config": Flag("@transfer", mapping),
    "kv-offloading-size": Flag("@offloading", share),
    "performance-mode": Flag(
        "@performance", among(balanced=None, interactivity=None, throughput="throughput")
    ),
    "max-num-scheduled-tokens": Flag(
        reason="a lower budget of the scheduler alone: set scheduler.max_tokens_per_step to it"
    ),
    "max-num-queued-reqs max-num-queued-tokens": Flag(reason="refused by the server, before the scheduler"),
    "max-num-partial-prefills max-long-partial-prefills": Flag(
        reason="not followed by vLLM's V1 scheduler beyond 1"
    ),
    "swap-space num-scheduler-steps preemption-mode use-v2-block-manager": Flag(
        reason="of vLLM's V0 engine; V1 has no such thing"
    ),
    "prefix-caching-hash-algo prefix-match-unit kv-offloading-backend": Flag(reason="CPU time only"),
    "decode-context-parallel-size dcp prefill-context-parallel-size pcp": Flag(
        reason="tokens dealt out to GPUs are not modelled: more KV would fit where KV heads are copied"
    ),
    "scheduler-cls kv-sharing-fast-prefill swa-bounded-replay mamba-cache-mode mamba-block-size "
    "kv-cache-dtype-skip-layers worker-cls additional-config task runner convert ubatch-size": Flag(
        reason="another code path, which is not modelled"
    ),
}
SGLANG = {
    **_COMMON,
    **_PARALLEL,
    "expert-parallel-size ep-size ep": Flag("parallel.expert", count),
    "enable-dp-attention": Flag("@dp_attention", on),
    "chunked-prefill-size": Flag("scheduler.max_tokens_per_step", count),
    "max-running-requests": Flag("scheduler.max_num_seqs", count),
    "max-total-tokens": Flag("@kv_tokens", count),
    "mem-fraction-static": Flag("kv_cache.gpu_memory_utilization", share),
    "page-size": Flag("kv_cache.block_size", count),
    "context-length": Flag("model.max_model_len", count),
    "enable-mixed-chunk": Flag("@mixed", on),
    "disable-overlap-schedule": Flag("scheduler.async_scheduling", off),
    "disable-radix-cache": Flag("@radix", off),
    "max-prefill-tokens": Flag(reason="a batch of prompts ends with chunked-prefill-size, which is less"),
    "schedule-policy schedule-conservativeness": Flag(
        reason="requests are admitted in order of arrival, with the length of each answer known"
    ),
    "speculative-algorithm speculative-draft-model-path speculative-num-steps speculative-eagle-topk "
    "speculative-num-draft-tokens speculative-draft": Flag(
        reason="drafts are not taken over: TPOT would be shorter"
    ),
    "disaggregation-mode disaggregation-transfer-backend disaggregation-ib-device "
    "disaggregation-bootstrap-port": Flag(
        reason="prefill and decode apart: one command does not tell the other side"
    ),
    "enable-hierarchical-cache hicache-ratio hicache-size hicache-write-policy": Flag(
        reason="a tier of KV below the GPU: more of each prompt would be found"
    ),
}
TRTLLM = {
    **_COMMON,
    **_PARALLEL,
    "ep-size": Flag("parallel.expert", count),
    "enable-attention-dp": Flag("@dp_attention", on),
    "max-batch-size": Flag("scheduler.max_num_seqs", count),
    "max-num-tokens": Flag("scheduler.max_tokens_per_step", count),
    "max-seq-len max-input-len": Flag("model.max_model_len", count),
    "enable-chunked-prefill": Flag("scheduler.enable_chunked_prefill", on),
    "disable-overlap-scheduler": Flag("scheduler.async_scheduling", off),
    "free-gpu-memory-fraction kv-cache-free-gpu-memory-fraction "
    "kv-cache-config.free-gpu-memory-fraction": Flag("@free_share", share),
    "kv-cache-config.enable-block-reuse": Flag("kv_cache.prefix_caching", on),
    "kv-cache-config.dtype": Flag("kv_cache.dtype", kv_dtype),
    "kv-cache-config.max-tokens": Flag("@kv_tokens", count),
    "kv-cache-config.tokens-per-block": Flag("kv_cache.block_size", count),
    "max-beam-width": Flag(reason="one beam for each request"),
    "speculative-config.decoding-type speculative-config.max-draft-len "
    "speculative-config.speculative-model": Flag(reason="set scheduler.speculative: TPOT would be shorter"),
}
ENGINES = {"vLLM": VLLM, "SGLang": SGLANG, "TensorRT-LLM": TRTLLM}
FLAGS = {
    engine: {name: flag for names, flag in rows.items() for name in names.split()}
    for engine, rows in ENGINES.items()
}
"""By engine and name, without dashes before it."""

_DERIVED_KEYS = {
    **{
        "@blocks": "kv_cache.num_blocks",
        "@kv_bytes": "kv_cache.num_blocks",
        "@kv_tokens": "kv_cache.num_blocks",
    },
    **{
        "@experts": "parallel.expert",
        "@dp_attention": "parallel.data",
        "@speculative": "scheduler.speculative",
    },
    **{"@transfer": "scheduler.connector", "@free_share": "kv_cache.gpu_memory_utilization"},
}
_OTHERS = {
    "num_gpu_blocks": "kv_cache.num_blocks",
    "num_speculative_tokens": "scheduler.speculative.num_tokens",
    "acceptance_rate": "scheduler.speculative.acceptance",
    "num_replicas": "replicas.count",
    "burstiness": "workload.arrivals.burstiness",
    "request_rate": "workload.arrivals.rate_per_s",
    "qps": "workload.arrivals.rate_per_s",
    "max_concurrency": "workload.concurrency",
    "num_prompts": "workload.num_requests",
    "dataset_path": "workload.path",
    "input_len": "workload.prompt_tokens",
    "random_input_len": "workload.prompt_tokens",
    "output_len": "workload.output_tokens",
    "random_output_len": "workload.output_tokens",
    "num_hidden_layers": "model.num_layers",
    "num_attention_heads": "model.num_heads",
    "num_key_value_heads": "model.num_kv_heads",
    "head_dim": "model.head_size",
    "max_position_embeddings": "model.max_model_len",
    "tie_word_embeddings": "model.tie_embeddings",
    "torch_dtype": "model.dtype",
    "num_experts": "model.experts.num_experts",
    "num_local_experts": "model.experts.num_experts",
    "n_routed_experts": "model.experts.num_experts",
    "num_experts_per_tok": "model.experts.num_experts_per_token",
    "moe_intermediate_size": "model.experts.intermediate_size",
    "kv_lora_rank": "model.mla.kv_lora_rank",
}
"""Names of benchmarks and of Hugging Face."""
OTHER_NAMES = {
    name.replace("-", "_"): _DERIVED_KEYS.get(flag.key, flag.key)
    for engine in FLAGS.values()
    for name, flag in engine.items()
    if len(name) > 2 and (flag.key in _DERIVED_KEYS or (flag.key and not flag.key.startswith(DERIVED)))
} | _OTHERS
"""What settings are called elsewhere -> our dotted key."""


def did_you_mean_key(section: str, name: str, allowed: list[str]) -> str:
    """As `did_you_mean`, where others' name for a setting of any section leads to it; `section` is dotted."""
    key = OTHER_NAMES.get(name.replace("-", "_"), "")
    there, _, last = key.rpartition(".")
    if there == section:
        key = last if last in allowed else ""
    return f"; did you mean '{key}'?" if key else did_you_mean(name, allowed)
