"""Fits of the work outside attention: one layer by tokens, LM head and sampling by rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import isotonic_regression

from cbsim.calibrate.attentionfit import columns_of, seconds_of
from cbsim.calibrate.coefficients import Unknown, fit_coefficients
from cbsim.calibrate.point import Point
from cbsim.cost.form import DenseTable, Floats, LogitsForm

MIN_TAIL_KNOTS = 3


def fit_dense(points: Sequence[Point]) -> DenseTable:
    """A rising table through the timings: isotonic regression of their logarithms, a knot a token count."""
    by_tokens: dict[int, list[float]] = {}
    for point in points:
        by_tokens.setdefault(point.tokens, []).append(point.t_median_s)
    tokens = np.array(sorted(by_tokens))
    log_seconds = np.array([np.mean(np.log(by_tokens[count])) for count in tokens])
    weights = np.array([len(by_tokens[count]) for count in tokens], dtype=np.float64)
    seconds = np.exp(isotonic_regression(log_seconds, weights=weights).x)
    return DenseTable(
        tokens=tuple(int(count) for count in tokens),
        seconds=tuple(float(value) for value in seconds),
        tail_s_per_token=_tail_slope(tokens.astype(np.float64), seconds),
    )


def _tail_slope(tokens: Floats, seconds: Floats) -> float:
    """Seconds a token beyond the table: least squares over its last quarter; one segment says too little."""
    if len(tokens) == 1:
        return 0.0
    in_tail = tokens >= 0.75 * tokens[-1]
    if in_tail.sum() < MIN_TAIL_KNOTS:
        in_tail = np.arange(len(tokens)) >= len(tokens) - MIN_TAIL_KNOTS
    return max(0.0, float(np.polyfit(tokens[in_tail], seconds[in_tail], 1)[0]))


def fit_logits(points: Sequence[Point], rng: np.random.Generator) -> LogitsForm:
    """Fit LM head and sampling."""
    columns, seconds = columns_of(points), seconds_of(points)
    rows = columns.num_logits
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
