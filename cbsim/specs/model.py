"""ModelSpec: what a model weighs and moves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cbsim.config.section import Section
from cbsim.specs.kv_plan import LayerKind

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
    sliding_window: int | None = Field(default=None, ge=1)
    """Tokens that the attention of sliding layers reaches back, the present one included."""
    num_sliding_layers: int = Field(default=0, ge=0)
    """Layers whose attention slides; the others reach back to the first token."""
    sources: dict[str, str] = Field(default_factory=dict)
    """Where the figures come from."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelSpec:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})"
            )
        return self

    @model_validator(mode="after")
    def _slides_over_a_window(self) -> ModelSpec:
        if self.num_sliding_layers > self.num_layers:
            raise ValueError(f"got {self.num_sliding_layers} sliding layers of {self.num_layers}")
        if self.num_sliding_layers and self.sliding_window is None:
            raise ValueError("got num_sliding_layers without sliding_window; expected both or neither")
        return self

    @property
    def layer_kinds(self) -> list[LayerKind]:
        """Layers that attend alike, the sliding ones first."""
        token_bytes = self.kv_bytes_per_token // self.num_layers
        sliding = LayerKind(self.num_sliding_layers, token_bytes, self.sliding_window or 0)
        full = LayerKind(self.num_layers - self.num_sliding_layers, token_bytes)
        return [kind for kind in (sliding, full) if kind.num_layers]

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
