"""The fit of a layer's work outside attention: a rising piecewise-linear table by tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from cbsim.cost.form import DenseTable, Tiles
from cbsim.cost.step_columns import Floats
from cbsim.lab.calibrate.attentionfit import seconds_of
from cbsim.lab.calibrate.coefficients import LOSS_SCALE, soft_weights
from cbsim.lab.calibrate.leftout import (
    TILES,
    Mask,
    can_be_left_out,
    clearly_best,
    folds_in_order,
    left_out_loss,
)
from cbsim.lab.calibrate.point import Point

KNOT_RATIO = 1.08
"""Knots are at least this ratio of counted tokens apart."""
SMOOTHINGS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Weights of the roughness, of which cross-validation takes one."""
FIRST_SMOOTHING = 0.1
"""The one that tiles are chosen with."""
ROUGHNESS_SCALE = 0.1
"""Larger changes of slope, in seconds over tokens, count linearly: a knee may stay one."""
NUM_REWEIGHTINGS = 4
MIN_TAIL_POINTS = 3


def fit_dense(points: Sequence[Point]) -> DenseTable:
    """A monotone table with least relative error; cross-validation chooses its tiles and its smoothness.

    The slope beyond it is that of a line through the last quarter of the points: one segment says too little.
    """
    points = sorted(points, key=lambda point: point.tokens)
    tokens = np.array([point.tokens for point in points], dtype=np.float64)
    seconds = seconds_of(points)

    fold = folds_in_order(len(points))

    def loss(tiles: Tiles, smoothing: float) -> float:
        def predict(kept: Mask) -> Floats:
            return _fitted(tiles, smoothing, tokens[kept], seconds[kept]).at(tokens[~kept])

        return left_out_loss(seconds, fold, predict)

    if not can_be_left_out(len(points)):
        return _fitted(TILES[0], SMOOTHINGS[0], tokens, seconds)
    tiles = TILES[clearly_best([loss(tiles, FIRST_SMOOTHING) for tiles in TILES])]
    smoothing = min(SMOOTHINGS, key=lambda smoothing: loss(tiles, smoothing))
    return _fitted(tiles, smoothing, tokens, seconds)


def _fitted(tiles: Tiles, smoothing: float, tokens: Floats, seconds: Floats) -> DenseTable:
    counted = tiles.counted(tokens)
    knots = _knots(counted)
    return DenseTable(
        tiles=tiles,
        tokens=tuple(int(knot) for knot in knots),
        seconds=tuple(_heights(knots, counted, seconds, smoothing).tolist()),
        tail_s_per_token=_tail_slope(counted, seconds),
    )


def _knots(counts: Floats) -> Floats:
    """Whole counts far enough apart, the first and the last included."""
    distinct = np.unique(np.round([*counts, np.ceil(counts.max())]))
    knots = [distinct[0]]
    for count in distinct[1:-1]:
        if count >= KNOT_RATIO * knots[-1] and distinct[-1] >= KNOT_RATIO * count:
            knots.append(count)
    return np.array(knots if len(distinct) == 1 else [*knots, distinct[-1]])


def _heights(knots: Floats, tokens: Floats, seconds: Floats, smoothing: float) -> Floats:
    """Heights at the knots, each >= the one before.

    Non-negative least squares for the first height and the rises, of relative errors and changes of slope,
    reweighted as soft L1 asks.
    """
    if len(knots) == 1:
        return np.array([np.median(seconds)])
    position = np.clip(np.searchsorted(knots, tokens, side="right") - 1, 0, len(knots) - 2)
    share = (tokens - knots[position]) / (knots[position + 1] - knots[position])
    rise = np.arange(1, len(knots))
    risen = np.clip((position - rise[:, None] + 1) + share, 0.0, 1.0)
    fidelity = np.vstack([np.ones(len(tokens)), risen]).T / seconds[:, None]
    bends = _bends(knots)
    weights, bend_weights = np.ones(len(tokens)), np.ones(len(bends))
    heights: Floats = np.interp(knots, tokens, seconds)
    for _ in range(NUM_REWEIGHTINGS):
        relative_bends = bends * (knots[1:-1] / heights[1:-1])[:, None]
        system = np.vstack([fidelity * weights[:, None], smoothing * relative_bends * bend_weights[:, None]])
        rises, _ = nnls(system, np.concatenate([weights, np.zeros(len(bends))]))
        weights = soft_weights((fidelity @ rises - 1.0) / LOSS_SCALE)
        bend_weights = soft_weights(relative_bends @ rises / ROUGHNESS_SCALE)
        heights = np.maximum(np.cumsum(rises), seconds.min() * 1e-3)
    return heights


def _bends(knots: Floats) -> Floats:
    """The matrix that makes changes of slope at the inner knots of the first height and the rises."""
    width = np.diff(knots)
    bends = np.zeros((len(knots) - 2, len(knots)))
    for row in range(len(bends)):
        bends[row, row + 1] = -1.0 / width[row]
        bends[row, row + 2] = 1.0 / width[row + 1]
    return bends


def _tail_slope(tokens: Floats, seconds: Floats) -> float:
    """Seconds a token beyond the table: more rows at once never cost more each than those before them."""
    last = slice(-max(MIN_TAIL_POINTS, len(tokens) // 4), None)
    average = float(seconds[-1] / tokens[-1])
    tokens, seconds = tokens[last], seconds[last]
    if tokens[0] == tokens[-1]:
        return average
    slope = float(np.polyfit(tokens, seconds, 1, w=1.0 / seconds)[0])
    return min(max(0.0, slope), average)
