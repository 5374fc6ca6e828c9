"""The fit of LM head and sampling by rows of logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cbsim.calibrate.attentionfit import seconds_of
from cbsim.calibrate.coefficients import Unknown, fit_coefficients
from cbsim.calibrate.point import Point
from cbsim.cost.form import LogitsForm


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
