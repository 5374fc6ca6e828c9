"""The tables a reader gets: one run's figures, several runs side by side, the points of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cbsim.base.units import MS_PER_S, format_seconds
from cbsim.results.metrics import QUANTILES, flatten
from cbsim.results.result import Result
from cbsim.show.notes import merged_notes
from cbsim.show.text import BEST, MISSING, Table, format_figure, format_share
from cbsim.studies.labels import point_name
from cbsim.studies.replicates import swept_columns

if TYPE_CHECKING:
    import pandas as pd

MAX_RUNS_AS_COLUMNS = 6
"""So many runs are compared as columns; more of them become rows."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a comparison: a summary figure in the unit it is shown in."""

    key: str
    """Of the flattened summary, as `ttft_s.p99`."""
    title: str
    show: Callable[[Any], str] = format_figure
    better: Callable[[Sequence[float]], float] | None = None
    """`min` or `max` where one run can be called the best."""


def _milliseconds(value: float | None) -> str:
    return MISSING if value is None else format_figure(float(value) * MS_PER_S)


def _latency(key: str, name: str, unit: str) -> list[Figure]:
    show = _milliseconds if unit == "ms" else format_figure
    return [Figure(f"{key}.{part}", f"{name} {part} ({unit})", show, min) for part in ("p50", "p99")]


COMPARED = (
    Figure("num_finished", "finished"),
    Figure("num_rejected", "rejected"),
    Figure("request_throughput_per_s", "throughput (req/s)", format_figure, max),
    Figure("output_token_throughput_per_s", "output (tokens/s)", format_figure, max),
    Figure("goodput_per_s", "goodput (req/s)", format_figure, max),
    Figure("slo_attainment", "requests within SLO", format_share, max),
    *_latency("ttft_s", "TTFT", "s"),
    *_latency("tpot_s", "TPOT", "ms"),
    *_latency("itl_s", "ITL", "ms"),
    *_latency("e2e_s", "E2E", "s"),
    Figure("num_preemptions", "preemptions"),
    Figure("kv_utilization.mean", "KV use, mean", format_share),
    Figure("kv_utilization.max", "KV use, max", format_share),
    Figure("kv_waste.mean", "KV taken but empty", format_share, min),
)
_SINGLE = (
    Figure("num_requests", "requests"),
    *COMPARED[:2],
    Figure("makespan_s", "makespan", format_seconds),
    *COMPARED[2:4],
    Figure("total_token_throughput_per_s", "prompt and output (tokens/s)"),
    *COMPARED[4:6],
    Figure("num_steps", "steps"),
    Figure("num_preemptions", "preemptions"),
    Figure("num_tokens_recomputed", "tokens recomputed"),
    Figure("busy_fraction", "busy", format_share),
    Figure("mfu", "MFU", format_share),
    Figure("mbu", "MBU", format_share),
    *COMPARED[-3:],
    Figure("prefix_hit_rate", "prefix-cache hits", format_share),
)
_DISTRIBUTIONS = {
    "queue_s": ("queue (s)", format_figure),
    "ttft_s": ("TTFT (s)", format_figure),
    "tpot_s": ("TPOT (ms)", _milliseconds),
    "itl_s": ("ITL (ms)", _milliseconds),
    "e2e_s": ("E2E (s)", format_figure),
}


def run_tables(result: Result) -> tuple[Table, Table]:
    """One run: its figures, and its latencies with notes and rejections under them."""
    figures = flatten(result.summary)
    rows = tuple((figure.title, figure.show(figures[figure.key])) for figure in _SINGLE)
    parts = ("mean", *QUANTILES, "max")
    latencies = tuple(
        (title, *(show(figures[f"{key}.{part}"]) for part in parts))
        for key, (title, show) in _DISTRIBUTIONS.items()
    )
    return Table((result.name, ""), rows), Table(("latency", *parts), latencies, notes=_remarks(result))


def compare_runs(results: Mapping[str, Result]) -> Table:
    """Runs side by side under their labels, with the notes of all of them."""
    remarks = merged_notes([(label, _remarks(result)) for label, result in results.items()])
    return _comparison({label: flatten(result.summary) for label, result in results.items()}, remarks)


def compare_points(table: pd.DataFrame) -> Table:
    """The points of a sweep's table (see `cbsim.studies.sweep.sweep`) side by side, failed ones as notes."""
    failures: list[str] = []
    compared = {}
    remarks: dict[str, list[str]] = {label: [] for label in point_labels(table)}
    for label, row in zip(point_labels(table), _records(table), strict=True):
        if row["error"]:
            failures.append(f"{label}: failed: {row['error']}")
            continue
        compared[label] = row
        told = [row[name] for name in ("notes", "rejection_reasons") if row[name]]
        remarks[label] = [note for notes in told for note in notes.split("; ")]
    return _comparison(compared, (*merged_notes(list(remarks.items())), *failures))


def point_labels(table: pd.DataFrame) -> list[str]:
    """A short name for each point of a sweep's table, by its swept values."""
    swept = swept_columns(table)
    if not swept:
        return [str(key) for key in table["point"]]
    return [point_name(row, swept) for row in _records(table)]


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain mappings, `None` for what is missing."""
    plain = table.astype(object).where(table.notna(), None)
    return [{str(key): value for key, value in row.items()} for row in plain.to_dict("records")]


def _comparison(runs: Mapping[str, Mapping[str, Any]], notes: Sequence[str]) -> Table:
    rows = [_compared(figure, [figures[figure.key] for figures in runs.values()]) for figure in COMPARED]
    table = Table(("", *runs), tuple(rows), notes=tuple(notes))
    return table if len(runs) <= MAX_RUNS_AS_COLUMNS else table.transposed()


def _compared(figure: Figure, values: Sequence[float | None]) -> tuple[str, ...]:
    """A row of a comparison, the best run's figure marked, and any that reads the same."""
    cells = [figure.show(value) for value in values]
    known = [value for value in values if value is not None]
    if figure.better is not None and len(set(cells) - {MISSING}) > 1:
        best = figure.show(figure.better(known))
        cells = [cell + BEST if cell == best else cell for cell in cells]
    return figure.title, *cells


def _remarks(result: Result) -> tuple[str, ...]:
    reasons = result.summary["rejection_reasons"]
    return (*result.notes, *(f"rejected: {count} x {reason}" for reason, count in reasons.items()))
