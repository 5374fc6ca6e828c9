"""Least squares on log residuals: coefficients >= 0 that fit timings of all magnitudes; cross-validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from cbsim.cost.step_columns import Floats, Ints

Values = dict[str, float]
Predict = Callable[[Any], Floats]
"""Seconds of timings by the values of coefficients: by `Values`, or for columns of several values each, a row
for each of them."""

ZERO_BELOW = 1e-5
"""A coefficient that ends below this share of its first guess does nothing and is set to 0."""
LOSS_SCALE = 0.02
"""Relative error from which residuals count linearly rather than squared (soft L1)."""
KINK_SHARE = 0.5
"""Of the largest size timed, below which a line must bend."""
NUM_STARTS = 5
STEP = float(np.sqrt(np.finfo(np.float64).eps))
"""Of differences that stand for slopes: what `least_squares` itself takes."""
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


class Fit(NamedTuple):
    """Coefficients found and the loss they leave."""

    values: Values
    loss: float


@dataclass(frozen=True, slots=True)
class Search:
    """Timings, how much each counts, and the random starts of searches for coefficients that fit them."""

    seconds: Floats
    weights: Floats
    rng: np.random.Generator

    def fit(self, predict: Predict, unknowns: Sequence[Unknown], start_at: Values | None = None) -> Fit:
        """The best of several starts of `least_squares` with soft L1 loss on `log(predicted / measured)`.

        The first starts at the guesses; with `start_at` there is that one start only.
        """
        log_seconds = np.log(self.seconds)
        root_weights = np.sqrt(self.weights)
        pulls = np.array([unknown.pull for unknown in unknowns])

        def decoded(numbers: Floats) -> Values:
            pairs = zip(unknowns, numbers.tolist(), strict=True)
            return {unknown.name: unknown.decode(number) for unknown, number in pairs}

        def held_against(values: Any, numbers: Floats) -> Floats:
            predicted = np.maximum(predict(values), 1e-12)
            result: Floats = root_weights * (np.log(predicted) - log_seconds)
            return np.concatenate([result, pulls * numbers], axis=-1) if pulls.any() else result

        def residuals(numbers: Floats) -> Floats:
            return held_against(decoded(numbers), numbers)

        def slopes(numbers: Floats) -> Floats:
            """Forward differences, as `least_squares` takes them, but of all coefficients at once."""
            steps = np.where(numbers >= 0.0, STEP, -STEP) * np.maximum(1.0, np.abs(numbers))
            is_out = (numbers + steps < lower) | (numbers + steps > upper)
            moved = numbers + np.where(is_out, -steps, steps)
            rows = np.tile(numbers, (len(numbers) + 1, 1))
            np.fill_diagonal(rows[1:], moved)
            values: dict[str, Floats] = {}
            for place, (name, value) in enumerate(decoded(numbers).items()):
                values[name] = np.full((len(rows), 1), value)
                values[name][place + 1] = unknowns[place].decode(float(moved[place]))
            found = held_against(values, rows)
            rises: Floats = (found[1:] - found[0]) / (moved - numbers)[:, None]
            return rises.T

        guesses = {unknown.name: unknown.guess for unknown in unknowns} | (start_at or {})
        first = np.array([unknown.encode(guesses[unknown.name]) for unknown in unknowns])
        lower, upper = np.array([unknown.bounds for unknown in unknowns]).T
        starts = [first]
        if start_at is None:
            starts += [first + self.rng.normal(0.0, 1.0, len(first)) for _ in range(NUM_STARTS - 1)]
        how = {"jac": slopes, "bounds": (lower, upper), "max_nfev": 200}
        how |= {"loss": "soft_l1", "f_scale": LOSS_SCALE}
        inside = [np.clip(start, lower + 1e-9, upper - 1e-9) for start in starts]
        best = min((least_squares(residuals, start, **how) for start in inside), key=lambda found: found.cost)
        values = decoded(best.x)
        for unknown in unknowns:
            if unknown.upper is None and values[unknown.name] < ZERO_BELOW * unknown.guess:
                values[unknown.name] = 0.0
        return Fit(values, float(best.cost))

    def fit_bent(
        self, predict: Predict, unknowns: Sequence[Unknown], bend: str, straight: Values, sizes: Ints
    ) -> Values:
        """Coefficients of a line that may bend at one of `sizes`, the coefficient `bend`.

        Those of a line that doesn't, `straight`, stand in their places where the bend would lie beyond what
        was timed.
        """
        values = self.fit(predict, unknowns).values
        if is_beyond(values[bend], sizes):
            unbent = [each for each in unknowns if each.name not in straight]
            values = self.fit(lambda found: predict(straight | found), unbent).values
        return straight | values


def is_beyond(kink: float, sizes: Ints) -> bool:
    """Whether a line bends beyond what was timed, or so near its end that the slope from there is made up."""
    return kink > KINK_SHARE * float(sizes.max())


def soft_loss(log_errors: Floats) -> float:
    """Mean soft L1 loss of some relative errors."""
    return float(np.mean(np.sqrt(1.0 + (log_errors / LOSS_SCALE) ** 2)))


def soft_weights(residuals: Floats) -> Floats:
    """Weights of soft L1 in least squares that are solved again and again; they multiply residuals."""
    weights: Floats = (1.0 + residuals**2) ** -0.25
    return weights


Mask = NDArray[np.bool_]

NUM_FOLDS = 5
MIN_GAIN = 0.04
"""Share of the loss that a form with more to say must take away, or the simpler one is kept."""


def left_out_loss(seconds: Floats, fold: Ints, predict: Callable[[Mask], Floats]) -> float:
    """Mean soft L1 loss over points, each left out once with the others of its fold.

    `predict` says the seconds of those that a mask leaves out, by a fit to those it keeps.
    """
    masks = [fold != number for number in range(NUM_FOLDS)]
    return soft_loss(np.concatenate([np.log(predict(kept) / seconds[~kept]) for kept in masks]))


def clearly_best(losses: Sequence[float]) -> int:
    """The index of the least loss, or 0, that of the simplest form, if the least is not clearly less."""
    best = int(np.argmin(losses))
    return best if losses[best] < (1.0 - MIN_GAIN) * losses[0] else 0


def can_be_left_out(num_points: int) -> bool:
    """Whether there are enough points for it."""
    return num_points >= 2 * NUM_FOLDS
