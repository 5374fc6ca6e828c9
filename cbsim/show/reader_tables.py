"""Figures of summaries: name, unit, better side; and the tables a reader gets of runs and points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cbsim.base.units import GIGA, MS_PER_S, format_seconds
from cbsim.results import metrics
from cbsim.results.metrics import DEFAULT_POOL, QUANTILES, flatten
from cbsim.results.result import Result
from cbsim.results.slo import EACH, Slo, figure_name, joined
from cbsim.show.text import (
    BEST,
    MISSING,
    Table,
    alike,
    format_figure,
    format_share,
    merged_notes,
    with_ranges,
)
from cbsim.studies.compare import WITHIN_SLO, Comparison, Difference
from cbsim.studies.intervals import swept_columns
from cbsim.studies.labels import point_name

if TYPE_CHECKING:
    import pandas as pd

SCALES = {"s": 1, "ms": MS_PER_S}
LATENCIES = {
    "queue_s": ("queue", "s"),
    "ttft_s": ("TTFT", "s"),
    "tpot_s": ("TPOT", "ms"),
    "itl_s": ("ITL", "ms"),
    "max_itl_s": ("longest ITL", "ms"),
    "e2e_s": ("E2E", "s"),
}
"""What each latency is called, and the unit it is shown in: a key of `SCALES`."""


@dataclass(frozen=True, slots=True)
class SummaryFigure:
    """A figure of the flattened summary in the unit it is shown in."""

    key: str
    """In the flattened summary, as `ttft_s.p99`."""
    title: str
    """With its unit."""
    form: Callable[[Any], str] = format_figure
    better: Callable[[Iterable[float]], float] | None = None
    """`min` or `max` where one figure can be called the best."""
    scale: float = 1

    def show(self, value: float | None) -> str:
        """A value as text."""
        return MISSING if value is None else self.form(value * self.scale)

    def best(self, values: Iterable[float | None]) -> str | None:
        """The best of some values as text; `None` if they all read the same, or none can be called better."""
        known = [value for value in values if value is not None]
        if self.better is None or len({*map(self.show, known)} - {MISSING}) < 2:
            return None
        return self.show(self.better(known))


def latency(name: str, statistic: str = "") -> SummaryFigure:
    """A statistic of one of `LATENCIES`, or the latency itself."""
    title, unit = LATENCIES[name]
    key, told = (f"{name}.{statistic}", f"{title} {statistic}") if statistic else (name, title)
    return SummaryFigure(key, f"{told} ({unit})", better=min, scale=SCALES[unit])


def limited_figures(slo: Slo) -> list[SummaryFigure]:
    """The figures of a run that an SLO limits, in the order of `LATENCIES`."""
    keys = [(name, statistic) for name in LATENCIES for statistic in slo.limits_on(name) if statistic != EACH]
    return [latency(*key) for key in keys]


def _met_word(is_met: float) -> str:
    return "met" if is_met else "not met"


COST = SummaryFigure(metrics.COST, "cost/1M tokens", better=min)
"""Of output; shown where the GPU has a price."""
MET = SummaryFigure("slo_met", "SLO", _met_word)
MFU = SummaryFigure("mfu", "MFU", format_share)
MBU = SummaryFigure("mbu", "MBU", format_share)
COMPARED = (
    SummaryFigure("num_finished", "finished"),
    SummaryFigure("num_rejected", "rejected"),
    SummaryFigure("request_throughput_per_s", "throughput (req/s)", better=max),
    SummaryFigure("output_token_throughput_per_s", "output (tokens/s)", better=max),
    SummaryFigure("goodput_per_s", "goodput (req/s)", better=max),
    SummaryFigure("slo_attainment", "requests within SLO", format_share, max),
    MET,
    *(latency(name, part) for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s") for part in ("p50", "p99")),
    SummaryFigure("num_preemptions", "preemptions"),
    SummaryFigure("kv_utilization.mean", "KV use, mean", format_share),
    SummaryFigure("kv_utilization.max", "KV use, max", format_share),
    SummaryFigure("kv_waste.mean", "KV taken but empty", format_share, min),
)
"""What tells runs apart."""
OF_REQUESTS = ("goodput_per_s", "slo_attainment")
"""What there is only where requests have limits of their own; not shown where the run alone has some."""
GOODPUT = SummaryFigure("goodput_per_s", "goodput (requests/s within SLO)", better=max)
ATTAINMENT = SummaryFigure("slo_attainment", "within SLO (% of requests)", better=max, scale=100)
THROUGHPUT = SummaryFigure("output_token_throughput_per_s", "throughput (output tokens/s)", better=max)
TTFT, TPOT, ITL, E2E = (latency(name, "p99") for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"))
"""As pictures name them."""


class LimitedFigure(NamedTuple):
    """A figure that a picture shows, and where the SLO limits it, if it does."""

    figure: SummaryFigure
    limit: float | None = None
    """In the unit that the figure is shown in."""


def latency_axes(slo: Slo, always: Sequence[SummaryFigure]) -> list[LimitedFigure]:
    """The latencies to show: what the SLO limits, its limits on each request at their p99, and `always`.

    Of a latency of `always` that the SLO limits by other figures, those are shown instead.
    """
    axes = []
    for each in (TTFT, TPOT, ITL, E2E):
        name = each.key.partition(".")[0]
        limits = slo.limits_on(name)
        of_run = [latency(name, statistic) for statistic in limits if statistic != EACH]
        axes += [LimitedFigure(figure, slo.of_run[figure.key] * figure.scale) for figure in of_run]
        if EACH in limits and each.key not in slo.of_run:
            axes.append(LimitedFigure(each, limits[EACH] * each.scale))
        if not limits and each in always:
            axes.append(LimitedFigure(each))
    return axes


def rate_axes(slo: Slo) -> list[LimitedFigure]:
    """What a rate changes: the latencies that the SLO limits, and others to make them three."""
    axes = latency_axes(slo, (TTFT, TPOT, ITL))
    num_limited = sum(axis.limit is not None for axis in axes)
    left_out = [axis for axis in axes if axis.limit is None][max(0, 3 - num_limited) :]
    return [axis for axis in axes if axis not in left_out]


def setting_axes(slo: Slo) -> list[LimitedFigure]:
    """What a setting is chosen by: goodput, or throughput without limits on each request, and latencies.

    Of the times between tokens, TPOT and ITL, there is one at least.
    """
    has_gaps = bool({"tpot_s", "itl_s"} & {*slo.latencies})
    always = (TTFT,) if has_gaps else (TTFT, ITL)
    return [LimitedFigure(GOODPUT if slo.own else THROUGHPUT), *latency_axes(slo, always)]


MAX_RUNS_AS_COLUMNS = 6
"""More runs than these are compared as rows instead of columns."""


_LONGEST = (
    SummaryFigure("longest_context_tokens", "longest context (tokens)"),
    SummaryFigure("longest_request_tokens", "longest request (tokens)"),
)
FOUND_AGAIN = SummaryFigure("num_tokens_found_again", "found again by preempted")
"""Tokens that preempted requests found of their own: no hits of the prefix cache, as in vLLM's statistics."""
_SINGLE = (
    SummaryFigure("num_requests", "requests"),
    *COMPARED[:2],
    SummaryFigure("makespan_s", "makespan", format_seconds),
    *COMPARED[2:4],
    SummaryFigure("total_token_throughput_per_s", "prompt and output (tokens/s)"),
    *COMPARED[4:7],
    SummaryFigure("num_steps", "steps"),
    SummaryFigure("num_preemptions", "preemptions"),
    SummaryFigure("num_tokens_recomputed", "tokens recomputed"),
    FOUND_AGAIN,
    SummaryFigure("busy_fraction", "busy", format_share),
    *(MFU, MBU, *COMPARED[-3:]),
    SummaryFigure("prefix_hit_rate", "prefix-cache hits", format_share),
)
LOST = {
    "num_failed": "failed",
    "num_lost_to_failures": "visits lost to failures",
    "num_given_back": "visits given back as preempted",
    "num_refused": "times refused (429)",
    "num_timed_out": "times given up by clients",
    "num_reroutes": "went back to the router",
    "num_retries": "sent again by clients",
}
"""Counts that are shown where there are any."""
_DISTRIBUTIONS = [latency(name) for name in ("queue_s", "ttft_s", "tpot_s", "itl_s", "e2e_s")]


