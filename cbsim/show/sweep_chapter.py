"""The report's chapter on a sweep: which point is best, how sure that is, and what each setting does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cbsim.base.errors import CbsimError
from cbsim.results.result import Result, load_run
from cbsim.show.capacity_text import describe_slo
from cbsim.show.cdf_plot import latency_cdfs
from cbsim.show.chapter import Chapter, Picture, Provenance
from cbsim.show.html_table import Cell, HtmlTable
from cbsim.show.notes import merged_notes
from cbsim.show.reader_tables import COMPARED, Figure
from cbsim.show.run_chapter import MAX_DRAWN, slo_of
from cbsim.show.sweep_pictures import sweep_pictures
from cbsim.show.sweep_points import Sweep, read_sweep_table
from cbsim.show.sweep_text import determined_note, sentence
from cbsim.show.text import format_share
from cbsim.show.timeline_plot import timeline
from cbsim.show.utilization_plot import utilization
from cbsim.studies.labels import short_keys
from cbsim.studies.replicates import HIGH, LOW, is_known_by_spread

_SHOWN = (*COMPARED[2:-1], Figure("mfu", "MFU", format_share), Figure("mbu", "MBU", format_share))


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
        provenance=[Provenance(f"{first.name}, first point", first.config, first.manifest)],
    )


def _table(sweep: Sweep) -> HtmlTable:
    rows = []
    for row in sweep.records():
        labels = [Cell(_plain(row[key]), _number(row[key])) for key in sweep.keys]
        rows.append([*labels, *(_cell(sweep, figure, row) for figure in _SHOWN)])
    header = [*short_keys(sweep.keys).values(), *(figure.title for figure in _SHOWN)]
    replicated = ", means of replicates ± 95% intervals" if sweep.is_replicated else ""
    return HtmlTable(f"Points of the sweep{replicated}", header, rows, num_labels=max(1, len(sweep.keys)))


def _cell(sweep: Sweep, figure: Figure, row: Mapping[str, Any]) -> Cell:
    value = row.get(figure.key)
    if value is None:
        return Cell("-")
    text = figure.show(value)
    if sweep.is_replicated and row[figure.key + HIGH] is not None and row[figure.key + HIGH] > value:
        text += f" ± {figure.show((row[figure.key + HIGH] - row[figure.key + LOW]) / 2)}"
    others = [other[figure.key] for other in sweep.records() if other.get(figure.key) is not None]
    shown = figure.show(value)
    tells_apart = figure.better is not None and len(set(map(figure.show, others))) > 1
    is_best = tells_apart and figure.better is not None and shown == figure.show(figure.better(others))
    return Cell(text, float(value), is_best)


def _warnings(sweep: Sweep) -> list[str]:
    table = sweep.table
    warnings = [f"{error} (a point that failed)" for error in table["error"].dropna().unique()]
    ran = sweep.ran
    names = [sweep.name({str(key): value for key, value in row.items()}) for row in ran.to_dict("records")]
    for column in ("notes", "rejection_reasons"):
        notes = [told.split("; ") if isinstance(told, str) else [] for told in ran[column]]
        warnings += merged_notes(list(zip(names, notes, strict=True)))
    return [*warnings, *determined_note(sweep)]


def _run_pictures(sweep: Sweep, folder: Path) -> list[Picture]:
    """Of few points: latencies and what happened over time, in the first run of each."""
    if len(sweep.ran) > MAX_DRAWN or sweep.is_replicated:
        return []
    labels = [sweep.name(row) for row in sweep.records()]
    first_runs = sweep.ran.drop_duplicates(sweep.keys) if sweep.keys else sweep.ran.head(1)
    runs = dict(
        zip(labels, map(load_run, (folder / "points" / point for point in first_runs["point"])), strict=True)
    )
    draw: dict[str, Callable[[Mapping[str, Result]], Any]] = {
        "Latency distributions": lambda results: latency_cdfs(results, sweep.slo),
        "Queue, batch and KV use over time": timeline,
        "MFU and MBU over time": utilization,
    }
    return [
        Picture(make(runs), title, f"A curve or a row of panels for each of {', '.join(labels)}")
        for title, make in draw.items()
    ]


def _plain(value: Any) -> str:
    return f"{value:,.15g}" if _number(value) is not None else str(value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
