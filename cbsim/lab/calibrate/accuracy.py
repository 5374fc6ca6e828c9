"""Errors of predictions against timings: median, p90, worst and bias, for each kind of point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from cbsim.cost.form import StepForm
from cbsim.cost.profile_record import form_attention_s, form_seconds
from cbsim.cost.step_columns import Floats
from cbsim.lab.calibrate.attentionfit import columns_of, seconds_of
from cbsim.lab.calibrate.point import Op, Point

PERCENT = 100.0


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of some predictions, percent; the bias is the signed median."""

    num_points: int
    median_pct: float
    p90_pct: float
    worst_pct: float
    bias_pct: float

    @classmethod
    def of(cls, predicted: Floats, measured: Floats) -> Errors:
        """The errors of predictions, at least one."""
        signed = PERCENT * (predicted / measured - 1.0)
        size = np.abs(signed)
        return cls(
            num_points=len(size),
            median_pct=round(float(np.median(size)), 3),
            p90_pct=round(float(np.quantile(size, 0.9)), 3),
            worst_pct=round(float(size.max()), 3),
            bias_pct=round(float(np.median(signed)), 3),
        )


Table = dict[str, Errors]
"""Errors by kind of point, and of `all` op points together."""


def predict(form: StepForm, points: Sequence[Point]) -> Floats:
    """What a form says of each point."""
    columns = columns_of(points)
    ops = np.array([point.op for point in points])
    decode, prefill = form_attention_s(form, columns)
    seconds = decode + prefill
    seconds = np.where(ops == "dense", form.dense.at(columns.num_tokens), seconds)
    seconds = np.where(ops == "logits", form.logits.at(columns.num_logits), seconds)
    return np.where(ops == "step", form_seconds(form, columns), seconds)


def errors_by_kind(points: Sequence[Point], predicted: Floats) -> Table:
    """The errors of predictions, by op, and over all ops but whole steps."""
    return _by_kind([point.op for point in points], predicted, seconds_of(points))


def repeatability(points: Iterable[Point]) -> Table:
    """How far repeats lie from the first timing of the same thing: no model can be nearer than that."""
    first: dict[tuple[object, ...], float] = {}
    ops: list[Op] = []
    pairs: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: point.order):
        if point.split == "repeat" and point.key in first:
            ops.append(point.op)
            pairs.append((point.t_median_s, first[point.key]))
        else:
            first.setdefault(point.key, point.t_median_s)
    if not pairs:
        return {}
    again, before = np.array(pairs).T
    return _by_kind(ops, again, before)


def as_json(table: Table) -> dict[str, dict[str, float]]:
    """A table as it stands in `cost.json`."""
    return {kind: asdict(errors) for kind, errors in table.items()}


def _by_kind(ops: Sequence[Op], predicted: Floats, measured: Floats) -> Table:
    kinds = np.array(ops)
    table = {
        op: Errors.of(predicted[kinds == op], measured[kinds == op])
        for op in ("dense", "logits", "prefill", "decode", "mixed", "step")
        if (kinds == op).any()
    }
    parts = kinds != "step"
    if parts.any():
        table["all"] = Errors.of(predicted[parts], measured[parts])
    return table
