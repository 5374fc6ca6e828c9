"""A tune in words and as a table: the best settings, what they gain, and what else is worth a look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cbsim.results import metrics
from cbsim.results.slo import joined
from cbsim.show.reader_tables import COST, LATENCIES, SummaryFigure, latency, limited_figures, records
from cbsim.show.sweep_text import common_rate
from cbsim.show.text import MISSING, Table, certainty, format_figure, format_share, merged_notes
from cbsim.studies.intervals import SAME
from cbsim.studies.labels import plain_text, setting_names, short_keys
from cbsim.studies.tune.best_settings import IS_BEST, IS_MET, ON_FRONT, TuneAnswer
from cbsim.studies.tune.merit import GPU_HOURS, LATENCY, THROUGHPUT

MAX_ROWS = 10
"""Rows of the table, but for the front and what is written."""
_GAINS = {
    "goodput_per_s": SummaryFigure("goodput_per_s", "goodput (req/s)"),
    "request_throughput_per_s": SummaryFigure("request_throughput_per_s", "throughput (req/s)"),
}
_COSTS = {metrics.COST: COST, GPU_HOURS: SummaryFigure(GPU_HOURS, "GPU hours/1M tokens")}
_WITHIN = SummaryFigure("slo_attainment", "within SLO", format_share)


def cost_figure(answer: TuneAnswer) -> SummaryFigure:
    """What costs are told by: money where every GPU has a price, else hours of GPUs."""
    return _COSTS[answer.aim.cost]


def gain_figure(answer: TuneAnswer) -> SummaryFigure:
    """What is served."""
    return _GAINS[answer.aim.gain]


def tune_sentence(answer: TuneAnswer) -> str:
    """Whether any settings meet the SLO, then the best that do, or the nearest and what they miss.

    And what the step times behind that come from.
    """
    sure = certainty(["best"], [answer.best.get("notes")]) if answer.best else ""
    return " ".join(filter(None, [_answer(answer), sure]))


def _answer(answer: TuneAnswer) -> str:
    aim, best = answer.aim, answer.best
    rows = [row for row in records(answer.table) if row["state"] == "ran"]
    if best is None:
        return f"None of the {len(answer.table)} settings could run: {answer.table['error'].iloc[0]}"
    names = setting_names(best, answer.keys, "`")
    if not answer.is_met:
        if not best[THROUGHPUT]:
            return f"No request was served by any of {_tried(answer)}."
        which = f"the nearest is {joined(names)}, which {aim.slo.all_misses(aim.misses(best))}"
        return f"Not met: none of {_tried(answer)} meets {aim.slo.promise()}: {which}."
    gives = "gives" if len(names) == 1 else "give"
    has = f"{joined(names)} {gives} {_reached(answer, best)}{_against_written(answer, rows)}."
    meeting = sum(bool(row[IS_MET]) for row in rows)
    if not aim.slo:
        return f"No SLO is given. Of {_tried(answer)}, {has}{_alike(answer, rows)}"
    told = f"Met by {meeting} of the {len(rows)} settings that ran in full, of {_tried(answer)}"
    return f"{told}, {aim.slo.promise()}: {has}{_alike(answer, rows)}"


def _tried(answer: TuneAnswer) -> str:
    return f"{len(answer.table)} settings tried"


def _reached(answer: TuneAnswer, row: Mapping[str, Any]) -> str:
    aim = answer.aim
    value = format_figure(float(row[aim.figure]))
    if aim.objective == "goodput":
        what = "goodput" if aim.slo.own else "throughput"
        return f"the highest {what}, {value} requests/s"
    if aim.objective == "latency":
        return f"the shortest p99 E2E, {value} s"
    unit = "" if aim.has_prices else " GPU hours"
    return f"the lowest cost, {value}{unit} per million output tokens"


def _against_written(answer: TuneAnswer, rows: Sequence[Mapping[str, Any]]) -> str:
    """How that compares with what is written."""
    aim = answer.aim
    written = next((row for row in rows if row["trial"] == 0), None)
    if written is None:
        return "; what is written can't run"
    if written[IS_BEST]:
        return ", and is what is written"
    value = format_figure(float(written[aim.figure])) if written[aim.figure] else MISSING
    missed = aim.slo.all_misses(aim.misses(written)) if aim.misses(written) else ""
    return f"; what is written {missed}" if missed else f"; what is written has {value}"


def _alike(answer: TuneAnswer, rows: Sequence[Mapping[str, Any]]) -> str:
    """How many others are as good, and by what the best was chosen among them."""
    aim, best = answer.aim, answer.best
    assert best is not None
    top = max(aim.score(row) for row in rows)
    alike = [row for row in rows if aim.score(row) >= top * (1 - SAME)]
    if len(alike) < 2:
        return ""
    others = "1 other comes" if len(alike) == 2 else f"{len(alike) - 1} others come"
    cheapest = min(row[aim.cost] for row in alike)
    same_cost = sum(row[aim.cost] <= cheapest * (1 + SAME) for row in alike)
    why = "the shortest p99 E2E" if same_cost > 1 else "the lowest cost"
    rate, at_rate = common_rate(answer.config, answer.keys), ""
    if aim.objective == "goodput" and rate:
        at_rate = f" That is at {rate}; a tune of `workload.rate_scale` too finds the most they can take."
    return f" {others} within {SAME * 100:g}% of the highest; of these it has {why}.{at_rate}"


def tune_table(answer: TuneAnswer) -> Table:
    """The best settings, the front and what is written: the varied keys, and the figures that decide."""
    shown = _shown(answer)
    short, aim = short_keys(answer.keys), answer.aim
    limited = [latency(name, "p99") for name in LATENCIES if name in aim.slo.own] + limited_figures(aim.slo)
    if not any(each.key == LATENCY for each in limited):
        limited.append(latency("e2e_s", "p99"))
    within = [_WITHIN] if aim.slo.own else []
    figures = [gain_figure(answer), *within, cost_figure(answer), *limited]
    is_promised = bool(aim.slo)
    header = ("trial", *(short[key] for key in answer.keys), *(["SLO"] if is_promised else []))
    rows = [
        (
            _row_name(row),
            *(plain_text(row[key]) for key in answer.keys),
            *(["met" if row[IS_MET] else "missed"] if is_promised else []),
            *(figure.show(row.get(figure.key)) for figure in figures),
        )
        for row in shown
    ]
    return Table((*header, *(figure.title for figure in figures)), tuple(rows), notes=tuple(_notes(answer)))


def _shown(answer: TuneAnswer) -> list[dict[str, Any]]:
    """The rows worth a look: the best first, then by score."""
    ran = [row for row in records(answer.table) if row["state"] == "ran"]
    ranked = sorted(ran, key=lambda row: (not row[IS_BEST], -answer.aim.score(row), row["trial"]))
    return [row for place, row in enumerate(ranked) if place < MAX_ROWS or row[ON_FRONT] or row["trial"] == 0]


def _row_name(row: Mapping[str, Any]) -> str:
    words = {"best": row[IS_BEST], "front": row[ON_FRONT], "as written": row["trial"] == 0}
    return f"{row['trial']} {', '.join(word for word, holds in words.items() if holds)}".strip()


def _notes(answer: TuneAnswer) -> list[str]:
    rows = records(answer.table)
    num_given_up = sum(row["state"] == "given up" for row in rows)
    failed = [row for row in rows if row["state"] == "failed"]
    notes = []
    if num_given_up:
        notes.append(f"{num_given_up} settings fell behind on a short window and were given up")
    if failed:
        notes.append(f"{len(failed)} settings could not run; the first: {failed[0]['error']}")
    notes.append("front: no other settings that meet the SLO serve more and cost less")
    best = answer.best
    if best is not None and best.get("notes"):
        notes += merged_notes([("best", str(best["notes"]).split("; "))])
    return notes