def _kv_caches(figures: Mapping[str, Any]) -> list[SummaryFigure]:
    """What a replica's KV cache holds, pool by pool."""
    usual = [f"kv_cache_tokens.{DEFAULT_POOL}"]
    keys = [key for key in figures if key.startswith("kv_cache_tokens.")] or usual
    of_pool = {key: "" if len(keys) == 1 else f" of {key.partition('.')[2]}" for key in keys}
    return [SummaryFigure(key, f"KV cache{pool} (tokens)") for key, pool in of_pool.items()]


def run_tables(result: Result) -> tuple[Table, ...]:
    """One run: its figures, its pools where there are several and their transfers, and its latencies.

    With notes and rejections under the last.
    """
    figures = flatten(result.summary)
    optional = {MET.key, FOUND_AGAIN.key, *(OF_REQUESTS if result.promised else ())}
    shown = [each for each in _SINGLE if each.key not in optional or figures.get(each.key) is not None]
    shown += [*_where_any([figures]), *_kv_caches(figures), *_LONGEST]
    shown += [COST] if COST.key in figures else []
    rows = tuple((figure.title, figure.show(figures.get(figure.key))) for figure in shown)
    parts = ("mean", *QUANTILES, "max")
    latencies = tuple(
        (each.title, *(each.show(figures[f"{each.key}.{part}"]) for part in parts)) for each in _DISTRIBUTIONS
    )
    last = Table(("latency", *parts), latencies, notes=_remarks(result))
    return (Table((result.name, ""), rows), *pool_tables({result.name: result}), last)


