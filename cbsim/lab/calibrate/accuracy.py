"""Errors of predictions against timings: median, p90, worst and bias, for each kind of point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cbsim.cost.form import StepForm
from cbsim.cost.profile_record import form_attention_s, form_seconds
from cbsim.cost.step_columns import Floats
from cbsim.lab.calibrate.point import OPS, Point, columns_of, seconds_of
from cbsim.show.text import Table

PERCENT = 100.0
LABELS = {
    "fitted": "fitted",
    "held_out": "held out",
    "largest_held_out": "largest sizes held out",
    "whole_steps": "whole steps, never fitted",
    "repeatability": "repeatability of the timings",
}
"""The tables of a report and what a reader calls them. A point held out is predicted by a fit that a random
quarter of the points was left out of, one of the largest by a fit to the others; repeats of the same timing
are held against the first, which is the floor of all the others."""
HEADER = ("points", "median", "p90", "worst", "bias")


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
        figures = (np.median(size), np.quantile(size, 0.9), size.max(), np.median(signed))
        return cls(len(size), *(round(float(figure), 3) for figure in figures))

    @property
    def cells(self) -> tuple[str, ...]:
        """Its figures under `HEADER`."""
        sizes = (f"{pct:.1f}" for pct in (self.median_pct, self.p90_pct, self.worst_pct))
        return f"{self.num_points:,}", *sizes, f"{self.bias_pct:+.1f}"


ErrorsByKind = dict[str, Errors]
"""Errors by kind of point, and of `all` op points together."""


@dataclass(frozen=True, slots=True)
class Report:
    """How wrong a fitted form is, seen from every side."""

    points: list[Point]
    """The points fitted."""
    predicted: Floats
    """Seconds of each, by a fit that it was held out of."""
    tables: dict[str, ErrorsByKind]
    """Those of `LABELS` that aren't empty, by name."""

    def table(self, title: str) -> Table:
        """One row for each table and kind of point, percent."""
        rows = [
            (f"{LABELS[name]}: {kind}", *errors.cells)
            for name, table in self.tables.items()
            for kind, errors in table.items()
        ]
        return Table(("error, %", *HEADER), tuple(rows), title)

    def draw(self, title: str, path: Path) -> None:
        """Predictions of points that were held out of the fit, as PNG and SVG."""
        from cbsim.show.lab_plot import ERROR_BAND, ERROR_LIMIT, Predictions, calibration_picture
        from cbsim.show.style import save_figure

        ops = np.array([point.op for point in self.points])
        size = np.array([point.size for point in self.points], dtype=np.float64)
        measured = seconds_of(self.points)
        kinds = {
            str(op): Predictions(size[ops == op], self.predicted[ops == op], measured[ops == op])
            for op in dict.fromkeys(ops.tolist())
        }
        caption = f"Each point is predicted by a fit that it was held out of. Grey: within {ERROR_BAND:.0%}."
        num_beyond = int((np.abs(self.predicted / measured - 1.0) > ERROR_LIMIT).sum())
        if num_beyond:
            shown = f"{num_beyond:,} of {len(measured):,} points with errors over {ERROR_LIMIT:.0%}"
            caption += f" At the edge: {shown}."
        save_figure(calibration_picture(kinds, title, caption), path)


def predict(form: StepForm, points: Sequence[Point]) -> Floats:
    """What a form says of each point, seconds."""
    columns = columns_of([replace(point, window=0) for point in points])
    ops, windows = (np.array([getattr(point, name) for point in points]) for name in ("op", "window"))
    decode, prefill = form_attention_s(form, columns)
    seconds = decode + prefill
    for op, table in (("dense", form.dense), ("experts", form.experts), ("collectives", form.collectives)):
        if table is not None:
            seconds = np.where(ops == op, table.at(columns.num_tokens), seconds)
    if form.sliding is not None and windows.any():
        places = np.flatnonzero(windows)
        sliding = columns_of([point for point in points if point.window])
        seconds[places] = form.sliding.decode.at(sliding) + form.sliding.prefill.at(sliding)
    seconds = np.where(ops == "logits", form.logits.at(columns.num_logits), seconds)
    return np.where(ops == "step", form_seconds(form, columns), seconds)


def errors_by_kind(points: Sequence[Point], predicted: Floats) -> ErrorsByKind:
    """The errors of predictions, by op, and over all ops but whole steps."""
    ops, measured = np.array([point.op for point in points]), seconds_of(points)
    masks = {op: ops == op for op in OPS} | {"all": ops != "step"} if points else {}
    return {kind: Errors.of(predicted[of], measured[of]) for kind, of in masks.items() if of.any()}


def repeatability(points: Sequence[Point]) -> ErrorsByKind:
    """How far repeats lie from the first timing of the same thing: no model can be nearer than that."""
    pairs = repeats(points)
    return errors_by_kind([first for _, first in pairs], seconds_of([again for again, _ in pairs]))


def repeats(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    """Each repeat with the first timing of the same thing."""
    first: dict[object, Point] = {}
    pairs = []
    for point in sorted(points, key=lambda point: point.order):
        before = first.setdefault(point.key, point)
        if point.split == "repeat" and before is not point:
            pairs.append((point, before))
    return pairs
