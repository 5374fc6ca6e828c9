"""Cross-validation: what a fit says of points it was not given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cbsim.cost.step_columns import Floats, Ints
from cbsim.lab.calibrate.coefficients import soft_loss

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