def _where_any(runs: Iterable[Mapping[str, Any]]) -> list[SummaryFigure]:
    """What is shown of runs some of which have any: what was lost, came from tiers, or came and went."""
    have: dict[str, list[float]] = {}
    for figures in runs:
        for key, value in figures.items():
            if value and (key in LOST or key.partition(".")[0] in ("num_tokens_from_tiers", "mean_replicas")):
                have.setdefault(key, []).append(value)
    found = [SummaryFigure(key, title) for key, title in LOST.items() if key in have]
    for key, values in have.items():
        kind, _, name = key.partition(".")
        if kind == "num_tokens_from_tiers":
            found.append(SummaryFigure(key, f"tokens loaded from {name}"))
        elif kind == "mean_replicas" and any(value % 1 for value in values):
            found.append(SummaryFigure(key, f"replicas of {name}, mean", "{:.2f}".format))
    return found


def run_answer(result: Result, name: str = "") -> list[str]:
    """What one run says, in sentences: whether it meets its SLO, if it has one, how sure that and means are.

    It is named where there are several.
    """
    return [*_verdict(result, name), *_interval_sentence(result.summary)]


def _verdict(result: Result, name: str = "") -> list[str]:
    """Whether a run meets its SLO, and how sure that is; nothing where it has none."""
    if not result.promised:
        return []
    return [result.promised.verdict(flatten(result.summary), name), *_surety(result)]


