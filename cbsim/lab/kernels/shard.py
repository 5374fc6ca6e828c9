"""Shard: what one GPU of a tensor-parallel group holds of a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cbsim.base.errors import CalibrationError
from cbsim.specs import ModelSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Shard:
    """A model's shapes on one of `tensor_parallel` GPUs, split as in Megatron-LM (arXiv:1909.08053, sec. 3).

    Attention is split by heads, the MLP by its width, the LM head by the vocabulary; KV heads are copied
    where there are fewer of them than GPUs. All-reduces are no part of it. Raises `CalibrationError` where a
    model doesn't divide, or has a dtype the kernels don't know.
    """

    model: ModelSpec
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        model, gpus = self.model, self.tensor_parallel
        sizes = {name: getattr(model, name) for name in ("num_heads", "intermediate_size", "vocab_size")}
        undivided = [f"{name} {size}" for name, size in sizes.items() if size % gpus]
        if model.num_kv_heads % gpus and gpus % model.num_kv_heads:
            undivided.append(f"num_kv_heads {model.num_kv_heads}")
        problems = [f"{figure} can't be split over {gpus} GPUs" for figure in undivided]
        if model.dtype not in DTYPES:
            problems.append(f"there are no {model.dtype} kernels; allowed: {', '.join(DTYPES)}")
        special = {
            "experts": model.experts,
            "latent attention": model.mla,
            "windows": model.window or model.attention_layers,
            **{f"weights of {part.dtype}": part.dtype != model.dtype for part in model.parts},
        }
        problems += [f"there are no kernels for {what}" for what, is_there in special.items() if is_there]
        if model.head_size % 2:
            problems.append(f"head_size {model.head_size} is odd; rotary positions need pairs")
        if problems:
            raise CalibrationError(*(f"model {model.name}: {problem}" for problem in problems))

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and KV cache."""
        return DTYPES[self.model.dtype]

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
        """Width of the gated MLP."""
        return self.model.intermediate_size // self.tensor_parallel

    @property
    def vocab_size(self) -> int:
        """Rows of the LM head."""
        return self.model.vocab_size // self.tensor_parallel

    @property
    def layer_weight_bytes(self) -> int:
        """Bytes of one layer's matrices."""
        attention = self.model.hidden_size * self.head_size * 2 * (self.num_heads + self.num_kv_heads)
        mlp = 3 * self.model.hidden_size * self.intermediate_size
        return (attention + mlp) * self.model.element_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of all matrices: layers, embedding and, unless tied, LM head."""
        embedding = self.model.vocab_size * self.model.hidden_size
        head = 0 if self.model.tie_embeddings else self.vocab_size * self.model.hidden_size
        return self.model.num_layers * self.layer_weight_bytes + (embedding + head) * self.model.element_bytes

    @property
    def layer_kv_token_bytes(self) -> int:
        """Bytes of one token's keys and values in one layer."""
        return 2 * self.num_kv_heads * self.head_size * self.model.element_bytes
