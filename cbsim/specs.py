"""ModelSpec and GpuSpec: what a model weighs and moves, what a GPU can do, each figure with its source."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cbsim.base.units import GIB, GIGA, TERA
from cbsim.config.section import Section

BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}


class ModelSpec(Section):
    """A decoder-only transformer with grouped-query attention and a gated MLP (Llama, Mistral, Qwen)."""

    name: str
    """Short name, as in `configs/models/NAME.yaml`."""
    num_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    """Query heads."""
    num_kv_heads: int = Field(ge=1)
    """Key and value heads; each serves `num_heads / num_kv_heads` query heads."""
    head_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    """Width of the gated MLP."""
    vocab_size: int = Field(ge=1)
    tie_embeddings: bool = False
    """Whether the LM head is the embedding table itself."""
    max_model_len: int = Field(ge=1)
    """Longest context the model was made for, tokens."""
    dtype: Literal["float32", "bfloat16", "float16", "fp8"] = "bfloat16"
    """Of weights, activations and KV cache."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    norm_eps: float = Field(default=1e-5, gt=0)
    qk_norm: bool = False
    """Whether queries and keys are normalised per head (Qwen3)."""
    sources: dict[str, str] = Field(default_factory=dict)
    """Where the figures come from."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelSpec:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})"
            )
        return self

    @property
    def element_bytes(self) -> int:
        """Bytes of one weight, activation or KV element."""
        return BYTES_PER_ELEMENT[self.dtype]

    @property
    def layer_weights(self) -> int:
        """Matrix weights of one layer: q, k, v, o, gate, up, down."""
        attention = self.hidden_size * self.head_size * (2 * self.num_heads + 2 * self.num_kv_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def num_parameters(self) -> int:
        """All weights: layers with their norms, embedding, final norm, and the LM head unless tied."""
        norms = 2 * self.hidden_size + (2 * self.head_size if self.qk_norm else 0)
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.num_layers * (self.layer_weights + norms) + self.hidden_size + embeddings

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, over all GPUs of a replica."""
        return self.num_parameters * self.element_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token: 2 x layers x KV heads x head size x element."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * self.element_bytes

    @property
    def dense_flop_per_token(self) -> int:
        """FLOP of all layers' matrix products for one token (2 per weight), LM head and attention apart."""
        return 2 * self.num_layers * self.layer_weights

    @property
    def logits_flop(self) -> int:
        """FLOP of one row of logits."""
        return 2 * self.hidden_size * self.vocab_size

    @property
    def attention_flop_per_pair(self) -> int:
        """FLOP of all layers for one query token and one key: per head element 2 for QK and 2 for PV."""
        return 4 * self.num_layers * self.num_heads * self.head_size


class GpuSpec(Section):
    """One GPU by its data sheet: decimal TFLOP/s and GB/s, binary GiB."""

    name: str
    """Short name, as in `configs/gpus/NAME.yaml`."""
    memory_gib: float = Field(gt=0)
    """Usable device memory, GiB (2**30 bytes)."""
    memory_bandwidth_gb_s: float = Field(gt=0)
    """Peak memory bandwidth, 1e9 bytes a second."""
    bf16_tflops: float = Field(gt=0)
    """Peak dense bf16 and fp16 tensor throughput, 1e12 FLOP a second, without sparsity."""
    fp8_tflops: float | None = Field(default=None, gt=0)
    """Peak dense fp8 tensor throughput, 1e12 FLOP a second; null where the GPU has none."""
    fp32_tflops: float = Field(gt=0)
    """Peak fp32 throughput, 1e12 FLOP a second."""
    link_gb_s: float = Field(gt=0)
    """Bandwidth to the other GPUs of a replica, one direction, 1e9 bytes a second."""
    host_link_gb_s: float = Field(gt=0)
    """Bandwidth to host memory, one direction, 1e9 bytes a second."""
    sources: dict[str, str] = Field(default_factory=dict)
    """Where the figures come from."""

    @property
    def memory_bytes(self) -> int:
        """Device memory in bytes."""
        return int(self.memory_gib * GIB)

    @property
    def memory_bytes_per_s(self) -> float:
        """Peak memory bandwidth in bytes a second."""
        return self.memory_bandwidth_gb_s * GIGA

    @property
    def link_bytes_per_s(self) -> float:
        """Bandwidth between the GPUs of a replica in bytes a second."""
        return self.link_gb_s * GIGA

    @property
    def host_link_bytes_per_s(self) -> float:
        """Bandwidth to host memory in bytes a second."""
        return self.host_link_gb_s * GIGA

    def peak_flop_per_s(self, dtype: str) -> float:
        """Peak FLOP a second at a dtype; fp8 falls back to bf16 where the GPU has no fp8 units."""
        if dtype == "float32":
            return self.fp32_tflops * TERA
        if dtype == "fp8" and self.fp8_tflops is not None:
            return self.fp8_tflops * TERA
        return self.bf16_tflops * TERA