def _surety(result: Result) -> list[str]:
    """Whether the error of its step times leaves open what a run meets; nothing where that is not known."""
    interval, summary = result.summary.get("interval"), flatten(result.summary)
    if interval is None:
        return []
    told = []
    for key, limit_s in result.promised.bounded_figures().items():
        name, _, statistic = key.partition(".")
        bounds = interval.get(name, {}).get(statistic)
        if bounds is None or summary.get(key) is None:
            continue
        low_s, high_s = bounds
        if low_s <= limit_s < high_s:
            told.append(f"{figure_name(key)} may be {format_seconds(low_s)} to {format_seconds(high_s)}")
    basis = f"{interval['basis']}, ± {interval['step_error_pct']:.2g}%"
    if told:
        return [f"That is not sure: step times are {basis}, and {joined(told)} in truth."]
    return [f"The error of step times does not change that: they are {basis}."]


def _interval_sentence(summary: Mapping[str, Any]) -> list[str]:
    """What the means may be in truth, and why; nothing where that isn't known."""
    interval = summary.get("interval")
    if not interval:
        return []
    told = []
    for name, (title, unit) in LATENCIES.items():
        if bounds := interval.get(name, {}).get("mean"):
            low, high = (format_figure(SCALES[unit] * bound) for bound in bounds)
            told.append(f"{title} {low} to {high} {unit}")
    if not told:
        return []
    return [
        f"Step times are {interval['basis']}: in {interval['confidence']:.0%} of cases means are "
        f"{', '.join(told)}."
    ]


def compare_answer(results: Mapping[str, Result]) -> list[str]:
    """Which of some runs, by their labels, meet what they promise, in sentences; none where none promises."""
    promised = [result.promised for result in results.values()]
    if not any(promised):
        return []
    if promised.count(promised[0]) < len(promised):
        told = {label: _verdict(result, label) for label, result in results.items()}
        return [" ".join(sentences) or f"No SLO is given to {label}." for label, sentences in told.items()]
    slo = promised[0]
    missed = {label: slo.misses(flatten(result.summary)) for label, result in results.items()}
    met = joined([label for label, misses in missed.items() if not misses])
    unmet = [f"{label} {slo.all_misses(misses)}" for label, misses in missed.items() if misses]
    if not met:
        return [f"Not met: {slo.promise()}: {joined(unmet)}."]
    return [f"Met by {met}: {slo.promise()}.{f' Not met: {joined(unmet)}.' if unmet else ''}"]


def compare_runs(results: Mapping[str, Result]) -> Table:
    """Runs side by side under their labels, with the notes of all of them."""
    remarks = merged_notes([(label, _remarks(result)) for label, result in results.items()])
    figures = {label: flatten(result.summary) for label, result in results.items()}
    return _comparison(figures, remarks, *(result.promised for result in results.values()))


def kv_table(results: Mapping[str, Result]) -> Table:
    """What a replica's KV cache holds in each run and pool, beside the longest context and request."""
    rows = []
    for label, result in results.items():
        figures = flatten(result.summary)
        for each in (caches := _kv_caches(figures)):
            pool = each.key.partition(".")[2]
            name = label if len(caches) == 1 else f"{label}: {pool}"
            rows.append((name, *(held.show(figures.get(held.key)) for held in (each, *_LONGEST))))
    return Table(("run", "KV cache (tokens)", *(each.title for each in _LONGEST)), tuple(rows))


_OF_POOL = (
    SummaryFigure("num_replicas", "replicas"),
    SummaryFigure("num_gpus", "GPUs"),
    SummaryFigure("num_visits", "visits"),
    SummaryFigure("num_steps", "steps"),
    SummaryFigure("busy_fraction", "busy", format_share),
    *(MFU, MBU, *COMPARED[-3:-1]),
)
_OF_TRANSFERS = (
    SummaryFigure("num", "KV caches brought"),
    SummaryFigure("num_bytes", "GB in all", scale=1 / GIGA),
    SummaryFigure("bytes_per_s", "GB/s over the run", scale=1 / GIGA),
    SummaryFigure("link_s", "mean on the link if alone there (ms)", scale=MS_PER_S),
    *(
        SummaryFigure(f"transfer_s.{part}", f"until a step's end finds it {part} (ms)", scale=MS_PER_S)
        for part in ("p50", "p99", "max")
    ),
    SummaryFigure("handed_over_s", "waits for room, mean (ms)", scale=MS_PER_S),
    SummaryFigure("decode_queue_s", "waits to decode, mean (ms)", scale=MS_PER_S),
)


