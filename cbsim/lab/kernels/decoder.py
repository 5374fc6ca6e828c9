"""Decoder: the whole model, from the tokens of a ragged step to logits, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

from cbsim.lab.kernels.attention_backends import AttentionBackend, LayerCache
from cbsim.lab.kernels.shard import Shard
from cbsim.lab.kernels.step_batch import StepBatch


class Rotary:
    """Rotary positions (RoFormer, arXiv:2104.09864), the halves of a head being the pairs, as in Llama.

    The table holds cosine and sine of `position / theta**(2i/head_size)` for positions below `max_positions`.
    """

    def __init__(self, shard: Shard, max_positions: int, device: torch.device) -> None:
        exponent = torch.arange(0, shard.head_size, 2, dtype=torch.float64, device=device) / shard.head_size
        frequency = shard.model.rope_theta**-exponent
        angle = torch.arange(max_positions, dtype=torch.float64, device=device)[:, None] * frequency
        self.cos = angle.cos().to(shard.dtype)
        self.sin = angle.sin().to(shard.dtype)

    def rotate(self, heads: Tensor, positions: Tensor) -> Tensor:
        """`(T, any heads, head_size)` turned by `positions`, `(T,)` int64."""
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        low, high = heads.chunk(2, dim=-1)
        out = torch.empty_like(heads)
        out_low, out_high = out.chunk(2, dim=-1)
        torch.addcmul(low * cos, high, sin, value=-1, out=out_low)
        torch.addcmul(high * cos, low, sin, out=out_high)
        return out


class DenseLayer:
    """One layer's weights, random until loaded, and its two halves around attention.

    Norms and biases follow Llama: RMSNorm before each half, no biases, SwiGLU; queries and keys are
    normalised per head if the model says so.
    """

    def __init__(self, shard: Shard, device: torch.device, generator: torch.Generator) -> None:
        model = shard.model
        self.shard = shard
        self.eps = model.norm_eps
        attention_size = shard.num_heads * shard.head_size
        qkv_size = attention_size + 2 * shard.num_kv_heads * shard.head_size
        matrix = partial(random_matrix, dtype=shard.dtype, device=device, generator=generator)
        ones = partial(torch.ones, dtype=shard.dtype, device=device)
        self.input_norm = ones(model.hidden_size)
        self.qkv = matrix(qkv_size, model.hidden_size)
        self.query_norm = ones(shard.head_size) if model.qk_norm else None
        self.key_norm = ones(shard.head_size) if model.qk_norm else None
        self.o = matrix(model.hidden_size, attention_size)
        self.mlp_norm = ones(model.hidden_size)
        self.gate_up = matrix(2 * shard.intermediate_size, model.hidden_size)
        self.down = matrix(model.hidden_size, shard.intermediate_size)

    def project(self, hidden: Tensor, positions: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Before attention: `(T, hidden_size)` to query, keys and values of `(T, heads, head_size)`."""
        shard = self.shard
        normed = normalised(hidden, self.input_norm, self.eps)
        heads = linear(normed, self.qkv).view(hidden.shape[0], -1, shard.head_size)
        split = shard.num_heads + shard.num_kv_heads
        rotating, values = heads[:, :split], heads[:, split:]
        if self.query_norm is not None and self.key_norm is not None:
            query = normalised(rotating[:, : shard.num_heads], self.query_norm, self.eps)
            keys = normalised(rotating[:, shard.num_heads :], self.key_norm, self.eps)
            rotating = torch.cat((query, keys), dim=1)
        rotated = rotary.rotate(rotating, positions)
        return rotated[:, : shard.num_heads], rotated[:, shard.num_heads :], values

    def merge(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """After attention: `(T, heads, head_size)` through o and the MLP, added to `hidden`."""
        hidden = hidden + linear(attended.flatten(1), self.o)
        normed = normalised(hidden, self.mlp_norm, self.eps)
        gate, up = linear(normed, self.gate_up).chunk(2, dim=-1)
        return hidden + linear(silu(gate) * up, self.down)


class LmHead:
    """The final RMSNorm and the LM head; `weight` is the embedding table itself where the model ties them."""

    def __init__(self, shard: Shard, weight: Tensor) -> None:
        self.eps = shard.model.norm_eps
        self.norm = torch.ones(shard.model.hidden_size, dtype=shard.dtype, device=weight.device)
        self.weight = weight

    def logits(self, hidden: Tensor) -> Tensor:
        """`(S, hidden_size)` to `(S, vocab_size)`, float32."""
        return linear(normalised(hidden, self.norm, self.eps), self.weight).float()


def normalised(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension (arXiv:1910.07467)."""
    return rms_norm(hidden, weight.shape, weight, eps)


def random_matrix(
    rows: int, columns: int, *, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Tensor:
    """Normal weights of variance 1 / columns, so that activations keep their size."""
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    return out.normal_(std=columns**-0.5, generator=generator)


class Decoder:
    """A decoder-only transformer of a `ModelSpec`'s shape over a paged KV cache.

    Weights are random from `seed` until loaded. Run it under `torch.inference_mode`.
    """

    def __init__(
        self, shard: Shard, backend: AttentionBackend, device: torch.device, max_positions: int, seed: int = 0
    ) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        model = shard.model
        matrix = partial(random_matrix, dtype=shard.dtype, device=device, generator=generator)
        self.shard = shard
        self.backend = backend
        self.rotary = Rotary(shard, max_positions, device)
        self.embedding = matrix(model.vocab_size, model.hidden_size)
        self.layers = [DenseLayer(shard, device, generator) for _ in range(model.num_layers)]
        tied = model.tie_embeddings
        self.head = LmHead(shard, self.embedding if tied else matrix(shard.vocab_size, model.hidden_size))

    def logits(self, batch: StepBatch, caches: Sequence[LayerCache]) -> Tensor:
        """Compute a step, writing to `caches`, one a layer; returns `(S, vocab_size)` float32."""
        hidden = self.embedding[batch.token_ids]
        for layer, cache in zip(self.layers, caches, strict=True):
            query, keys, values = layer.project(hidden, batch.positions, self.rotary)
            cache.write(keys, values, batch.slots)
            hidden = layer.merge(hidden, batch.attend(self.backend, query, keys, values, cache))
        return self.head.logits(hidden[batch.logit_rows])
