"""Attention tables from timings that form a grid, where they say more than a formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cbsim.cost.attention import FusedAttention, PrefillAttention
from cbsim.cost.attention_grid import AttentionGrid, ChunkTable, DecodeTable, MixedTable, Skew, Slopes, Table
from cbsim.cost.profile_record import chunks_together_s
from cbsim.lab.calibrate.coefficients import soft_loss
from cbsim.lab.calibrate.lattice import Lattice, LatticeFormula, filled, lattices_of, refined, thinned
from cbsim.lab.calibrate.leftout import clearly_best
from cbsim.lab.calibrate.point import Point, columns_of, seconds_of

NUM_PARTS = 20
"""Parts of the timings of a grid, each left out once to see what the others say of it."""
NUM_COEFFICIENTS = 8
"""Of the formula of decodes, and about those of chunks."""

SPLIT_HEADS = 256
"""FlashAttention-2 splits contexts (`num_splits_heuristic`) unless decodes x KV heads fill 0.8 of twice the
GPU's multiprocessors: up to 205 on 128 of them, up to 301 on 188."""
USUAL_KV_HEADS = 8


def fit_grid(
    points: Sequence[Point], formula: LatticeFormula, num_kv_heads: int = USUAL_KV_HEADS
) -> AttentionGrid | None:
    """Tables of attention timings, of each regime that was timed over a grid; `None` if decodes were not.

    Points of several chunks or of unequal contexts are left to the formula. What lies between timings follows
    the ratio of timing to formula, linear between its knots. `num_kv_heads` are those of one GPU.
    """
    decode, prefill, fused = formula
    lattices = lattices_of(points)
    decode_lattice, chunk_lattice, mixed_lattice = (lattices.get(op) for op in ("decode", "prefill", "mixed"))
    is_whole = chunk_lattice is not None and mixed_lattice is not None
    if decode_lattice is None or not (is_whole or _beats_formula(decode_lattice, formula)):
        return None
    chunks = mixed = None
    if chunk_lattice is not None:
        token_s = prefill.per_token_s + prefill.beyond_per_token_s
        slopes = Slopes(per_pair_s=prefill.per_pair_s, per_token_s=token_s)
        table = ChunkTable(table=thinned(filled(chunk_lattice, formula)), slopes=slopes)
        if is_whole or (_beats_formula(chunk_lattice, formula) and _adds_up(table, prefill, points)):
            chunks = table
    if chunks is not None and mixed_lattice is not None and fused is not None:
        mixed = _mixed_table(thinned(refined(filled(mixed_lattice, formula), formula)), chunks, fused)
    decode_table = thinned(refined(filled(decode_lattice, formula), formula))
    skew = Skew(
        chain_s_per_token=mixed.skew.chain_s_per_token if mixed is not None else 0.0,
        tokens_per_s=_full_rate(decode_table),
        split_up_to=SPLIT_HEADS // num_kv_heads,
    )
    slopes = Slopes(per_decode_s=decode.per_decode_s, per_context_token_s=decode.per_token_s)
    decodes = DecodeTable(table=decode_table, slopes=slopes, skew=skew)
    return AttentionGrid(decode=decodes, prefill=chunks, mixed=mixed)


def _mixed_table(table: Table, chunks: ChunkTable, fused: FusedAttention) -> MixedTable:
    slopes = Slopes(
        per_pair_s=fused.per_pair_s,
        per_token_s=fused.per_token_s,
        per_decode_s=fused.per_decode_s,
        per_context_token_s=fused.per_context_token_s + fused.beyond_per_context_token_s,
    )
    skew = Skew(chain_s_per_token=_chain_s_per_token(table), tokens_per_s=_full_rate(table), split_up_to=0)
    return MixedTable(table=table, slopes=slopes, skew=skew, crowding=_crowding(chunks.table, table))


def _beats_formula(lattice: Lattice, formula: LatticeFormula) -> bool:
    """Whether timings say clearly more of those left out between them than the formula does.

    It was fitted to all of them, so its errors count by n / (n - coefficients): generalised cross-validation
    (Craven and Wahba, Numerische Mathematik 31, 1979).
    """
    timed = np.flatnonzero(np.isfinite(lattice.seconds))
    measured = lattice.seconds.ravel()[timed]
    by_formula = formula.of(lattice).ravel()[timed]
    by_table = np.empty(len(timed))
    for number in range(NUM_PARTS):
        out = np.arange(len(timed)) % NUM_PARTS == number
        seconds = lattice.seconds.copy()
        seconds.ravel()[timed[out]] = np.nan
        by_table[out] = filled(replace(lattice, seconds=seconds), formula).seconds.ravel()[timed[out]]
    fitted = np.log(by_formula / measured) * len(timed) / max(len(timed) - NUM_COEFFICIENTS, 1)
    return clearly_best([soft_loss(fitted), soft_loss(np.log(by_table / measured))]) == 1


def _adds_up(chunks: ChunkTable, prefill: PrefillAttention, points: Sequence[Point]) -> bool:
    """Whether launches of several chunks are no farther from what a table of single ones says of them than
    from the formula; they are no part of the table.
    """
    several = [point for point in points if point.op == "prefill" and len(point.chunks) > 1]
    if not several:
        return True
    columns, measured = columns_of(several), seconds_of(several)
    by_table, by_formula = chunks_together_s(chunks, columns), prefill.at(columns)
    return soft_loss(np.log(by_table / measured)) <= soft_loss(np.log(by_formula / measured))


def _crowding(prefill: Table, mixed: Table) -> Table:
    """How much dearer a chunk is among decodes than alone, by decodes: medians over the grid, at least 1."""
    tokens, context, _, decodes = mixed.axes
    mesh = np.meshgrid(np.array(tokens), np.array(context), indexing="ij")
    smallest = float(prefill.values.flat[0])
    alone = prefill.at(*prefill.nearest(*mesh)) - smallest
    # Chunks that cost next to nothing alone say nothing about it.
    counted = alone > smallest
    if not counted.any():
        return Table(axes=((decodes[0], decodes[-1]),), seconds=(1.0, 1.0))
    among = (mixed.values - mixed.values[:1, :1])[counted] / alone[counted][:, None, None]
    factors = np.maximum.accumulate(np.maximum(np.median(among, axis=(0, 1)), 1.0))
    return Table(axes=(decodes,), seconds=tuple(factors.round(4).tolist()))


def _chain_s_per_token(mixed: Table) -> float:
    """Seconds a token of one decode beside the smallest chunk, over the longest contexts timed."""
    line = mixed.values[0, 0, :, 0]
    contexts = mixed.axes[2]
    start = int(np.searchsorted(contexts, contexts[-1] / 4))
    return float((line[-1] - line[start]) / (contexts[-1] - contexts[start]))


def _full_rate(table: Table) -> float:
    """Tokens of context a second with many decodes, beside the smallest chunk if there is one."""
    seconds = table.values[0, 0] if table.values.ndim == 4 else table.values
    contexts, decodes = (np.array(axis) for axis in table.axes[-2:])
    rate = contexts[:, None] * decodes[None, :] / seconds
    return float(np.median(rate[contexts >= 256][:, decodes >= decodes[-1] / 2]))
