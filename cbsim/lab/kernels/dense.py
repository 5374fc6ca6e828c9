"""DenseLayer: a decoder layer's work outside attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

from cbsim.lab.kernels.shard import Shard


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

    def __init__(self, shard: Shard, device: torch.device, generator: torch.Generator | None = None) -> None:
        model = shard.model
        self.shard = shard
        self.hidden_shape = (model.hidden_size,)
        self.head_shape = (shard.head_size,)
        self.eps = model.norm_eps
        attention_size = shard.num_heads * shard.head_size
        qkv_size = attention_size + 2 * shard.num_kv_heads * shard.head_size

        def matrix(rows: int, columns: int) -> Tensor:
            return random_matrix(rows, columns, shard.dtype, device, generator)

        def ones(size: int) -> Tensor:
            return torch.ones(size, dtype=shard.dtype, device=device)

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
        normed = rms_norm(hidden, self.hidden_shape, self.input_norm, self.eps)
        heads = linear(normed, self.qkv).view(hidden.shape[0], -1, shard.head_size)
        split = shard.num_heads + shard.num_kv_heads
        rotating, values = heads[:, :split], heads[:, split:]
        if self.query_norm is not None and self.key_norm is not None:
            query = rms_norm(rotating[:, : shard.num_heads], self.head_shape, self.query_norm, self.eps)
            keys = rms_norm(rotating[:, shard.num_heads :], self.head_shape, self.key_norm, self.eps)
            rotating = torch.cat((query, keys), dim=1)
        rotated = rotary.rotate(rotating, positions)
        return rotated[:, : shard.num_heads], rotated[:, shard.num_heads :], values

    def merge(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """After attention: `(T, heads, head_size)` through o and the MLP, added to `hidden`."""
        hidden = hidden + linear(attended.flatten(1), self.o)
        normed = rms_norm(hidden, self.hidden_shape, self.mlp_norm, self.eps)
        gate, up = linear(normed, self.gate_up).chunk(2, dim=-1)
        return hidden + linear(silu(gate) * up, self.down)


def random_matrix(
    rows: int, columns: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Normal weights of variance 1 / columns, so that activations keep their size."""
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    return out.normal_(std=columns**-0.5, generator=generator)
