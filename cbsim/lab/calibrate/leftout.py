"""Cross-validation: what a fit says of points it was not given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cbsim.cost.form import Tiles
from cbsim.cost.step_columns import Floats
from cbsim.lab.calibrate.coefficients import soft_loss

Mask = NDArray[np.bool_]
Folds = NDArray[np.int64]

NUM_FOLDS = 5
MIN_GAIN = 0.04
"""Share of the loss that a form with more to say must take away, or the simpler one is kept."""
TILES = (
    Tiles(),
    *(Tiles(height=height, share=share) for height in (32, 64, 128, 256) for share in (0.25, 0.5, 0.75, 1.0)),
)
"""Of which cross-validation takes one; the heights are those of the tiles of cuBLAS and CUTLASS."""


def folds_in_order(num_points: int) -> Folds:
    """The fold of each point, in order of size; none of the first and the last, which are never left out."""
    fold = np.arange(num_points) % NUM_FOLDS
    fold[[0, -1]] = -1
    return fold


def left_out_loss(seconds: Floats, fold: Folds, predict: Callable[[Mask], Floats]) -> float:
    """Mean soft L1 loss over points, each left out once with the others of its fold.

    `predict` says the seconds of those that a mask leaves out, by a fit to those it keeps.
    """
    errors = []
    for number in range(NUM_FOLDS):
        kept = fold != number
        errors.append(np.log(predict(kept) / seconds[~kept]))
    return soft_loss(np.concatenate(errors))


def clearly_best(losses: Sequence[float]) -> int:
    """The index of the least loss, or 0, that of the simplest form, if the least is not clearly less."""
    best = int(np.argmin(losses))
    return best if losses[best] < (1.0 - MIN_GAIN) * losses[0] else 0


def can_be_left_out(num_points: int) -> bool:
    """Whether there are enough points for it."""
    return num_points >= 2 * NUM_FOLDS
