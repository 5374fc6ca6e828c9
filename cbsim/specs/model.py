"""ModelSpec: what a model weighs, moves and computes, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from cbsim.config.section import Section
from cbsim.specs.kv_plan import LayerKind
from cbsim.specs.parallel import ONE_GPU, ParallelSpec
from cbsim.specs.precision import BYTES_PER_ELEMENT, Dtype, WeightDtype

PartName = Literal["attention", "mlp", "experts", "shared_experts", "router", "head"]
"""Kinds of weight matrices: projections of attention, dense MLPs, routed and shared experts, their router,
and the LM head with the embedding."""


MAX_PARAMETERS = 1e15
"""Hundreds of times what the largest models have."""


class MlaSpec(Section):
    """Multi-head latent attention: keys and values of all heads come from one latent vector a token
    (DeepSeek-V2, arXiv 2405.04434, section 2.1).
    """

    kv_lora_rank: int = Field(ge=1)
    """Width of the latent vector, which is what the KV cache holds."""
    qk_rope_head_dim: int = Field(ge=1)
    """Width of the rotary key beside it, one for all heads."""
    qk_nope_head_dim: int = Field(ge=1)
    """Width of a head's query and key without rotary positions."""
    v_head_dim: int = Field(ge=1)
    """Width of a head's value."""
    q_lora_rank: int | None = Field(default=None, ge=1)
    """Width of the latent query; null projects queries directly."""


class ExpertsSpec(Section):
    """A mixture of experts in place of the MLP: a router sends each token to a few of them."""

    num_experts: int = Field(ge=1)
    """Routed experts of a layer."""
    num_experts_per_token: int = Field(ge=1)
    """Of them, those that a token goes to."""
    intermediate_size: int = Field(ge=1)
    """Width of one expert's gated MLP."""
    shared_intermediate_size: int = Field(default=0, ge=0)
    """Width of the experts that every token goes to, all together; 0 for none."""
    num_layers: int | None = Field(default=None, ge=1)
    """Layers with experts; the others have the dense MLP. Null for all."""

    @model_validator(mode="after")
    def _there_are_enough(self) -> ExpertsSpec:
        if self.num_experts_per_token > self.num_experts:
            raise ValueError(f"got {self.num_experts_per_token} experts a token of {self.num_experts}")
        return self


class AttentionLayers(Section):
    """Layers that attend alike, where a model's differ in more than the window."""

    num_layers: int = Field(ge=1)
    window: int | None = Field(default=None, ge=1)
    """Tokens that attention reaches back, the present one included; null for all."""
    num_heads: int | None = Field(default=None, ge=1)
    """Null takes the model's, as for the next three."""
    num_kv_heads: int | None = Field(default=None, ge=1)
    head_size: int | None = Field(default=None, ge=1)
    value_head_size: int | None = Field(default=None, ge=1)
    """Width of a value; null takes that of a key."""


@dataclass(frozen=True, slots=True)
class AttentionKind:
    """Layers that attend alike, every figure known."""

    num_layers: int
    window: int
    """Tokens that attention reaches back; 0 for all."""
    num_heads: int
    num_kv_heads: int
    """With latent attention 1."""
    query_size: int
    """Width of a head's query and key."""
    value_size: int
    """Width of a head's value."""
    kv_elements: int
    """Elements of the KV cache for one token in one layer."""
    projection_weights: int
    """Matrix weights of one layer's projections."""
    is_latent: bool = False
    decode_query_size: int = 0
    """Width of a head's query and key where keys are used as they lie in the cache; 0 for `query_size`."""
    decode_value_size: int = 0

    @property
    def flop_per_pair(self) -> int:
        """FLOP of one layer for one query token and one key: 2 an element of each query and value."""
        return 2 * self.num_heads * (self.query_size + self.value_size)

    @property
    def decode_flop_per_pair(self) -> int:
        """The same of a decode. Latent keys and values are not unpacked then: heads' queries are projected
        into the latent space instead, and attend there (DeepSeek-V2, appendix C).
        """
        query_size, value_size = (
            self.decode_query_size or self.query_size,
            self.decode_value_size or self.value_size,
        )
        return 2 * self.num_heads * (query_size + value_size)

    def kv_elements_of_gpu(self, num_gpus: int) -> int:
        """Elements of the KV cache on each of the GPUs that share the layer: heads are dealt out, and copied
        where there are more GPUs than heads; a latent vector is copied to all.
        """
        if self.is_latent:
            return self.kv_elements
        return self.kv_elements // self.num_kv_heads * max(1, -(-self.num_kv_heads // num_gpus))


