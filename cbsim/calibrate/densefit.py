"""Fits of the work outside attention: one layer by tokens, LM head and sampling by rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from cbsim.calibrate.attentionfit import seconds_of
from cbsim.calibrate.coefficients import LOSS_SCALE, Unknown, fit_coefficients
from cbsim.calibrate.point import Point
from cbsim.cost.form import DenseTable, Floats, LogitsForm

MIN_TAIL_KNOTS = 3
KNOT_RATIO = 1.08
JUMP_RATIO = 1.08
NUM_REWEIGHTINGS = 6


def fit_dense(points: Sequence[Point]) -> DenseTable:
    """A rising table through the timings: monotone piecewise-linear regression of relative errors.

    Every count measured is a knot unless the one before is almost as large: noise in neighbours averages out.
    """
    points = sorted(points, key=lambda point: point.tokens)
    tokens = np.array([point.tokens for point in points], dtype=np.float64)
    seconds = seconds_of(points)
    knots = _knots(tokens, seconds)
    return DenseTable(
        tokens=tuple(int(count) for count in knots),
        seconds=tuple(float(height) for height in _rising_heights(knots, tokens, seconds)),
        tail_s_per_token=_tail_slope(tokens, seconds),
    )


def fit_logits(points: Sequence[Point], rng: np.random.Generator) -> LogitsForm:
    """Fit LM head and sampling."""
    seconds = seconds_of(points)
    rows = np.array([point.num_logits for point in points])
    per_row = float(seconds[rows.argmax()] / rows.max())
    unknowns = [
        Unknown("fixed_s", float(seconds.min())),
        Unknown("per_row_s", 0.1 * per_row),
        Unknown("per_row_beyond_128_s", 0.1 * per_row),
        Unknown("per_row_beyond_256_s", 0.1 * per_row),
    ]
    fit = fit_coefficients(
        lambda values: LogitsForm.model_construct(None, **values).at(rows),
        unknowns,
        seconds,
        np.ones(len(seconds)),
        rng,
    )
    return LogitsForm(**fit.values)


def _knots(tokens: Floats, seconds: Floats) -> Floats:
    """Token counts far enough apart, first and last included.

    A neighbour counts as well if time jumps there: tiles make a staircase of matrix products on some GPUs.
    """
    knots = [tokens[0]]
    for index in range(1, len(tokens)):
        jumps = seconds[index] > JUMP_RATIO * seconds[index - 1] and tokens[index] > tokens[index - 1]
        if tokens[index] >= KNOT_RATIO * knots[-1] or jumps:
            if jumps and tokens[index - 1] > knots[-1]:
                knots.append(tokens[index - 1])
            knots.append(tokens[index])
    if knots[-1] != tokens[-1]:
        knots = [*knots[:-1], tokens[-1]] if len(knots) > 1 else [*knots, tokens[-1]]
    return np.array(knots)


def _rising_heights(knots: Floats, tokens: Floats, seconds: Floats) -> Floats:
    """Heights at the knots, each >= the one before, that fit the timings with least relative error.

    Non-negative least squares for the first height and the rises, reweighted as soft L1 asks.
    """
    if len(knots) == 1:
        return np.array([np.median(seconds)])
    position = np.clip(np.searchsorted(knots, tokens, side="right") - 1, 0, len(knots) - 2)
    share = (tokens - knots[position]) / (knots[position + 1] - knots[position])
    rise = np.arange(1, len(knots))
    risen = np.clip((position - rise[:, None] + 1) + share, 0.0, 1.0)
    design = np.vstack([np.ones(len(tokens)), risen]).T / seconds[:, None]
    weights = np.ones(len(tokens))
    for _ in range(NUM_REWEIGHTINGS):
        rises, _ = nnls(design * weights[:, None], weights)
        residuals = design @ rises - 1.0
        weights = (1.0 + (residuals / LOSS_SCALE) ** 2) ** -0.25
    heights: Floats = np.cumsum(rises)
    return heights


def _tail_slope(tokens: Floats, seconds: Floats) -> float:
    """Seconds a token beyond the table: least squares over its last quarter; one segment says too little."""
    if len(tokens) == 1:
        return 0.0
    in_tail = tokens >= 0.75 * tokens[-1]
    if in_tail.sum() < MIN_TAIL_KNOTS:
        in_tail = np.arange(len(tokens)) >= len(tokens) - MIN_TAIL_KNOTS
    return max(0.0, float(np.polyfit(tokens[in_tail], seconds[in_tail], 1, w=1.0 / seconds[in_tail])[0]))
