"""Fits of what takes time by rows, and by tiles of rows: a layer outside attention, LM head and sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import nnls

from cbsim.cost.form import DenseTable, LogitsForm, Tiles
from cbsim.cost.step_columns import Floats
from cbsim.lab.calibrate.coefficients import (
    LOSS_SCALE,
    NUM_FOLDS,
    can_be_left_out,
    clearly_best,
    left_out_loss,
    soft_weights,
)
from cbsim.lab.calibrate.point import Point, seconds_of

TILES = (
    Tiles(),
    *(Tiles(height=height, share=share) for height in (32, 64, 128, 256) for share in (0.25, 0.5, 0.75, 1.0)),
)
"""Cross-validation chooses among them; the heights are those of the tiles of cuBLAS and CUTLASS."""
KNOT_RATIO = 1.08
"""Knots are at least this ratio of counted tokens apart,"""
EVERY_COUNT = 1.0
"""or stand at every count, where that says clearly more of counts left out: timings every few tokens show
where kernels change, which differs from one product of a layer to the next. Such a table may fall too, where
that says clearly more still: a library may choose a slower kernel for fewer rows than for more."""
SMOOTHINGS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Weights of the roughness that cross-validation chooses among."""
FIRST_SMOOTHING = 0.1
"""The one that tiles are chosen with."""
ROUGHNESS_SCALE = 0.1
"""Larger changes of slope, in seconds over tokens, count linearly: a knee may stay one."""
NUM_DENSE_REWEIGHTINGS, NUM_LOGITS_REWEIGHTINGS = 4, 12
MIN_TAIL_POINTS = 3
KINKS = (128.0, 256.0)
"""Rows of logits from which the form allows a steeper rise."""


def fit_dense(points: Sequence[Point], *, may_fall: bool = False) -> DenseTable:
    """A layer outside attention as a table with least relative error: it rises, or `may_fall` where timings
    clearly do.

    Cross-validation chooses its tiles, its smoothness and whether it falls. The slope beyond it is that of
    a line through the last quarter of the points: one segment says too little.
    """
    tokens, seconds = _by_size(points)
    if not can_be_left_out(len(points)):
        return _dense(TILES[0], SMOOTHINGS[0], KNOT_RATIO, True, tokens, seconds)

    def loss(*shape: Any) -> float:
        return _loss(partial(_dense, *shape), tokens, seconds)

    tiles = TILES[clearly_best([loss(tiles, FIRST_SMOOTHING, KNOT_RATIO, True) for tiles in TILES])]
    smoothing = min(SMOOTHINGS, key=lambda smoothing: loss(tiles, smoothing, KNOT_RATIO, True))
    shapes = [(tiles, smoothing, KNOT_RATIO, True), (tiles, SMOOTHINGS[0], EVERY_COUNT, True)]
    if may_fall:
        shapes.append((tiles, SMOOTHINGS[0], EVERY_COUNT, False))
    return _dense(*shapes[clearly_best([loss(*shape) for shape in shapes])], tokens, seconds)


def fit_logits(points: Sequence[Point]) -> LogitsForm:
    """LM head and sampling with least relative error, soft L1; cross-validation chooses the tiles."""
    rows, seconds = _by_size(points)
    if not can_be_left_out(len(points)):
        return _logits(TILES[0], rows, seconds)
    losses = [_loss(partial(_logits, tiles), rows, seconds) for tiles in TILES]
    return _logits(TILES[clearly_best(losses)], rows, seconds)


def _by_size(points: Sequence[Point]) -> tuple[Floats, Floats]:
    """Rows and seconds of points, the smallest first."""
    points = sorted(points, key=lambda point: point.size)
    return np.array([point.size for point in points], dtype=np.float64), seconds_of(points)


def _loss(
    fitted: Callable[[Floats, Floats], DenseTable | LogitsForm], rows: Floats, seconds: Floats
) -> float:
    """What a fit says of points in order of size that it is not given; the two ends are always given."""
    fold = np.arange(len(rows)) % NUM_FOLDS
    fold[[0, -1]] = -1
    return left_out_loss(seconds, fold, lambda kept: fitted(rows[kept], seconds[kept]).at(rows[~kept]))


