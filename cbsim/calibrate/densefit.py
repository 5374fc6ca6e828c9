"""The fit of a layer's work outside attention: a rising piecewise-linear table by tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from cbsim.calibrate.attentionfit import seconds_of
from cbsim.calibrate.coefficients import LOSS_SCALE
from cbsim.calibrate.point import Point
from cbsim.cost.form import DenseTable, Floats

Steps = NDArray[np.bool_]

KNOT_RATIO = 1.08
"""Knots are at least this ratio of token counts apart."""
JUMP_RATIO = 1.08
"""A closer neighbour that takes so much longer is a knot all the same: the edge of a step."""
SMOOTHINGS = (0.01, 0.03, 0.1, 0.3)
"""Weights of the roughness, of which cross-validation takes one."""
ROUGHNESS_SCALE = 0.1
"""Larger changes of slope, in seconds over tokens, count linearly: steps may stay steps."""
NUM_REWEIGHTINGS = 4
NUM_FOLDS = 5
MIN_TAIL_POINTS = 3


def fit_dense(points: Sequence[Point]) -> DenseTable:
    """A monotone table with least relative error, as smooth as cross-validation finds it to be.

    The slope beyond it is that of a line through the last quarter of the points: one segment says too little.
    """
    points = sorted(points, key=lambda point: point.tokens)
    tokens = np.array([point.tokens for point in points], dtype=np.float64)
    seconds = seconds_of(points)
    knots, edges = _knots(tokens, seconds)
    heights = _heights(knots, edges, tokens, seconds, _best_smoothing(tokens, seconds))
    return DenseTable(
        tokens=tuple(int(count) for count in knots),
        seconds=tuple(float(height) for height in heights),
        tail_s_per_token=_tail_slope(tokens, seconds),
    )


def _knots(tokens: Floats, seconds: Floats) -> tuple[Floats, Steps]:
    """Token counts far enough apart, first and last included, and which of them are the edge of a step.

    A close neighbour that takes much longer is the far edge of one: tiles make a staircase of matrix products
    on some GPUs.
    """
    is_edge: dict[float, bool] = {float(tokens[0]): False}
    last = tokens[0]
    for index in range(1, len(tokens)):
        before, count = float(tokens[index - 1]), float(tokens[index])
        close = before < count < KNOT_RATIO * before
        if close and seconds[index] > JUMP_RATIO * seconds[index - 1]:
            is_edge[before] = is_edge[count] = True
            last = count
        elif count >= KNOT_RATIO * last:
            is_edge[count] = False
            last = count
    end = float(tokens[-1])
    if end not in is_edge:
        if len(is_edge) > 1 and not is_edge[last]:
            del is_edge[last]
        is_edge[end] = False
    knots = np.array(sorted(is_edge))
    return knots, np.array([is_edge[knot] for knot in knots])


def _heights(knots: Floats, edges: Steps, tokens: Floats, seconds: Floats, smoothing: float) -> Floats:
    """Heights at the knots, each >= the one before; at the edges of steps they may bend as they like.

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
    bends = _bends(knots) * ~edges[1:-1, None]
    weights, bend_weights = np.ones(len(tokens)), np.ones(len(bends))
    heights: Floats = np.interp(knots, tokens, seconds)
    for _ in range(NUM_REWEIGHTINGS):
        relative_bends = bends * (knots[1:-1] / heights[1:-1])[:, None]
        system = np.vstack([fidelity * weights[:, None], smoothing * relative_bends * bend_weights[:, None]])
        rises, _ = nnls(system, np.concatenate([weights, np.zeros(len(bends))]))
        weights = _soft((fidelity @ rises - 1.0) / LOSS_SCALE)
        bend_weights = _soft(relative_bends @ rises / ROUGHNESS_SCALE)
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


def _soft(residuals: Floats) -> Floats:
    """Weights of soft L1: 1 for small residuals, falling with large ones."""
    weights: Floats = (1.0 + residuals**2) ** -0.25
    return weights


def _best_smoothing(tokens: Floats, seconds: Floats) -> float:
    """The smoothing that predicts left-out points best; the ends are always kept."""
    if len(tokens) < 2 * NUM_FOLDS:
        return SMOOTHINGS[0]
    fold = np.arange(len(tokens)) % NUM_FOLDS
    fold[[0, -1]] = -1

    def loss(smoothing: float) -> float:
        errors = []
        for number in range(NUM_FOLDS):
            kept = fold != number
            knots, edges = _knots(tokens[kept], seconds[kept])
            heights = _heights(knots, edges, tokens[kept], seconds[kept], smoothing)
            errors.append(np.log(np.interp(tokens[~kept], knots, heights) / seconds[~kept]))
        scaled = np.concatenate(errors) / LOSS_SCALE
        return float(np.mean(np.sqrt(1.0 + scaled**2)))

    return min(SMOOTHINGS, key=loss)


def _tail_slope(tokens: Floats, seconds: Floats) -> float:
    """Seconds a token beyond the table."""
    if len(tokens) == 1:
        return 0.0
    last = slice(-max(MIN_TAIL_POINTS, len(tokens) // 4), None)
    return max(0.0, float(np.polyfit(tokens[last], seconds[last], 1, w=1.0 / seconds[last])[0]))
