"""What a layer computes between its matrix products, fused in Triton as engines do: one kernel a line.

Residual and norm; rotary positions, with the norms of queries and keys where a model has them; keys and
values into the cache; the activation of a gated MLP; quantising rows to FP8. Sums are fp32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cbsim.lab.kernels.attention_backends import LayerCache
from cbsim.lab.kernels.layer_ops import LayerOps
from cbsim.lab.kernels.quantised import FP8, FP8_MAX, Matrix, scaled_product
from cbsim.lab.kernels.triton_experts import collect, columns_at_once, dispatch


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm_kernel(  # type: ignore[no-untyped-def]
    hidden,
    delta,
    weight,
    added,
    normed,
    eps,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    HAS_DELTA: tl.constexpr,
):
    """One row: the sum of `hidden` and `delta`, rounded as it is kept, and its RMSNorm."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, PADDED)
    is_place = places < SIZE
    x = tl.load(hidden + row * SIZE + places, mask=is_place, other=0.0)
    if HAS_DELTA:
        x = (x.to(tl.float32) + tl.load(delta + row * SIZE + places, mask=is_place, other=0.0)).to(x.dtype)
        tl.store(added + row * SIZE + places, x, mask=is_place)
    x = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / SIZE + eps)
    w = tl.load(weight + places, mask=is_place, other=0.0).to(tl.float32)
    tl.store(normed + row * SIZE + places, (x * scale * w).to(normed.dtype.element_ty), mask=is_place)


@triton.jit  # type: ignore[untyped-decorator]
def _rotate_kernel(  # type: ignore[no-untyped-def]
    heads,
    positions,
    cos,
    sin,
    query_norm,
    key_norm,
    query,
    keys,
    token_stride,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """One token's query and key heads, normalised if the model does so, and turned by its position."""
    token = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, HEADS_PADDED)[:, None]
    places = tl.arange(0, HALF_PADDED)[None, :]
    is_query = rows < NUM_HEADS
    wanted = (rows < NUM_HEADS + NUM_KV_HEADS) & (places < HALF)
    at = heads + token * token_stride + rows * (2 * HALF) + places
    low = tl.load(at, mask=wanted, other=0.0).to(tl.float32)
    high = tl.load(at + HALF, mask=wanted, other=0.0).to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(low * low, 1) + tl.sum(high * high, 1)
        scale = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
        # Between the two kernels that this fuses the normed heads would be rounded.
        norm_low = tl.where(
            is_query,
            tl.load(query_norm + places, mask=places < HALF, other=0.0).to(tl.float32),
            tl.load(key_norm + places, mask=places < HALF, other=0.0).to(tl.float32),
        )
        norm_high = tl.where(
            is_query,
            tl.load(query_norm + HALF + places, mask=places < HALF, other=0.0).to(tl.float32),
            tl.load(key_norm + HALF + places, mask=places < HALF, other=0.0).to(tl.float32),
        )
        low = (low * scale * norm_low).to(heads.dtype.element_ty).to(tl.float32)
        high = (high * scale * norm_high).to(heads.dtype.element_ty).to(tl.float32)
    position = tl.load(positions + token)
    c = tl.load(cos + position * HALF + places, mask=places < HALF, other=0.0).to(tl.float32)
    s = tl.load(sin + position * HALF + places, mask=places < HALF, other=0.0).to(tl.float32)
    turned_low = (low * c - high * s).to(query.dtype.element_ty)
    turned_high = (high * c + low * s).to(query.dtype.element_ty)
    query_at = query + (token * NUM_HEADS + rows) * (2 * HALF) + places
    tl.store(query_at, turned_low, mask=wanted & is_query)
    tl.store(query_at + HALF, turned_high, mask=wanted & is_query)
    key_at = keys + (token * NUM_KV_HEADS + rows - NUM_HEADS) * (2 * HALF) + places
    tl.store(key_at, turned_low, mask=wanted & (rows >= NUM_HEADS))
    tl.store(key_at + HALF, turned_high, mask=wanted & (rows >= NUM_HEADS))


@triton.jit  # type: ignore[untyped-decorator]
def _write_kernel(  # type: ignore[no-untyped-def]
    keys,
    values,
    slots,
    cached_keys,
    cached_values,
    key_stride,
    value_stride,
    block_stride,
    token_stride,
    BLOCK_SIZE: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
):
    """One token's keys and values of all heads into its slot."""
    token = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, PADDED)
    is_place = places < SIZE
    slot = tl.load(slots + token)
    at = slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * token_stride + places
    k = tl.load(keys + token * key_stride + places, mask=is_place, other=0.0)
    v = tl.load(values + token * value_stride + places, mask=is_place, other=0.0)
    tl.store(cached_keys + at, k.to(cached_keys.dtype.element_ty), mask=is_place)
    tl.store(cached_values + at, v.to(cached_values.dtype.element_ty), mask=is_place)


