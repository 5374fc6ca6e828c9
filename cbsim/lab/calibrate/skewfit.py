"""What decodes of unequal contexts lose, from timings of launches in which few of them have a longer one.

A launch of n decodes, of which j have a longer context than the others, takes `phi(j)` seconds more for each
token of the difference than one whose contexts are all equal, the sum of contexts being the same: while only
j are left at work, part of the GPU has nothing to do. Of contexts with an exponential tail of scale s the
shortest of the j left ends after s / j further tokens on average (Renyi 1953), and the longest lies
s (H_n - 1) beyond their mean. So such a launch loses

    sum_j phi(j) / j  /  (H_n - 1)

seconds for each token that its longest context is beyond the mean, H_n being the harmonic number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from cbsim.cost.attention_grid import AttentionGrid, Skew, UnequalTable, harmonic_numbers
from cbsim.cost.form import StepForm
from cbsim.cost.profile_record import form_attention_s
from cbsim.cost.step_columns import Floats, StepColumns
from cbsim.lab.calibrate.point import Point

LEAST_MEAN, MOST_MEAN = 256, 3000
"""Mean contexts of the timings used: where serving sits, and where a loss is more than noise."""
LARGEST_SHARE = 0.5
"""Of decodes with the longer context in the timings used: with more it is the short ones that are odd."""
LEAP = 0.5
"""Launches that lose less than this share of what the next larger ones do still split their contexts."""
SPLIT_SHARE = 0.8
USUAL_HEADS = 256


class Splitting(NamedTuple):
    """Up to how many decodes a launch without chunks splits their contexts.

    FlashAttention-2 does (`num_splits_heuristic`) unless decodes x KV heads fill 0.8 of twice the GPU's
    multiprocessors: up to 25 decodes of 8 heads on 128 of them, up to 37 on 188.
    """

    num_kv_heads: int = 8
    """Of one GPU."""
    num_multiprocessors: int | None = None

    @property
    def up_to(self) -> int:
        """Decodes; as on a GPU of usual size where the number of multiprocessors is not known."""
        if self.num_multiprocessors is None:
            return USUAL_HEADS // self.num_kv_heads
        return int(np.ceil(SPLIT_SHARE * 2 * self.num_multiprocessors / self.num_kv_heads)) - 1


USUAL_SPLITTING = Splitting()


def with_timed_skew(form: StepForm, points: Sequence[Point], splitting: Splitting) -> StepForm:
    """The form with what `unequal` points say in place of theory; as it is where it has no tables."""
    if form.grid is None or not points:
        return form
    lost = _lost(form, points)
    grid = form.grid
    alone = {count: lost_s for (tokens, count), lost_s in lost.items() if tokens == 0}
    among = {sizes: lost_s for sizes, lost_s in lost.items() if sizes[0] > 0}
    if len(alone) > 1:
        skew = _with_table(grid.decode.skew, _of_decodes(alone, splitting))
        grid = grid.model_copy(update={"decode": grid.decode.model_copy(update={"skew": skew})})
    if grid.mixed is not None and len({count for _, count in among}) > 1:
        skew = _with_table(grid.mixed.skew, _of_mixed(among))
        grid = grid.model_copy(update={"mixed": grid.mixed.model_copy(update={"skew": skew})})
    return form.model_copy(update={"grid": AttentionGrid(**dict(grid))})


def _with_table(skew: Skew, timed: UnequalTable) -> Skew:
    return skew.model_copy(update={"timed": timed})


def _lost(form: StepForm, points: Sequence[Point]) -> dict[tuple[int, int], float]:
    """By tokens of chunks and number of decodes, `sum_j phi(j) / j`, seconds a token.

    Timings of unequal and equal contexts count by their ratio: seconds are those that the form has for equal
    contexts.
    """
    used = [point for point in points if _is_used(point)]
    equal = [
        point.shape._replace(max_decode_context=-(-point.decode_context // point.num_decodes))
        for point in used
    ]
    decode_s, rest_s = form_attention_s(form, StepColumns.from_shapes(equal))
    phi: dict[tuple[int, int], dict[int, list[float]]] = {}
    for point, equal_s in zip(used, (decode_s + rest_s).tolist(), strict=True):
        size = sum(tokens for tokens, _ in point.chunks), point.num_decodes
        more_s = (point.t_median_s / point.t_equal_s - 1.0) * equal_s
        phi.setdefault(size, {}).setdefault(point.num_longest, []).append(more_s / _difference(point))
    return {size: _summed(size[1], by_number) for size, by_number in sorted(phi.items())}


def _is_used(point: Point) -> bool:
    is_usual = LEAST_MEAN <= point.decode_context / point.num_decodes <= MOST_MEAN
    return is_usual and point.num_longest <= LARGEST_SHARE * point.num_decodes and _difference(point) > 0


def _difference(point: Point) -> float:
    """Tokens from the other contexts to the longest."""
    others = point.decode_context - point.num_longest * point.max_decode_context
    return point.max_decode_context - others / (point.num_decodes - point.num_longest)


def _summed(count: int, phi: Mapping[int, Sequence[float]]) -> float:
    """`sum_j phi(j) / j` of launches of `count` decodes: medians, linear in log j between, none beyond."""
    numbers = np.array(sorted(phi), dtype=np.float64)
    medians = [float(np.median(phi[int(number)])) for number in numbers]
    left = np.arange(1.0, count)
    return float((np.interp(np.log(left), np.log(numbers), medians, right=0.0) / left).sum())


def _of_decodes(lost: Mapping[int, float], splitting: Splitting) -> UnequalTable:
    """Of decodes alone: between two numbers timed, the loss leaps where contexts are no longer split."""
    counts = sorted(lost)
    losses = dict(lost)
    last = splitting.up_to
    for low, high in pairwise(counts):
        if low <= last < high and lost[low] < LEAP * lost[high]:
            losses |= {last: lost[low], last + 1: lost[high]}
    knots = np.array(sorted(losses))
    line = _a_token(knots, np.array([losses[int(count)] for count in knots]))
    return _table((0, 1), knots, np.stack([line, line]))


def _of_mixed(lost: Mapping[tuple[int, int], float]) -> UnequalTable:
    """Of decodes among chunks; what was not timed at some tokens is taken from the numbers around it."""
    tokens, counts = (np.unique(sizes) for sizes in np.array(list(lost)).T)
    rows = []
    for size in tokens.tolist():
        timed = np.array([count for count in counts.tolist() if (size, count) in lost])
        line = _a_token(timed, np.array([lost[size, int(count)] for count in timed]))
        rows.append(np.interp(counts, timed, line))
    if len(rows) == 1:
        tokens, rows = np.append(tokens, tokens + 1), [*rows, *rows]
    return _table(tuple(tokens.tolist()), counts, np.stack(rows))


def _a_token(counts: Floats, lost: Floats) -> Floats:
    """Seconds for each token that the longest context is beyond the mean; none where timings say a gain."""
    beyond = harmonic_numbers(int(counts[-1]))[counts.astype(np.int64)] - 2.0
    return np.maximum(lost, 0.0) / np.maximum(beyond, 0.5)


def _table(tokens: tuple[int, ...], counts: Floats, lost: Floats) -> UnequalTable:
    rounded = tuple(float(f"{value:.4g}") for value in lost.ravel())
    return UnequalTable(
        tokens=tokens, decodes=tuple(int(count) for count in counts), lost_s_per_token=rounded
    )
