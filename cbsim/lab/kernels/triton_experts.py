"""Tokens to their experts and back in Triton: the choice of experts, their rows in groups, and the sum.

The products between are torch's grouped ones. Rows of a group lie in no order, as each is computed alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _route_kernel(  # type: ignore[no-untyped-def]
    logits,
    chosen,
    shares,
    counts,
    NUM_EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
    CHOSEN_PADDED: tl.constexpr,
    IS_EVEN: tl.constexpr,
):
    """One token: the experts of the highest logits, a softmax over these, and how many go to each."""
    token = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, PADDED)
    places = tl.arange(0, CHOSEN_PADDED)
    left = tl.load(logits + token * NUM_EXPERTS + experts, mask=experts < NUM_EXPERTS, other=float("-inf"))
    left = left.to(tl.float32)
    highest = tl.max(left, 0)
    weights = tl.zeros((CHOSEN_PADDED,), tl.float32)
    numbers = tl.zeros((CHOSEN_PADDED,), tl.int32)
    for place in tl.static_range(NUM_CHOSEN):
        best = tl.max(left, 0)
        number = tl.argmax(left, 0)
        weights = tl.where(places == place, tl.exp(best - highest), weights)
        numbers = tl.where(places == place, number, numbers)
        left = tl.where(experts == number, float("-inf"), left)
    if IS_EVEN:
        numbers = ((token * NUM_CHOSEN + places) % NUM_EXPERTS).to(tl.int32)
    is_place = places < NUM_CHOSEN
    share = weights / tl.sum(weights, 0)
    tl.store(shares + token * NUM_CHOSEN + places, share.to(shares.dtype.element_ty), mask=is_place)
    tl.store(chosen + token * NUM_CHOSEN + places, numbers, mask=is_place)
    tl.atomic_add(counts + numbers, 1, mask=is_place)


@triton.jit  # type: ignore[untyped-decorator]
def _group_kernel(  # type: ignore[no-untyped-def]
    hidden,
    chosen,
    counts,
    taken,
    rows,
    places,
    ends,
    NUM_EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One token for one of its experts: its row into the next free place of the expert's group."""
    pair = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, PADDED)
    is_expert = experts < NUM_EXPERTS
    sizes = tl.load(counts + experts, mask=is_expert, other=0)
    if pair == 0:
        tl.store(ends + experts, tl.cumsum(sizes, 0), mask=is_expert)
    number = tl.load(chosen + pair)
    start = tl.sum(tl.where(experts < number, sizes, 0), 0)
    place = (start + tl.atomic_add(taken + number, 1)).to(tl.int64)
    tl.store(places + pair, place)
    for first in range(0, SIZE, COLUMNS):
        at = first + tl.arange(0, COLUMNS)
        part = tl.load(hidden + pair // NUM_CHOSEN * SIZE + at, mask=at < SIZE, other=0.0)
        tl.store(rows + place * SIZE + at, part, mask=at < SIZE)


@triton.jit  # type: ignore[untyped-decorator]
def _collect_kernel(  # type: ignore[no-untyped-def]
    rows,
    places,
    shares,
    out,
    NUM_CHOSEN: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Part of one token's row: what its experts computed, by their shares."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for place in tl.static_range(NUM_CHOSEN):
        row = tl.load(places + token * NUM_CHOSEN + place)
        share = tl.load(shares + token * NUM_CHOSEN + place).to(tl.float32)
        total += share * tl.load(rows + row * SIZE + at, mask=at < SIZE, other=0.0).to(tl.float32)
    tl.store(out + token * SIZE + at, total.to(out.dtype.element_ty), mask=at < SIZE)


def dispatch(
    hidden: Tensor, logits: Tensor, num_chosen: int, *, is_even: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `LayerOps.dispatch`."""
    num_tokens, size = hidden.shape
    num_experts, device = logits.shape[1], hidden.device
    hidden, logits = hidden.contiguous(), logits.contiguous()
    chosen = torch.empty(num_tokens, num_chosen, dtype=torch.int32, device=device)
    shares = torch.empty(num_tokens, num_chosen, dtype=hidden.dtype, device=device)
    # How many go to each expert, and how many of these have their place.
    counts, taken = torch.zeros(2, num_experts, dtype=torch.int32, device=device)
    experts = {"NUM_EXPERTS": num_experts, "PADDED": triton.next_power_of_2(num_experts)}
    experts["NUM_CHOSEN"] = num_chosen
    _route_kernel[(num_tokens,)](
        logits,
        chosen,
        shares,
        counts,
        CHOSEN_PADDED=triton.next_power_of_2(num_chosen),
        IS_EVEN=is_even,
        num_warps=1,
        **experts,
    )
    rows = torch.empty(num_tokens * num_chosen, size, dtype=hidden.dtype, device=device)
    places = torch.empty(num_tokens, num_chosen, dtype=torch.int64, device=device)
    ends = torch.empty(num_experts, dtype=torch.int32, device=device)
    _group_kernel[(num_tokens * num_chosen,)](
        hidden,
        chosen,
        counts,
        taken,
        rows,
        places,
        ends,
        SIZE=size,
        COLUMNS=columns_at_once(size),
        num_warps=4,
        **experts,
    )
    return rows, ends, places, shares


def collect(rows: Tensor, places: Tensor, shares: Tensor) -> Tensor:
    """See `LayerOps.collect`."""
    num_tokens, num_chosen = places.shape
    size = rows.shape[1]
    out = torch.empty(num_tokens, size, dtype=rows.dtype, device=rows.device)
    columns = columns_at_once(size)
    _collect_kernel[num_tokens, triton.cdiv(size, columns)](
        rows.contiguous(), places, shares, out, NUM_CHOSEN=num_chosen, SIZE=size, COLUMNS=columns, num_warps=4
    )
    return out


def columns_at_once(size: int) -> int:
    """Elements of a row that a program takes at a time."""
    return min(1024, int(triton.next_power_of_2(size)))
