"""What engines launch in a layer beside products, attention, experts and collectives, and what they overlap.

NVIDIA's tables say nothing of it; the engines' own code does.
"""

from __future__ import annotations

from typing import NamedTuple

from cbsim.cost.collectives import num_norm_reduces
from cbsim.specs import ModelSpec, ParallelSpec


class Engine(NamedTuple):
    """A framework's habits."""

    position_kernels: float
    """Kernels a layer for rotary positions and KV cache that its attention was timed without."""
    reduces_with_norms: bool = False
    """Whether its all-reduces add the residual, normalise and quantise to FP8, unless said otherwise."""
    quantises_apart: bool = False
    """Whether quantising what a norm gives takes a kernel where no all-reduce does both."""
    shared_beside_tokens: int = 0
    """Tokens a step up to which it runs shared experts beside the routed ones."""


ENGINES = {
    "vllm": Engine(2, shared_beside_tokens=256),
    "sglang": Engine(1, shared_beside_tokens=1024),
    "trtllm": Engine(0, reduces_with_norms=True, quantises_apart=True, shared_beside_tokens=1024),
}
"""By name.

* TensorRT-LLM: `AllReduceFusionOp` of its `modeling_llama.py`, `modeling_gpt_oss.py` and
  `modeling_deepseekv3.py`, shared experts by `maybe_execute_in_parallel` in CUDA graphs; its attention, as
  timed, rotates and writes the cache; norms alone (`RMSNorm`) don't quantise.
* vLLM: the cache is written apart (`forward_includes_kv_cache_update`), shared experts overlap up to
  `VLLM_SHARED_EXPERTS_STREAM_TOKEN_THRESHOLD`; Inductor generates norms that quantise.
* SGLang: `DUAL_STREAM_TOKEN_THRESHOLD` of its `deepseek_v2.py`, or the shared expert is one more routed one.
"""


def reduces_with_norms(engine: Engine, model: ModelSpec, parallel: ParallelSpec) -> bool:
    """Whether a layer's norms cost no kernels: over several GPUs, each with all tokens.

    TensorRT-LLM's dense Qwen3 (`modeling_qwen3.py`), alone among its models here, launches them apart.
    """
    is_apart = model.qk_norm and model.experts is None
    return engine.reduces_with_norms and not is_apart and parallel.tensor > 1 and parallel.data == 1


def attention_kernels(engine: Engine, model: ModelSpec) -> float:
    """Kernels of a layer's attention beside products and attention itself: positions, norms of heads or
    latent vectors.
    """
    return engine.position_kernels + (1 if model.qk_norm else 0) + (2 if model.mla is not None else 0)


def small_kernels(engine: Engine, model: ModelSpec, parallel: ParallelSpec) -> float:
    """Kernels of a layer: norms of its input, those of attention, activation or choice of experts, the sum
    of shared and routed ones.
    """
    kernels = 1.0 + attention_kernels(engine, model)
    if not reduces_with_norms(engine, model, parallel):
        kernels += 2
        if engine.quantises_apart:
            kernels += sum(model.weight_dtype_of(part) == "fp8" for part in ("attention", "mlp"))
    if num_norm_reduces(model, parallel):
        kernels += 1
    if model.experts is not None and model.experts.shared_intermediate_size:
        kernels += model.num_expert_layers / model.num_layers
    return kernels