def pool_tables(results: Mapping[str, Result]) -> list[Table]:
    """What each pool of some runs did, and the transfers between them: two tables, one, or none.

    For runs whose replicas are not all alike.
    """
    pools, transfers = [], []
    for label, result in results.items():
        given = {pool["name"]: pool for pool in (result.config.get("cluster") or {}).get("pools", [])}
        for name, figures in result.summary.get("pools", {}).items():
            flat = flatten(figures)
            own, gpu = given.get(name, {}), given.get(name, {}).get("gpu") or result.config.get("gpu")
            gpu_name = gpu["name"] if isinstance(gpu, Mapping) else str(gpu)
            shown = (each.show(flat.get(each.key)) for each in _OF_POOL)
            named = name if len(results) == 1 else f"{label}: {name}"
            pools.append((named, own.get("role", MISSING), gpu_name, *shown))
        if moved := result.summary.get("kv_transfers"):
            parts = result.summary.get("parts", {}).get("e2e_s", {}).get("mean", {})
            flat, makespan_s = flatten(moved) | parts, result.summary["makespan_s"]
            flat["bytes_per_s"] = moved["num_bytes"] / makespan_s if makespan_s else None
            link = result.config["cluster"]["link"]
            mean_s = moved["num_bytes"] / moved["num"] / (link["bandwidth_gb_s"] * GIGA)
            flat["link_s"] = mean_s + link["latency_s"]
            transfers.append((label, *(each.show(flat.get(each.key)) for each in _OF_TRANSFERS)))
    tables = []
    if pools:
        tables.append(Table(("pool", "role", "GPU", *(each.title for each in _OF_POOL)), tuple(pools)))
    if transfers:
        header = ("KV from pool to pool", *(each.title for each in _OF_TRANSFERS))
        tables.append(Table(header, tuple(transfers)).transposed())
    return tables


def compare_points(table: pd.DataFrame, slo: Slo | None = None) -> Table:
    """The points of a sweep's table (see `cbsim.studies.sweep.sweep`) side by side, failed ones as notes.

    Figures that `slo` limits are among those compared.
    """
    labels = point_labels(table)
    rows = list(zip(labels, records(table), strict=True))
    remarks: dict[str, list[str]] = {label: [] for label in labels}
    for label, row in rows:
        told = [row[name] for name in ("notes", "rejection_reasons") if row[name] and not row["error"]]
        remarks[label] = [note for notes in told for note in notes.split("; ")]
    failures = [f"{label}: failed: {row['error']}" for label, row in rows if row["error"]]
    compared = {label: row for label, row in rows if not row["error"]}
    notes = [*merged_notes(list(remarks.items())), *failures]
    traffics = traffics_of(list(compared.values()), swept_columns(table))
    if 1 < len({*traffics}) < len(traffics):
        notes.append("marked are the best of the points with one traffic")
    return _comparison(compared, notes, *([slo] if slo else []), traffics=traffics)


def is_traffic(key: str) -> bool:
    """Whether a swept setting changes which requests come."""
    return key.partition(".")[0] == "workload"


def traffics_of(rows: Sequence[Mapping[str, Any]], keys: Iterable[str]) -> list[str]:
    """By point of a sweep over `keys`, a text that is equal for two points if equal requests come to both."""
    traffic = [key for key in keys if is_traffic(key)]
    return [str([row[key] for key in traffic]) for row in rows]


def are_best(figure: SummaryFigure, values: Sequence[float | None], traffics: Sequence[str]) -> list[bool]:
    """Whether each figure reads as the best of those with its traffic, where they differ."""
    groups: dict[str, list[float | None]] = {}
    for value, traffic in zip(values, traffics, strict=True):
        groups.setdefault(traffic, []).append(value)
    best = {traffic: figure.best(group) for traffic, group in groups.items()}
    return [figure.show(value) == best[traffic] for value, traffic in zip(values, traffics, strict=True)]


