"""The report's chapter on a sweep: which point is best, how sure that is, and what each setting does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cbsim.base.errors import CbsimError
from cbsim.results.result import load_run
from cbsim.show.capacity_text import describe_slo
from cbsim.show.cdf_plot import latency_cdfs
from cbsim.show.chapter import Chapter, Picture, provenance
from cbsim.show.figures import COMPARED, MBU, MFU, SummaryFigure
from cbsim.show.markup import Cell, HtmlTable
from cbsim.show.notes import merged_column
from cbsim.show.run_chapter import MAX_DRAWN, slo_of
from cbsim.show.sweep_plot import sweep_pictures
from cbsim.show.sweep_points import Sweep, read_sweep_table
from cbsim.show.sweep_text import determined_note, sentence
from cbsim.show.text import MISSING
from cbsim.show.timeline_plot import timeline, utilization
from cbsim.studies.intervals import is_known_by_spread
from cbsim.studies.labels import short_keys

_SHOWN = (*COMPARED[2:-1], MFU, MBU)


def sweep_chapter(folder: Path) -> Chapter:
    """The chapter of one sweep folder. Raises `CbsimError` if it is damaged, or nothing in it ran."""
    table = read_sweep_table(folder)
    ran = table[table["error"].isna()]
    if not len(ran):
        raise CbsimError(f"{folder}: no point of this sweep ran")
    first = load_run(folder / "points" / str(ran["point"].iloc[0]))
    sweep = Sweep.of(table, slo_of(first), is_known_by_spread(first.config))
    names = " and ".join(f"`{key}`" for key in sweep.keys) or "the seed"
    aim = f"goodput within {describe_slo(sweep.slo)}" if sweep.slo else "throughput"
    return Chapter(
        title=f"{first.name}: sweep",
        question=f"Which {names} gives the highest {aim}?",
        answers=[sentence(sweep)],
        warnings=_warnings(sweep),
        tables=[_table(sweep)],
        pictures=[*sweep_pictures(sweep, first.name).values(), *_run_pictures(sweep, folder)],
        provenance=[provenance(f"{first.name}, first point", first.config, first.manifest)],
    )


def _table(sweep: Sweep) -> HtmlTable:
    rows = []
    for row in sweep.records():
        labels = [_label(row[key]) for key in sweep.keys]
        rows.append([*labels, *(_cell(sweep, figure, row) for figure in _SHOWN)])
    header = [*short_keys(sweep.keys).values(), *(figure.title for figure in _SHOWN)]
    replicated = ", means of replicates ± 95% intervals" if sweep.is_replicated else ""
    return HtmlTable(f"Points of the sweep{replicated}", header, rows, num_labels=max(1, len(sweep.keys)))


def _cell(sweep: Sweep, figure: SummaryFigure, row: Mapping[str, Any]) -> Cell:
    value = row.get(figure.key)
    if value is None:
        return Cell(MISSING)
    text = figure.show(value)
    is_best = text == figure.best(other.get(figure.key) for other in sweep.records())
    interval = sweep.interval(row, figure.key)
    if sweep.is_replicated and interval.high is not None and interval.high > value:
        text += f" ± {figure.show(interval.half_width)}"
    return Cell(text, float(value), is_best)


def _warnings(sweep: Sweep) -> list[str]:
    warnings = [f"{error} (a point that failed)" for error in sweep.table["error"].dropna().unique()]
    names = [sweep.name({str(key): row[key] for key in row}) for row in sweep.ran.to_dict("records")]
    for column in ("notes", "rejection_reasons"):
        warnings += merged_column(names, sweep.ran[column])
    return [*warnings, *determined_note(sweep)]


def _run_pictures(sweep: Sweep, folder: Path) -> list[Picture]:
    """Of few points: latencies and what happened over time, in the first run of each."""
    if len(sweep.ran) > MAX_DRAWN or sweep.is_replicated:
        return []
    labels = [sweep.name(row) for row in sweep.records()]
    first_runs = sweep.ran.drop_duplicates(sweep.keys) if sweep.keys else sweep.ran.head(1)
    folders = [folder / "points" / point for point in first_runs["point"]]
    runs = dict(zip(labels, map(load_run, folders), strict=True))
    pictures = {
        "Latency distributions": latency_cdfs(runs, sweep.slo),
        "Queue, batch and KV use over time": timeline(runs),
        "MFU and MBU over time": utilization(runs),
    }
    described = f"A curve or a row of panels for each of {', '.join(labels)}"
    return [Picture(figure, title, described) for title, figure in pictures.items()]


def _label(value: Any) -> Cell:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(f"{value:,.15g}", float(value)) if is_number else Cell(str(value))
