"""What a layer computes beside attention, by torch on any device or by fused kernels on GPUs."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from cbsim.lab.kernels.attention_backends import LayerCache
from cbsim.lab.kernels.quantised import Matrix, plain_product

TRITON_CAPABILITY = (8, 0)
"""NVIDIA's GPUs from which on Triton compiles; AMD's are counted beyond."""


class LayerOps:
    """Operation by operation in torch: the path of CPUs, and what fused kernels are checked against."""

    told = "torch, operation by operation"
    """What it is, for `meta.json`."""

    def add_norm(
        self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """`(T, size)`: `hidden + delta`, and its RMSNorm (arXiv:1910.07467); without a delta `hidden`."""
        added = hidden if delta is None else hidden + delta
        return added, rms_norm(added, weight.shape, weight, eps)

    def rotate(
        self,
        heads: Tensor,
        positions: Tensor,
        cos: Tensor,
        sin: Tensor,
        num_heads: int,
        num_kv_heads: int,
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """Query and key heads, first in `(T, any heads, head_size)`, turned by `positions`, `(T,)` int64.

        `cos` and `sin` are `(positions, head_size / 2)`; `norms` are those of queries and keys, if any.
        """
        split = num_heads + num_kv_heads
        query, keys = heads[:, :num_heads], heads[:, num_heads:split]
        if norms is not None:
            query, keys = (
                rms_norm(part, norm.shape, norm, eps) for part, norm in zip((query, keys), norms, strict=True)
            )
            rotating = torch.cat((query, keys), dim=1)
        else:
            rotating = heads[:, :split]
        c, s = cos[positions][:, None], sin[positions][:, None]
        low, high = rotating.chunk(2, dim=-1)
        out = torch.empty_like(rotating)
        out_low, out_high = out.chunk(2, dim=-1)
        torch.addcmul(low * c, high, s, value=-1, out=out_low)
        torch.addcmul(high * c, low, s, out=out_high)
        return out[:, :num_heads], out[:, num_heads:]

    def write(self, cache: LayerCache, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Store keys and values of the step's tokens: see `LayerCache.write`."""
        cache.write(keys, values, slots)

    def gated(self, gate_up: Tensor) -> Tensor:
        """`(T, 2 x size)` to `(T, size)`: `silu(gate) * up` (SwiGLU, arXiv:2002.05202)."""
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate) * up

    def dispatch(
        self, hidden: Tensor, logits: Tensor, num_chosen: int, *, is_even: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Send `(T, size)` tokens to `num_chosen` experts each, by the highest of `(T, experts)` logits, or
        with `is_even` in turn.

        Returns the experts' rows in groups, `(T x num_chosen, size)`; where each group ends, `(experts,)`
        int32; which row is each token's at each of its experts, `(T, num_chosen)` int64; and the experts'
        shares, a softmax over the logits of the chosen, `(T, num_chosen)`.
        """
        num_experts = logits.shape[1]
        highest, chosen = logits.float().topk(num_chosen)
        shares = highest.softmax(-1).to(hidden.dtype)
        number = torch.arange(chosen.numel(), device=hidden.device)
        chosen = number % num_experts if is_even else chosen.flatten()
        ordered, order = chosen.sort(stable=True)
        experts = torch.arange(num_experts, device=hidden.device)
        ends = torch.searchsorted(ordered, experts, right=True).int()
        places = torch.empty_like(order).index_copy_(0, order, number).view(shares.shape)
        return hidden[order // num_chosen], ends, places, shares

    def collect(self, rows: Tensor, places: Tensor, shares: Tensor) -> Tensor:
        """Add up what each token's experts computed, `(T x num_chosen, size)`, by shares: `(T, size)`."""
        return (rows[places] * shares[..., None]).sum(1)

    def product(self, hidden: Tensor, matrix: Matrix) -> Tensor:
        """`(T, columns)` by a matrix of `(rows, columns)`: `(T, rows)`."""
        return plain_product(hidden, matrix)


def layer_ops(device: torch.device) -> LayerOps:
    """Fused kernels on GPUs that Triton compiles for, where it is installed, else torch's."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return LayerOps()
    if torch.cuda.get_device_capability(device) < TRITON_CAPABILITY:
        return LayerOps()
    from cbsim.lab.kernels.triton_layer import FusedOps

    return FusedOps()
