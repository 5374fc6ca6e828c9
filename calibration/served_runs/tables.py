"""What a reader gets: `served-runs.csv`, Markdown tables of errors, the picture's columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from calibration.served_runs.assumptions import Assumption
from calibration.served_runs.picture import ServedSeries
from calibration.served_runs.prediction import Prediction
from calibration.served_runs.sample import ServedRun
from calibration.served_runs.servers import SERIES, Series
from cbsim.base.paths import write_text
from cbsim.base.units import markdown_table
from cbsim.lab.calibrate.accuracy import Errors

PredictedRun = tuple[Series, ServedRun, Prediction]
SIGNIFICANT_DIGITS = 6
MISSING = "-"


def runs_table(predicted: Iterable[PredictedRun]) -> pd.DataFrame:
    """One row a run; seconds, rounded as they are written, so that the file gives the same errors."""
    return pd.DataFrame(
        [
            {
                "series": series.name,
                "version": run.version,
                "tensor_parallel": run.tensor_parallel,
                "num_prompt_tokens": run.num_prompt_tokens,
                "num_output_tokens": run.num_output_tokens,
                "concurrency": run.concurrency,
                "measured_ttft_s": _rounded(run.ttft_s),
                "simulated_ttft_s": _rounded(prediction.ttft_s),
                "measured_tpot_s": _rounded(run.tpot_s),
                "simulated_tpot_s": _rounded(prediction.tpot_s),
                "formula_tpot_s": _rounded(prediction.formula_tpot_s),
            }
            for series, run, prediction in predicted
        ]
    )


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.{SIGNIFICANT_DIGITS}g}")


def write_runs(table: pd.DataFrame, path: Path) -> None:
    """Write the rows, whole or not at all. Raises `CbsimError` if they can't be written."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def errors(table: pd.DataFrame, predicted: str, measured: str) -> Errors:
    """How far a column of predictions is from one of measurements."""
    return Errors.of(table[predicted].to_numpy(np.float64), table[measured].to_numpy(np.float64))


def errors_table(table: pd.DataFrame) -> str:
    """By series and degree of tensor parallelism, percent: of the simulation, and of the formula."""
    rows = []
    for name in dict.fromkeys(table["series"]):
        ours = table[table["series"] == name]
        rows.append(_errors_row(f"**{name}**", ours))
        degrees = sorted(ours["tensor_parallel"].unique())
        rows += [_errors_row(f"TP {degree}", ours[ours["tensor_parallel"] == degree]) for degree in degrees]
    header = ("", "runs", "TPOT", "bias", "TPOT by the formula", "bias", "TTFT", "bias")
    return markdown_table(header, rows)


def _errors_row(name: str, table: pd.DataFrame) -> tuple[str, ...]:
    cells = [name, f"{len(table)}"]
    for predicted in ("simulated_tpot", "formula_tpot", "simulated_ttft"):
        figures = errors(table, f"{predicted}_s", f"measured_{predicted[-4:]}_s")
        sizes = (figures.median_pct, figures.p90_pct, figures.worst_pct)
        cells += [" / ".join(map(_figure, sizes)), f"{figures.bias_pct:+.1f}"]
    return tuple(cells)


def assumptions_table(tables: Mapping[Assumption, pd.DataFrame]) -> str:
    """What each assumption makes of the errors of every series, percent."""
    header = ["assumed", *(f"{series.name}: {latency}" for series in SERIES for latency in ("TPOT", "TTFT"))]
    rows = []
    for assumption, table in tables.items():
        cells = [assumption.text]
        for series in SERIES:
            ours = table[table["series"] == series.name]
            cells += [_spread(ours, latency) if len(ours) else MISSING for latency in ("tpot", "ttft")]
        rows.append(tuple(cells))
    return markdown_table(header, rows)


def _spread(table: pd.DataFrame, latency: str) -> str:
    figures = errors(table, f"simulated_{latency}_s", f"measured_{latency}_s")
    return f"{_figure(figures.median_pct)} / {_figure(figures.p90_pct)}, {figures.bias_pct:+.1f}"


def _figure(percent: float) -> str:
    return f"{percent:.0f}" if percent >= 9.95 else f"{percent:.1f}"


def shown(table: pd.DataFrame) -> list[ServedSeries]:
    """The picture's columns."""
    series = []
    for name in dict.fromkeys(table["series"]):
        ours = table[table["series"] == name]
        columns = ("tensor_parallel", "concurrency", "simulated_tpot_s", "measured_tpot_s")
        series.append(ServedSeries(str(name), *(ours[column].to_numpy(np.float64) for column in columns)))
    return series