@dataclass(frozen=True, slots=True)
class Part:
    """Weight matrices of one kind, in all layers."""

    name: PartName
    num_weights: int
    num_used: int
    """Of them, those that one token is multiplied with."""
    dtype: WeightDtype

    @property
    def num_bytes(self) -> float:
        """Bytes, scales included."""
        return self.num_weights * BYTES_PER_ELEMENT[self.dtype]


class ModelSpec(Section):
    """A decoder-only transformer: grouped-query or latent attention, perhaps with windows; gated MLPs or
    experts.
    """

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
    """Width of the dense gated MLP."""
    vocab_size: int = Field(ge=1)
    tie_embeddings: bool = False
    """Whether the LM head is the embedding table itself."""
    max_model_len: int = Field(ge=1)
    """Longest context the model was made for, tokens."""
    dtype: Dtype = "bfloat16"
    """Of activations, and of weights and KV cache where nothing else is said."""
    weight_dtype: WeightDtype | None = None
    """Of weights; null takes `dtype`. The LM head, the embedding and the router keep `dtype`."""
    weight_dtypes: dict[PartName, WeightDtype] = Field(default_factory=dict)
    """Kinds of weights that are stored otherwise than `weight_dtype` says."""
    kv_dtype: Dtype | None = None
    """Of the KV cache, unless `kv_cache.dtype` says otherwise; null takes `dtype`."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    norm_eps: float = Field(default=1e-5, gt=0)
    qk_norm: bool = False
    """Whether queries and keys are normalised per head (Qwen3)."""
    qk_norm_of_all_heads: bool = False
    """Whether those norms are of all heads together (MiniMax), so that GPUs that share them sum squares."""
    attention_bias: bool = False
    """Whether the projections to queries, keys and values have a bias (Qwen2)."""
    sliding_window: int | None = Field(default=None, ge=1)
    """Tokens that the attention of sliding layers reaches back, the present one included."""
    num_sliding_layers: int = Field(default=0, ge=0)
    """Layers whose attention slides; the others reach back to the first token."""
    attention_layers: list[AttentionLayers] | None = Field(default=None, min_length=1)
    """Kinds of layers by attention, where they differ in heads as well; null derives them from the above."""
    mla: MlaSpec | None = None
    """Latent attention in all layers, in place of grouped queries."""
    experts: ExpertsSpec | None = None
    """Experts in place of the MLP of some or all layers."""
    not_modelled: list[str] = Field(default_factory=list)
    """What of the model changes its cost and is left out, a sentence each."""
    sources: dict[str, str] = Field(default_factory=dict)
    """Where the figures come from."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelSpec:
        for kind in self.attention_kinds:
            if kind.num_heads % kind.num_kv_heads:
                raise ValueError(
                    f"num_heads ({kind.num_heads}) must be a multiple of num_kv_heads ({kind.num_kv_heads})"
                )
        return self

    @model_validator(mode="after")
    def _layers_add_up(self) -> ModelSpec:
        if self.num_sliding_layers > self.num_layers:
            raise ValueError(f"got {self.num_sliding_layers} sliding layers of {self.num_layers}")
        if self.num_sliding_layers and self.sliding_window is None:
            raise ValueError("got num_sliding_layers without sliding_window; expected both or neither")
        num_attending = sum(each.num_layers for each in self.attention_layers or ())
        if self.attention_layers is not None and num_attending != self.num_layers:
            raise ValueError(f"got attention_layers for {num_attending} layers; expected {self.num_layers}")
        if len({kind.window for kind in self.attention_kinds if kind.window}) > 1:
            raise ValueError("got attention_layers with several windows; expected one")
        if self.num_expert_layers > self.num_layers:
            raise ValueError(f"got experts in {self.num_expert_layers} layers of {self.num_layers}")
        if (number := self.num_parameters) > MAX_PARAMETERS:
            raise ValueError(f"got {number:.3g} parameters; expected at most {MAX_PARAMETERS:.0g}")
        return self

    @property
    def attention_kinds(self) -> tuple[AttentionKind, ...]:
        """Layers that attend alike, those with a window first."""
        if self.mla is not None:
            return (self._latent(self.mla),)
        layers = self.attention_layers
        if layers is None:
            num_full = self.num_layers - self.num_sliding_layers
            window = self.sliding_window
            numbers = [(self.num_sliding_layers, window), (num_full, None)]
            layers = [AttentionLayers(num_layers=n, window=w) for n, w in numbers if n > 0]
        return tuple(self._grouped(each) for each in sorted(layers, key=lambda each: each.window is None))

    def _grouped(self, layers: AttentionLayers) -> AttentionKind:
        num_heads, head_size = layers.num_heads or self.num_heads, layers.head_size or self.head_size
        num_kv_heads, value_size = (
            layers.num_kv_heads or self.num_kv_heads,
            layers.value_head_size or head_size,
        )
        kv_elements = num_kv_heads * (head_size + value_size)
        return AttentionKind(
            layers.num_layers,
            layers.window or 0,
            num_heads,
            num_kv_heads,
            head_size,
            value_size,
            kv_elements,
            self.hidden_size * (num_heads * (head_size + value_size) + kv_elements),
        )

    def _latent(self, mla: MlaSpec) -> AttentionKind:
        heads, hidden = self.num_heads, self.hidden_size
        query_size = mla.qk_nope_head_dim + mla.qk_rope_head_dim
        queries = hidden * heads * query_size
        if mla.q_lora_rank is not None:
            queries = mla.q_lora_rank * (hidden + heads * query_size)
        latent = hidden * (mla.kv_lora_rank + mla.qk_rope_head_dim)
        unpacked = mla.kv_lora_rank * heads * (mla.qk_nope_head_dim + mla.v_head_dim)
        return AttentionKind(
            self.num_layers,
            0,
            heads,
            1,
            query_size,
            mla.v_head_dim,
            mla.kv_lora_rank + mla.qk_rope_head_dim,
            queries + latent + unpacked + heads * mla.v_head_dim * hidden,
            is_latent=True,
            decode_query_size=mla.kv_lora_rank + mla.qk_rope_head_dim,
            decode_value_size=mla.kv_lora_rank,
        )

    @property
    def window(self) -> int:
        """Tokens that sliding layers reach back; 0 if there are none."""
        return max(kind.window for kind in self.attention_kinds)

    @property
    def num_windowed_layers(self) -> int:
        """Layers with a window."""
        return sum(kind.num_layers for kind in self.attention_kinds if kind.window)

    @property
    def num_expert_layers(self) -> int:
        """Layers with experts."""
        if self.experts is None:
            return 0
        return self.num_layers if self.experts.num_layers is None else self.experts.num_layers

    @property
    def parts(self) -> tuple[Part, ...]:
        """Weight matrices by kind, those that there are; the embedding, which no token is multiplied with,
        counts to the LM head's.
        """
        hidden, experts = self.hidden_size, self.experts
        projections = sum(kind.num_layers * kind.projection_weights for kind in self.attention_kinds)
        mlps = (self.num_layers - self.num_expert_layers) * 3 * hidden * self.intermediate_size
        head = self.vocab_size * hidden
        numbers: list[tuple[PartName, int, int]] = [
            ("attention", projections, projections),
            ("mlp", mlps, mlps),
            ("head", head * (1 if self.tie_embeddings else 2), head),
        ]
        if experts is not None:
            expert = self.num_expert_layers * 3 * hidden * experts.intermediate_size
            shared = self.num_expert_layers * 3 * hidden * experts.shared_intermediate_size
            router = self.num_expert_layers * hidden * experts.num_experts
            numbers += [
                ("experts", expert * experts.num_experts, expert * experts.num_experts_per_token),
                ("shared_experts", shared, shared),
                ("router", router, router),
            ]
        return tuple(Part(*each, self.weight_dtype_of(each[0])) for each in numbers if each[1])

    def weight_dtype_of(self, part: PartName) -> WeightDtype:
        """How a kind of weights is stored."""
        usual = self.dtype if part in ("head", "router") else self.weight_dtype or self.dtype
        return self.weight_dtypes.get(part, usual)

    @property
    def element_bytes(self) -> int:
        """Bytes of one element of the activations."""
        return int(BYTES_PER_ELEMENT[self.dtype])

    @property
    def kv_element_bytes(self) -> int:
        """Bytes of one element of the KV cache."""
        return int(BYTES_PER_ELEMENT[self.kv_dtype or self.dtype])

    def layer_kinds(self, parallel: ParallelSpec = ONE_GPU) -> list[LayerKind]:
        """Layers of one GPU by window (of the largest stage), with its KV bytes of a token."""
        return [
            LayerKind(
                -(-kind.num_layers // parallel.pipeline),
                kind.kv_elements_of_gpu(parallel.tensor) * self.kv_element_bytes,
                kind.window,
            )
            for kind in self.attention_kinds
        ]

    @property
    def num_parameters(self) -> int:
        """All weights: matrices, biases of attention, norms of layers and of heads, the final norm."""
        norms = 2 * self.hidden_size + (2 * self.head_size if self.qk_norm else 0)
        latent = self.mla
        if latent is not None:
            norms += latent.kv_lora_rank + (latent.q_lora_rank or 0)
        biases = (self.num_heads + 2 * self.num_kv_heads) * self.head_size if self.attention_bias else 0
        matrices = sum(part.num_weights for part in self.parts)
        return matrices + self.num_layers * (norms + biases) + self.hidden_size

    @property
    def num_active_parameters(self) -> int:
        """Weights that one token uses: all but those of the experts it does not go to."""
        return self.num_parameters - sum(
            part.num_weights - part.num_used for part in self.parts if part.name == "experts"
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, scales included, each counted once."""
        return round(sum(part.num_bytes for part in self.parts)) + self._vector_bytes

    @property
    def _vector_bytes(self) -> int:
        """Bytes of norms and biases, which every GPU that has the layer holds whole."""
        matrices = sum(part.num_weights for part in self.parts)
        return (self.num_parameters - matrices) * self.element_bytes

    def weight_bytes_of_gpu(self, parallel: ParallelSpec) -> int:
        """Bytes of the weights on each GPU, the largest stage's.

        A stage has its share of the layers, of which tensor and expert parallelism leave a share; the router
        and latent attention's projections down are copied to all. The embedding is on the first stage, the LM
        head on the last.
        """
        layers_bytes, head_bytes = float(self._vector_bytes), 0.0
        for part in self.parts:
            gpus = parallel.num_expert_gpus if part.name == "experts" else parallel.tensor
            copied = part.num_weights if part.name == "router" else self._copied_weights(part.name)
            part_bytes = ((part.num_weights - copied) / gpus + copied) * BYTES_PER_ELEMENT[part.dtype]
            if part.name == "head":
                head_bytes = part_bytes
            else:
                layers_bytes += part_bytes
        has_both = parallel.pipeline == 1 or self.tie_embeddings
        return round(layers_bytes / parallel.pipeline + head_bytes / (1 if has_both else 2))

    def _copied_weights(self, part: PartName) -> int:
        """Weights of a part that each GPU of a tensor-parallel group has."""
        if part != "attention" or self.mla is None:
            return 0
        down = self.mla.kv_lora_rank + self.mla.qk_rope_head_dim + (self.mla.q_lora_rank or 0)
        return self.num_layers * self.hidden_size * down

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the KV cache for one token in all layers, windows apart: 2 x KV heads x head size x
        element a layer, or the latent vector.
        """
        elements = sum(kind.num_layers * kind.kv_elements for kind in self.attention_kinds)
        return elements * self.kv_element_bytes

    @property
    def dense_flop_per_token(self) -> int:
        """FLOP of all layers for one token, 2 for each weight used, LM head and attention apart."""
        return 2 * sum(part.num_used for part in self.parts if part.name != "head")

    @property
    def logits_flop(self) -> int:
        """FLOP of one row of logits."""
        return 2 * self.hidden_size * self.vocab_size