@triton.jit  # type: ignore[untyped-decorator]
def _gated_kernel(  # type: ignore[no-untyped-def]
    gate_up,
    out,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Part of a row: `silu(gate) * up`, the two halves lying one behind the other."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_place = places < SIZE
    gate = tl.load(gate_up + row * 2 * SIZE + places, mask=is_place, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * SIZE + SIZE + places, mask=is_place, other=0.0).to(tl.float32)
    result = gate / (1 + tl.exp(-gate)) * up
    tl.store(out + row * SIZE + places, result.to(out.dtype.element_ty), mask=is_place)


@triton.jit  # type: ignore[untyped-decorator]
def _quantise_kernel(  # type: ignore[no-untyped-def]
    rows,
    out,
    scales,
    largest,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One row over the scale that makes its largest element the largest of the dtype."""
    row = tl.program_id(0).to(tl.int64)
    highest = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, SIZE, COLUMNS):
        places = first + tl.arange(0, COLUMNS)
        x = tl.load(rows + row * SIZE + places, mask=places < SIZE, other=0.0)
        highest = tl.maximum(highest, tl.abs(x.to(tl.float32)))
    scale = tl.maximum(tl.max(highest, 0), 1e-12) / largest
    tl.store(scales + row, scale)
    for first in range(0, SIZE, COLUMNS):
        places = first + tl.arange(0, COLUMNS)
        x = tl.load(rows + row * SIZE + places, mask=places < SIZE, other=0.0)
        tl.store(
            out + row * SIZE + places, (x.to(tl.float32) / scale).to(out.dtype.element_ty), places < SIZE
        )


class FusedOps(LayerOps):
    """The operations of `LayerOps`, each by one Triton kernel."""

    told = "fused Triton kernels"
    dispatch = staticmethod(dispatch)
    collect = staticmethod(collect)

    def add_norm(
        self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See `LayerOps.add_norm`."""
        hidden = hidden.contiguous()
        normed, size = torch.empty_like(hidden), hidden.shape[1]
        added = hidden if delta is None else torch.empty_like(hidden)
        _add_norm_kernel[(hidden.shape[0],)](
            hidden,
            hidden if delta is None else delta.contiguous(),
            weight,
            added,
            normed,
            eps,
            SIZE=size,
            PADDED=triton.next_power_of_2(size),
            HAS_DELTA=delta is not None,
            num_warps=_num_warps(size),
        )
        return added, normed

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
        """See `LayerOps.rotate`."""
        num_tokens, _, head_size = heads.shape
        query = torch.empty(num_tokens, num_heads, head_size, dtype=heads.dtype, device=heads.device)
        keys = torch.empty(num_tokens, num_kv_heads, head_size, dtype=heads.dtype, device=heads.device)
        query_norm, key_norm = norms or (heads, heads)
        half, padded = head_size // 2, triton.next_power_of_2(num_heads + num_kv_heads)
        _rotate_kernel[(num_tokens,)](
            heads,
            positions,
            cos,
            sin,
            query_norm,
            key_norm,
            query,
            keys,
            heads.stride(0),
            eps,
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            HEADS_PADDED=padded,
            HALF=half,
            HALF_PADDED=triton.next_power_of_2(half),
            HAS_NORM=norms is not None,
            num_warps=_num_warps(padded * half),
        )
        return query, keys

    def write(self, cache: LayerCache, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """See `LayerOps.write`; the heads of a token lie one after another."""
        size = keys.shape[1] * keys.shape[2]
        block_stride, token_stride = cache.keys.stride()[:2]
        _write_kernel[(keys.shape[0],)](
            keys,
            values,
            slots,
            cache.keys,
            cache.values,
            keys.stride(0),
            values.stride(0),
            block_stride,
            token_stride,
            BLOCK_SIZE=cache.block_size,
            SIZE=size,
            PADDED=triton.next_power_of_2(size),
            num_warps=_num_warps(size),
        )

    def gated(self, gate_up: Tensor) -> Tensor:
        """See `LayerOps.gated`."""
        num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty(num_rows, size, dtype=gate_up.dtype, device=gate_up.device)
        columns = columns_at_once(size)
        _gated_kernel[num_rows, triton.cdiv(size, columns)](
            gate_up.contiguous(), out, SIZE=size, COLUMNS=columns, num_warps=4
        )
        return out

    def product(self, hidden: Tensor, matrix: Matrix) -> Tensor:
        """See `LayerOps.product`; activations are quantised by one kernel."""
        if isinstance(matrix, Tensor):
            return super().product(hidden, matrix)
        return scaled_product(*quantise_rows(hidden), matrix, hidden.dtype)


def quantise_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`(T, size)` in FP8, and the `(T, 1)` float32 scales that undo it."""
    rows = rows.contiguous()
    out = torch.empty(rows.shape, dtype=FP8, device=rows.device)
    scales = torch.empty(rows.shape[0], 1, dtype=torch.float32, device=rows.device)
    columns = columns_at_once(rows.shape[1])
    _quantise_kernel[(rows.shape[0],)](
        rows, out, scales, FP8_MAX, SIZE=rows.shape[1], COLUMNS=columns, num_warps=4
    )
    return out, scales


def _num_warps(size: int) -> int:
    """Warps of a program that takes so many elements: some 16 a thread."""
    return max(1, min(16, int(triton.next_power_of_2(size)) // 512))
