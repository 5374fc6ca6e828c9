"""Shard: what one GPU of a tensor-parallel group holds of a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cbsim.base.errors import CalibrationError
from cbsim.specs import ModelSpec
from cbsim.specs.model import Part, PartName
from cbsim.specs.precision import BYTES_PER_ELEMENT

FP8_PARTS = ("attention", "mlp", "shared_experts")
"""Weights that there are products in fp8 for, a scale for each row of them."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Shard:
    """A model's shapes on one of `tensor_parallel` GPUs, split as in Megatron-LM (arXiv:1909.08053, sec. 3).

    Attention is split by heads, MLPs and each expert by their width, the LM head by the vocabulary; KV heads
    are copied where there are fewer of them than GPUs, and so are routers. All-reduces are no part of it.
    A `ModelSpec` says how many layers have a window or experts, and not which: the layers without a window
    are spread evenly, those with one first (of six, five and then one without), and the first layers have no
    experts. Raises `CalibrationError` where a model doesn't divide, or is of a kind that there are no kernels
    for.
    """

    model: ModelSpec
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        model, gpus = self.model, self.tensor_parallel
        sizes = {name: getattr(model, name) for name in ("num_heads", "intermediate_size", "vocab_size")}
        sizes |= {
            f"experts.{name}": getattr(model.experts, name)
            for name in ("intermediate_size", "shared_intermediate_size")
            if model.experts is not None
        }
        undivided = [f"{name} {size}" for name, size in sizes.items() if size % gpus]
        if model.num_kv_heads % gpus and gpus % model.num_kv_heads:
            undivided.append(f"num_kv_heads {model.num_kv_heads}")
        problems = [f"{figure} can't be split over {gpus} GPUs" for figure in undivided]
        if model.dtype not in DTYPES:
            problems.append(f"there are no {model.dtype} kernels; allowed: {', '.join(DTYPES)}")
        head_sizes = {size for kind in model.attention_kinds for size in (kind.query_size, kind.value_size)}
        heads = {(kind.num_heads, kind.num_kv_heads) for kind in model.attention_kinds}
        special = {
            "latent attention (mla)": model.mla,
            "layers whose heads differ (attention_layers)": model.mla is None
            and (heads != {(model.num_heads, model.num_kv_heads)} or head_sizes != {model.head_size}),
            **{f"{part.name} weights of {part.dtype}": not self._is_known(part) for part in model.parts},
            f"a KV cache of {model.kv_dtype}": model.kv_dtype not in (None, model.dtype, "fp8"),
        }
        problems += [f"there are no kernels for {what}" for what, is_there in special.items() if is_there]
        if model.experts is not None:
            widths = {"hidden_size": model.hidden_size, "experts.intermediate_size": self.expert_size}
            problems += [
                f"{name} {width} isn't a multiple of 16 bytes, as grouped products need"
                for name, width in widths.items()
                if width * model.element_bytes % 16
            ]
        if self.has_fp8_weights:
            attention_size = self.num_heads * self.head_size
            fp8_sizes = (attention_size, model.hidden_size, self.intermediate_size, self.shared_size)
            problems += [
                f"a width of {size} isn't a multiple of 16, as products in fp8 need"
                for size in dict.fromkeys(fp8_sizes)
                if size % 16
            ]
        if model.head_size % 2:
            problems.append(f"head_size {model.head_size} is odd; rotary positions need pairs")
        if problems:
            raise CalibrationError(*(f"model {model.name}: {problem}" for problem in problems))

    def _is_known(self, part: Part) -> bool:
        """Whether there are kernels for the dtype of a part's weights."""
        return part.dtype == self.model.dtype or (part.dtype == "fp8" and part.name in FP8_PARTS)

    @property
    def has_fp8_weights(self) -> bool:
        """Whether some products are computed in fp8."""
        return any(part.dtype == "fp8" for part in self.model.parts)

    def window_of(self, layer: int) -> int:
        """Tokens that the attention of a layer reaches back, the present one included; 0 for all."""
        num_layers = self.model.num_layers
        num_full = num_layers - self.model.num_windowed_layers
        is_full = (layer + 1) * num_full // num_layers > layer * num_full // num_layers
        return 0 if is_full else self.model.window

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return layer >= self.model.num_layers - self.model.num_expert_layers

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, and of what has no other: weights, KV cache."""
        return DTYPES[self.model.dtype]

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of the KV cache; in fp8 without scales, as engines have it unless a checkpoint brings some."""
        return torch.float8_e4m3fn if self.model.kv_dtype == "fp8" else self.dtype

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return self.model.num_heads // self.tensor_parallel

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads."""
        return max(1, self.model.num_kv_heads // self.tensor_parallel)

    @property
    def group_size(self) -> int:
        """Query heads that share a KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def head_size(self) -> int:
        """Elements of a head."""
        return self.model.head_size

    @property
    def intermediate_size(self) -> int:
        """Width of the dense gated MLP."""
        return self.model.intermediate_size // self.tensor_parallel

    @property
    def expert_size(self) -> int:
        """Width of one expert's gated MLP; 0 without experts."""
        experts = self.model.experts
        return 0 if experts is None else experts.intermediate_size // self.tensor_parallel

    @property
    def shared_size(self) -> int:
        """Width of the experts that every token goes to, all together."""
        experts = self.model.experts
        return 0 if experts is None else experts.shared_intermediate_size // self.tensor_parallel

    @property
    def vocab_size(self) -> int:
        """Rows of the LM head."""
        return self.model.vocab_size // self.tensor_parallel

    @property
    def weight_bytes(self) -> int:
        """Bytes of all matrices: layers, embedding and, unless tied, LM head."""
        model, experts = self.model, self.model.experts
        rows: dict[PartName, int] = {
            "attention": model.num_layers * self.head_size * 2 * (self.num_heads + self.num_kv_heads),
            "mlp": (model.num_layers - model.num_expert_layers) * 3 * self.intermediate_size,
            "head": model.vocab_size + (0 if model.tie_embeddings else self.vocab_size),
        }
        if experts is not None:
            rows["experts"] = model.num_expert_layers * experts.num_experts * 3 * self.expert_size
            rows["router"] = model.num_expert_layers * experts.num_experts
            rows["shared_experts"] = model.num_expert_layers * 3 * self.shared_size
        widths = {part: BYTES_PER_ELEMENT[model.weight_dtype_of(part)] for part in rows}
        return model.hidden_size * int(sum(count * widths[part] for part, count in rows.items()))

    @property
    def layer_kv_token_bytes(self) -> int:
        """Bytes of one token's keys and values in one layer."""
        return 2 * self.num_kv_heads * self.head_size * self.model.kv_element_bytes
