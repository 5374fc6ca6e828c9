"""The fit of LM head and sampling by rows of logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from cbsim.cost.form import LogitsForm, Tiles
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

NUM_REWEIGHTINGS = 12
KINKS = (128.0, 256.0)
"""Rows from which the form allows a steeper rise."""


def fit_logits(points: Sequence[Point]) -> LogitsForm:
    """Fit LM head and sampling: least relative error, soft L1; cross-validation chooses the tiles."""
    points = sorted(points, key=lambda point: point.num_logits)
    rows = np.array([point.num_logits for point in points], dtype=np.float64)
    seconds = seconds_of(points)

    fold = folds_in_order(len(points))

    def loss(tiles: Tiles) -> float:
        def predict(kept: Mask) -> Floats:
            return _fitted(tiles, rows[kept], seconds[kept]).at(rows[~kept])

        return left_out_loss(seconds, fold, predict)

    if not can_be_left_out(len(points)):
        return _fitted(TILES[0], rows, seconds)
    return _fitted(TILES[clearly_best([loss(tiles) for tiles in TILES])], rows, seconds)


def _fitted(tiles: Tiles, rows: Floats, seconds: Floats) -> LogitsForm:
    """The form is linear in its coefficients, so non-negative least squares finds them."""
    counted = tiles.counted(rows)
    beyond = [np.maximum(counted - kink, 0.0) for kink in KINKS]
    system = np.stack([np.ones(len(rows)), counted, *beyond], axis=1) / seconds[:, None]
    # Columns of like size, or nnls takes the small ones for none.
    scale = np.maximum(np.linalg.norm(system, axis=0), 1e-300)
    weights = np.ones(len(rows))
    for _ in range(NUM_REWEIGHTINGS):
        found, _ = nnls(system / scale * weights[:, None], weights)
        weights = soft_weights((system @ (found / scale) - 1.0) / LOSS_SCALE)
    fixed_s, per_row_s, per_row_beyond_128_s, per_row_beyond_256_s = (found / scale).tolist()
    return LogitsForm(
        tiles=tiles,
        fixed_s=fixed_s,
        per_row_s=per_row_s,
        per_row_beyond_128_s=per_row_beyond_128_s,
        per_row_beyond_256_s=per_row_beyond_256_s,
    )
