"""The checkpoints that were served: which model each is, and in which dtypes its parts are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cbsim.lab.calibrate.named_spec import load_model
from cbsim.lab.calibrate.nvidia import DISTRIBUTION
from cbsim.specs import ModelSpec


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model as it was published for serving."""

    model: str
    """What a reader calls it."""
    spec: str
    """Its name in `configs/models`."""
    dtype: str
    """What a reader calls its dtypes."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Figures of the model that are otherwise than in `configs/models`."""
    kv_dtypes: Mapping[str, str] = field(default_factory=dict)
    """The KV cache's by system or framework, where it isn't the model's."""

    @property
    def has_experts(self) -> bool:
        """Whether it is a mixture of experts."""
        return self.model in WITH_EXPERTS

    @property
    def distribution(self) -> str:
        """How its tokens are spread over experts: DeepSeek-R1's as NVIDIA saw them (`_power_law_alpha` of
        aiconfigurator's `deepseek.py`).
        """
        return "power_law_1.01" if self.model == R1 else DISTRIBUTION

    def load(self, framework: str, system: str) -> ModelSpec:
        """The model, with the KV cache that a framework keeps on a system."""
        kv_dtype = self.kv_dtypes.get(f"{framework}, {system}", self.kv_dtypes.get(framework))
        changes = {**self.changes, **({"kv_dtype": kv_dtype} if kv_dtype else {})}
        return ModelSpec.model_validate(_model(self.spec).model_dump() | changes)


@cache
def _model(name: str) -> ModelSpec:
    return load_model(name)


FP8 = {"weight_dtype": "fp8", "kv_dtype": "fp8"}
"""NVIDIA's FP8 checkpoints: all but the LM head, the KV cache as well (`hf_quant_config.json`)."""
NVFP4 = {"weight_dtype": "nvfp4", "kv_dtype": "fp8"}
"""NVIDIA's NVFP4 checkpoints: all but the LM head, the KV cache in FP8."""
NVFP4_EXPERTS = {**NVFP4, "weight_dtypes": {"attention": "bfloat16"}}
"""The same with attention in bf16: DeepSeek's (but for its output projection), Kimi's and MiniMax's."""
BLOCKS = {"weight_dtype": "fp8_block"}
INT4_EXPERTS = {
    "weight_dtype": "bfloat16",
    "weight_dtypes": {"experts": "int4"},
}
"""Moonshot's own checkpoint: routed experts in 4 bits, all else in bf16."""
LLAMA_CACHES = {"vllm, h100_sxm": "bfloat16"}
"""InferenceMAX's scripts ask for an FP8 cache on H200s and B200s, on H100s one of two does not
(`benchmarks/70b_fp8_h100_docker.sh`). Where it was full, servers held by Little's law 225,000 tokens of
prompts of 8192 on two H100s, what fits beside weights in 16 bits, and 357,000 on an H200, what fits in FP8.
"""
R1_CACHES = {"trtllm": "fp8", "sglang": "fp8", "sglang, h200_sxm": "bfloat16"}
"""TensorRT-LLM was told so by the scripts; SGLang's MLA kernel for Blackwell keeps FP8."""
OSS_CACHES = {"trtllm": "fp8", "vllm, b200_sxm": "fp8"}
"""As the scripts say, for vLLM on Blackwell alone."""

LLAMA_8B, LLAMA_70B, QWEN_32B, QWEN_235B = "Llama-3.1-8B", "Llama-3.1-70B", "Qwen3-32B", "Qwen3-235B-A22B"
R1, KIMI, MINIMAX, OSS = "DeepSeek-R1", "Kimi-K2.5", "MiniMax-M2.5", "gpt-oss-120b"
WITH_EXPERTS = (QWEN_235B, R1, KIMI, MINIMAX, OSS)

