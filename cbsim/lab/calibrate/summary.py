"""What a reader sees of a fit: its errors as a table and as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cbsim.lab.calibrate.fit import Report
from cbsim.show.accuracy_plot import ERROR_BAND, ERROR_LIMIT, Predictions, calibration_picture
from cbsim.show.style import save_figure
from cbsim.show.text import Table

LABELS = {
    "fitted": "fitted",
    "held_out": "held out",
    "largest_held_out": "largest sizes held out",
    "whole_steps": "whole steps, never fitted",
    "repeatability": "repeatability of the timings",
}


def errors_table(report: Report, title: str) -> Table:
    """One row for each table of the report and kind of point, percent."""
    rows = [
        (
            f"{LABELS[name]}: {kind}",
            f"{errors.num_points:,}",
            f"{errors.median_pct:.1f}",
            f"{errors.p90_pct:.1f}",
            f"{errors.worst_pct:.1f}",
            f"{errors.bias_pct:+.1f}",
        )
        for name, table in report.tables.items()
        for kind, errors in table.items()
    ]
    return Table(
        header=("error, %", "points", "median", "p90", "worst", "bias"), rows=tuple(rows), title=title
    )


def draw_errors(report: Report, title: str, path: Path) -> None:
    """Predictions of points that were held out of the fit, as PNG and SVG."""
    ops = np.array([point.op for point in report.points])
    size = np.array([point.size for point in report.points], dtype=np.float64)
    measured = np.array([point.t_median_s for point in report.points])
    kinds = {
        str(op): Predictions(size[ops == op], report.predicted[ops == op], measured[ops == op])
        for op in dict.fromkeys(ops.tolist())
    }
    caption = f"Each point is predicted by a fit that it was held out of. Grey: within {ERROR_BAND:.0%}."
    num_beyond = int((np.abs(report.predicted / measured - 1.0) > ERROR_LIMIT).sum())
    if num_beyond:
        caption += (
            f" At the edge: {num_beyond:,} of {len(measured):,} points with errors over {ERROR_LIMIT:.0%}."
        )
    save_figure(calibration_picture(kinds, title, caption), path)