def point_labels(table: pd.DataFrame) -> list[str]:
    """A short name for each point of a sweep's table, by its swept values."""
    swept = swept_columns(table)
    if not swept:
        return [str(key) for key in table["point"]]
    return [point_name(row, swept) for row in records(table)]


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain mappings, `None` for what is missing."""
    plain = table.astype(object).where(table.notna(), None)
    return [{str(key): value for key, value in row.items()} for row in plain.to_dict("records")]


def compared_figures(*promised: Slo) -> list[SummaryFigure]:
    """`COMPARED`, with what SLOs limit beside those of the same latency."""
    figures = list(COMPARED)
    for figure in chain.from_iterable(map(limited_figures, promised)):
        keys = [known.key for known in figures]
        if figure.key not in keys:
            name = figure.key.partition(".")[0]
            near = [place for place, key in enumerate(keys) if key.partition(".")[0] == name]
            figures.insert(near[-1] if near else keys.index("num_preemptions"), figure)
    return figures


def _comparison(
    runs: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str],
    *promised: Slo,
    traffics: Sequence[str] | None = None,
) -> Table:
    """Runs side by side, the best figures marked: of all runs, or of those with the same of `traffics`."""
    traffics = traffics or [""] * len(runs)
    shown = compared_figures(*promised) + _where_any(runs.values())
    shown += [COST] if any(figures.get(COST.key) is not None for figures in runs.values()) else []
    values = {figure: [figures.get(figure.key) for figures in runs.values()] for figure in shown}
    is_promised = any(is_met is not None for is_met in values[MET])
    optional = {MET.key, *(OF_REQUESTS if is_promised else ())}
    rows = [
        (figure.title, *map(_marked, map(figure.show, of), are_best(figure, of, traffics)))
        for figure, of in values.items()
        if figure.key not in optional or any(value is not None for value in of)
    ]
    table = Table(("", *runs), tuple(rows), notes=tuple(notes))
    return table if len(runs) <= MAX_RUNS_AS_COLUMNS else table.transposed()


def _marked(cell: str, is_best: bool) -> str:
    return cell + BEST if is_best else cell


def _remarks(result: Result) -> tuple[str, ...]:
    reasons = result.summary["rejection_reasons"]
    told = [(sum(reasons[each] for each in several), with_ranges(several)) for several in alike(reasons)]
    return (*result.notes, *(f"rejected: {count:,} x {reason}" for count, reason in told))


def difference_table(comparison: Comparison, first: str, second: str) -> Table:
    """A row for each figure: both runs, the change with its interval, and whether it is clear of none."""
    rows = tuple(_row(difference) for difference in comparison.differences)
    paired = f"{comparison.num_pairs:,} requests in both runs"
    for label, num_alone in ((first, comparison.num_only_first), (second, comparison.num_only_second)):
        if num_alone:
            paired += f", {num_alone:,} in {label} only"
    header = ("", first, second, "change", "95% interval", "is it clear?")
    return Table(header, rows, notes=(paired, *comparison.notes))


def run_labels(folders: Sequence[Path]) -> list[str]:
    """Short names of folders: the last part of each, or the whole path where two would be the same."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _row(difference: Difference) -> tuple[str, ...]:
    figure = SummaryFigure(WITHIN_SLO, "requests within SLO (%)", format_share)
    if difference.figure != WITHIN_SLO:
        figure = latency(difference.figure, difference.statistic)
    change, low, high = (_signed(figure, value) for value in difference.change)
    interval = f"{low} to {high}" if difference.change.low == difference.change.low else "-"
    told = (figure.show(difference.first), figure.show(difference.second), change, interval)
    return figure.title, *told, "yes" if difference.is_clear else "no"


def _signed(figure: SummaryFigure, value: float) -> str:
    text = figure.show(abs(value))
    return f"{'-' if value < 0 else '+'}{text}" if value else text