CHECKPOINTS: Mapping[tuple[str, str], Checkpoint] = {
    ("Qwen/Qwen3-32B", "bf16"): Checkpoint(QWEN_32B, "qwen3-32b", "bf16"),
    ("Qwen/Qwen3-32B", "fp8"): Checkpoint(QWEN_32B, "qwen3-32b", "fp8_block", {**BLOCKS, "kv_dtype": "fp8"}),
    ("Qwen/Qwen3-32B", "fp4"): Checkpoint(QWEN_32B, "qwen3-32b", "nvfp4", NVFP4),
    ("nvidia/Qwen3-32B-NVFP4", "fp4"): Checkpoint(QWEN_32B, "qwen3-32b", "nvfp4", NVFP4),
    ("meta-llama/Llama-3.1-8B-Instruct", "bf16"): Checkpoint(LLAMA_8B, "llama-3-8b", "bf16"),
    ("meta-llama/Llama-3.1-8B-Instruct", "fp8"): Checkpoint(LLAMA_8B, "llama-3.1-8b", "fp8_block", BLOCKS),
    ("nvidia/Llama-3.1-8B-Instruct-FP8", "fp8"): Checkpoint(LLAMA_8B, "llama-3.1-8b", "fp8", FP8),
    ("meta-llama/Llama-3.1-70B", "fp8"): Checkpoint(LLAMA_70B, "llama-3.1-70b", "fp8", FP8, LLAMA_CACHES),
    ("meta-llama/Llama-3.1-70B", "fp4"): Checkpoint(LLAMA_70B, "llama-3.1-70b", "nvfp4", NVFP4),
    ("openai/gpt-oss-120b", "fp4"): Checkpoint(OSS, "gpt-oss-120b", "mxfp4", {}, OSS_CACHES),
    ("openai/gpt-oss-120b", "fp8"): Checkpoint(OSS, "gpt-oss-120b", "mxfp4", {}, OSS_CACHES),
    ("MiniMaxAI/MiniMax-M2.5", "fp8"): Checkpoint(MINIMAX, "minimax-m2", "fp8_block", BLOCKS),
    ("MiniMaxAI/MiniMax-M2.5", "fp4"): Checkpoint(MINIMAX, "minimax-m2", "nvfp4", NVFP4_EXPERTS),
    ("Qwen/Qwen3-235B-A22B-FP8", "fp8"): Checkpoint(QWEN_235B, "qwen3-235b-a22b", "fp8_block", BLOCKS),
    ("moonshotai/Kimi-K2.5", "fp4"): Checkpoint(KIMI, "kimi-k2", "nvfp4", NVFP4_EXPERTS),
    ("moonshotai/Kimi-K2.5", "int4"): Checkpoint(KIMI, "kimi-k2", "int4", INT4_EXPERTS),
    ("deepseek-ai/DeepSeek-R1", "fp8"): Checkpoint(R1, "deepseek-r1", "fp8_block", BLOCKS, R1_CACHES),
    ("deepseek-ai/DeepSeek-V3", "fp8"): Checkpoint(R1, "deepseek-r1", "fp8_block", BLOCKS, R1_CACHES),
    ("deepseek-ai/DeepSeek-R1", "fp4"): Checkpoint(R1, "deepseek-r1", "nvfp4", NVFP4_EXPERTS),
    ("deepseek-ai/DeepSeek-V3", "fp4"): Checkpoint(R1, "deepseek-r1", "nvfp4", NVFP4_EXPERTS),
    ("nvidia/DeepSeek-R1-NVFP4", "fp4"): Checkpoint(R1, "deepseek-r1", "nvfp4", NVFP4_EXPERTS),
    ("nvidia/DeepSeek-V3.1-NVFP4", "fp4"): Checkpoint(R1, "deepseek-r1", "nvfp4", NVFP4_EXPERTS),
}
"""By the sample's name and precision: gpt-oss "fp8" and "fp4" are bf16 with experts in mxfp4, "fp8" of
DeepSeek, MiniMax and both Qwen3 is in blocks of 128 x 128 (their `config.json`). Of Qwen3-32B this is Qwen's
own checkpoint, as SGLang's rows of it say; TensorRT-LLM's steps have a hump at 32 decodes, as its products in
blocks do and its others do not."""