def _dense(
    tiles: Tiles, smoothing: float, ratio: float, rises: bool, tokens: Floats, seconds: Floats
) -> DenseTable:
    counted = tiles.counted(tokens)
    knots = _knots(counted, ratio)
    return DenseTable(
        tiles=tiles,
        tokens=tuple(int(knot) for knot in knots),
        seconds=tuple(_heights(knots, counted, seconds, smoothing, rises).tolist()),
        tail_s_per_token=_tail_slope(counted, seconds),
    )


def _knots(counts: Floats, ratio: float) -> Floats:
    """Whole counts at least a ratio apart, the first and the last included."""
    distinct = np.unique(np.round([*counts, np.ceil(counts.max())]))
    knots = [distinct[0]]
    for count in distinct[1:-1]:
        if count >= ratio * knots[-1] and distinct[-1] >= ratio * count:
            knots.append(count)
    return np.array(knots if len(distinct) == 1 else [*knots, distinct[-1]])


def _heights(knots: Floats, tokens: Floats, seconds: Floats, smoothing: float, rises: bool) -> Floats:
    """Heights at the knots, each >= the one before if the table `rises`.

    Least squares, then non-negative, for the first height and the steps from one to the next, of relative
    errors and changes of slope, reweighted as soft L1 asks.
    """
    if len(knots) == 1:
        return np.array([np.median(seconds)])
    position = np.clip(np.searchsorted(knots, tokens, side="right") - 1, 0, len(knots) - 2)
    share = (tokens - knots[position]) / (knots[position + 1] - knots[position])
    rise = np.arange(1, len(knots))
    risen = np.clip((position - rise[:, None] + 1) + share, 0.0, 1.0)
    fidelity = np.vstack([np.ones(len(tokens)), risen]).T / seconds[:, None]
    slopes = np.eye(len(knots))[1:] / np.diff(knots)[:, None]
    bends = np.diff(slopes, axis=0)
    weights, bend_weights = np.ones(len(tokens)), np.ones(len(bends))
    heights: Floats = np.interp(knots, tokens, seconds)
    for _ in range(NUM_DENSE_REWEIGHTINGS):
        relative_bends = bends * (knots[1:-1] / heights[1:-1])[:, None]
        system = np.vstack([fidelity * weights[:, None], smoothing * relative_bends * bend_weights[:, None]])
        wanted = np.concatenate([weights, np.zeros(len(bends))])
        steps = nnls(system, wanted)[0] if rises else np.linalg.lstsq(system, wanted)[0]
        weights = soft_weights((fidelity @ steps - 1.0) / LOSS_SCALE)
        bend_weights = soft_weights(relative_bends @ steps / ROUGHNESS_SCALE)
        heights = np.maximum(np.cumsum(steps), seconds.min() * 1e-3)
    return heights


def _tail_slope(tokens: Floats, seconds: Floats) -> float:
    """Seconds a token beyond the table: more rows at once never cost more each than those before them."""
    last = slice(-max(MIN_TAIL_POINTS, len(tokens) // 4), None)
    average = float(seconds[-1] / tokens[-1])
    tokens, seconds = tokens[last], seconds[last]
    if tokens[0] == tokens[-1]:
        return average
    slope = float(np.polyfit(tokens, seconds, 1, w=1.0 / seconds)[0])
    return min(max(0.0, slope), average)


def _logits(tiles: Tiles, rows: Floats, seconds: Floats) -> LogitsForm:
    """The form is linear in its coefficients, so non-negative least squares finds them."""
    counted = tiles.counted(rows)
    beyond = [np.maximum(counted - kink, 0.0) for kink in KINKS]
    system = np.stack([np.ones(len(rows)), counted, *beyond], axis=1) / seconds[:, None]
    # Columns of like size, or nnls takes the small ones for none.
    scale = np.maximum(np.linalg.norm(system, axis=0), 1e-300)
    weights = np.ones(len(rows))
    for _ in range(NUM_LOGITS_REWEIGHTINGS):
        found, _ = nnls(system / scale * weights[:, None], weights)
        weights = soft_weights((system @ (found / scale) - 1.0) / LOSS_SCALE)
    names = ("fixed_s", "per_row_s", "per_row_beyond_128_s", "per_row_beyond_256_s")
    return LogitsForm(tiles=tiles, **dict(zip(names, (found / scale).tolist(), strict=True)))
