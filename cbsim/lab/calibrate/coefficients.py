"""Least squares on log residuals: coefficients >= 0 that fit timings over all magnitudes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from cbsim.cost.step_columns import Floats

Values = dict[str, float]

ZERO_BELOW = 1e-5
"""A coefficient that ends below this share of its first guess does nothing and is set to 0."""
LOSS_SCALE = 0.02
"""Relative error from which residuals count linearly rather than squared (soft L1)."""
KINK_SHARE = 0.5
"""Of the largest size timed, below which a line must bend."""
NUM_STARTS = 5
NEXT_TO_NOTHING = 1e-7
"""Of its first guess, where the search for a coefficient that was found to be 0 starts again."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A coefficient to be found: by its logarithm, or within `[lower, upper]` where an upper end is given."""

    name: str
    guess: float
    upper: float | None = None
    lower: float = 0.0
    pull: float = 0.0
    """Towards 0: the coefficient times this counts as one more relative error."""

    def encode(self, value: float) -> float:
        """The number that the search moves."""
        return math.log(max(value, self.guess * NEXT_TO_NOTHING)) if self.upper is None else value

    def decode(self, number: float) -> float:
        """Back from it."""
        return math.exp(number) if self.upper is None else number

    @property
    def bounds(self) -> tuple[float, float]:
        """Of the number searched: seven decades down, three up."""
        if self.upper is not None:
            return self.lower, self.upper
        return math.log(self.guess) - 7 * math.log(10), math.log(self.guess) + 3 * math.log(10)


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients found and the loss they leave."""

    values: Values
    loss: float


def fit_coefficients(
    predict: Callable[[Values], Floats],
    unknowns: Sequence[Unknown],
    seconds: Floats,
    weights: Floats,
    rng: np.random.Generator,
    start_at: Values | None = None,
) -> Fit:
    """The best of several starts of `least_squares` with soft L1 loss on `log(predicted / measured)`.

    The first starts at the guesses; with `start_at` there is that one start only.
    """
    log_seconds = np.log(seconds)
    root_weights = np.sqrt(weights)

    def residuals(numbers: Floats) -> Floats:
        values = _decode(unknowns, numbers)
        result: Floats = root_weights * (np.log(np.maximum(predict(values), 1e-12)) - log_seconds)
        return np.concatenate([result, pulls * numbers]) if pulls.any() else result

    pulls = np.array([unknown.pull for unknown in unknowns])
    guesses = {unknown.name: unknown.guess for unknown in unknowns} | (start_at or {})
    first = np.array([unknown.encode(guesses[unknown.name]) for unknown in unknowns])
    lower = np.array([unknown.bounds[0] for unknown in unknowns])
    upper = np.array([unknown.bounds[1] for unknown in unknowns])
    best = None
    for start in range(NUM_STARTS if start_at is None else 1):
        numbers = first if start == 0 else first + rng.normal(0.0, 1.0, len(first))
        numbers = np.clip(numbers, lower + 1e-9, upper - 1e-9)
        found = least_squares(
            residuals, numbers, bounds=(lower, upper), loss="soft_l1", f_scale=LOSS_SCALE, max_nfev=200
        )
        if best is None or found.cost < best.cost:
            best = found
    assert best is not None
    values = _decode(unknowns, best.x)
    for unknown in unknowns:
        if unknown.upper is None and values[unknown.name] < ZERO_BELOW * unknown.guess:
            values[unknown.name] = 0.0
    return Fit(values, float(best.cost))


def fit_with_bend(
    predict: Callable[[Values], Floats],
    unknowns: Sequence[Unknown],
    bend: str,
    straight: Values,
    sizes: NDArray[np.int64],
    seconds: Floats,
    weights: Floats,
    rng: np.random.Generator,
) -> Values:
    """Coefficients of a line that may bend at one of `sizes`, the coefficient `bend`.

    Those of a line that doesn't, `straight`, stand in their places where the bend would lie beyond what was
    timed.
    """
    fit = fit_coefficients(lambda values: predict(straight | values), unknowns, seconds, weights, rng)
    if is_beyond(fit.values[bend], sizes):
        unbent = [unknown for unknown in unknowns if unknown.name not in straight]
        fit = fit_coefficients(lambda values: predict(straight | values), unbent, seconds, weights, rng)
    return straight | fit.values


def is_beyond(kink: float, sizes: NDArray[np.int64]) -> bool:
    """Whether a line bends beyond what was timed, or so near its end that the slope from there is made up."""
    return kink > KINK_SHARE * float(sizes.max())


def soft_loss(log_errors: Floats) -> float:
    """Mean soft L1 loss of some relative errors."""
    return float(np.mean(np.sqrt(1.0 + (log_errors / LOSS_SCALE) ** 2)))


def soft_weights(residuals: Floats) -> Floats:
    """Weights of soft L1 in least squares that are solved again and again; they multiply residuals."""
    weights: Floats = (1.0 + residuals**2) ** -0.25
    return weights


def _decode(unknowns: Sequence[Unknown], numbers: Floats) -> Values:
    return {
        unknown.name: unknown.decode(float(number)) for unknown, number in zip(unknowns, numbers, strict=True)
    }
