"""Verdict: how right a simulation of a recorded run is, where it is wrong, and what would mend it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from cbsim.base.units import MS_PER_S, format_seconds
from cbsim.lab.validate.recorded_run import PER_REQUEST, PERCENTILES, TITLES, RecordedRun, error_pct
from cbsim.lab.validate.token_clock import Cell, Stretch
from cbsim.results.run_log import Column
from cbsim.studies.experiment import Experiment

RIGHT_PCT = 2.0
"""Means within this are right: nothing is looked for that would mend them."""
WRONG_PCT = 10.0
"""Beyond this they are called wrong."""
NUM_SLICES = 5
"""Parts of the run that are looked at by themselves, alike in requests."""
ALIKE = 0.7
"""Share of the largest error from which the others are called alike."""
MIN_GAIN = 1 / 3
"""Share of the error that a change must take away to be told."""
MAX_TOLD = 3
BUDGETS = tuple(2**power for power in range(8, 16))
"""Values of `max_tokens_per_step` that servers are run with: 256 to 32,768."""
MAX_GAP_S = 3e-4
"""The longest gap between steps that was seen on a server."""
RIDGE = 0.02
"""How strongly a cell's ratio holds to 1, as a share of the time that it was seen for: what few steps say
together with others is little."""
NOTED_RATIO = 0.02
"""Cells are told from so much off."""


class CellRatio(NamedTuple):
    """How long steps of a cell took against what was predicted."""

    cell: Cell
    num_steps: int
    predicted_s: float
    """Of all of them."""
    ratio: float
    """Recorded over predicted."""

    @property
    def missing_s(self) -> float:
        """Recorded less predicted seconds of a step, on average."""
        return self.predicted_s * (self.ratio - 1.0) / self.num_steps

    def told(self) -> str:
        """`steps of 33 to 64 decodes took 1.09 times what is predicted, 1.6 ms more each (341 steps)`."""
        how = "more" if self.missing_s > 0 else "less"
        each = f"{abs(self.missing_s) * MS_PER_S:.2g} ms {how} each"
        steps = f"{each} ({self.num_steps:,} steps)"
        return f"{name_of(self.cell)} took {self.ratio:.2f} times what is predicted, {steps}"


class Trial(NamedTuple):
    """What one changed setting makes of the errors."""

    key: str
    value: str
    """As `--set` takes them."""
    run: RecordedRun
    """The server's log beside a simulation with the changed setting."""
    or_more: bool = False
    """Whether further raising it changes nothing: the log can't tell it from larger values."""

    def num_nearer(self, run: RecordedRun) -> int:
        """How many figures it brings nearer than `run` has them."""
        before = {figure.name: abs(figure.error_pct) for figure in run.figures}
        return sum(abs(each.error_pct) < before.get(each.name, 0.0) for each in self.run.figures)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to make of a comparison."""

    error_pct: Mapping[str, float]
    """Of the means of TTFT, TPOT and E2E."""
    where: list[str]
    """Sentences: by percentile, by time, by kind of step."""
    remedies: list[str]
    """Sentences: what would mend it; empty where it is right."""
    cells: list[CellRatio]
    """By kind and size of steps, where a replay told them."""

    @property
    def within_pct(self) -> float:
        """The largest error of a mean, without sign."""
        return max((abs(error) for error in self.error_pct.values()), default=math.nan)

    def told(self) -> list[str]:
        """The verdict as lines."""
        errors = _errors(self.error_pct)
        how = "right within" if self.within_pct <= WRONG_PCT else "wrong by up to"
        lines = [f"verdict: means are {how} {self.within_pct:.1f}% ({errors})"]
        lines += [f"  off: {sentence}" for sentence in self.where]
        lines += [f"  to mend it: {sentence}" for sentence in self.remedies]
        return lines


def judge(
    experiment: Experiment,
    run: RecordedRun,
    stretches: Sequence[Stretch] | None,
    simulate: Callable[[Experiment], RecordedRun],
) -> Verdict:
    """The verdict on a comparison; `simulate` makes it with other settings, `stretches` are a replay's.

    Settings are tried one at a time, where the means are not right as it is, to values that servers have.
    That one of them brings the figures nearer is a hint, no proof: another mistake may hide behind it.
    """
    cells = cell_ratios(stretches or [])
    where = [*beyond_interval(run), *by_percentile(run), *by_time(run)]
    where += [each.told() for each in worst_cells(cells)]
    error_pct = run.error_pct
    if not _size(error_pct) > RIGHT_PCT:
        return Verdict(error_pct, where, [], cells)
    remedies = [_steps_remedy(experiment, cells)] if worst_cells(cells) else []
    remedies += told_trials(run, list(trials(experiment, simulate)))
    if stretches is None:
        remedies.append("--replay tells which kinds of step are off, where the log has token times")
    return Verdict(error_pct, where, remedies, cells)


def beyond_interval(run: RecordedRun) -> Iterator[str]:
    """Which recorded figures the stated interval doesn't hold."""
    beyond = [
        figure.name.partition(".")
        for figure in run.figures
        if figure.bounds and not figure.bounds[0] <= figure.real <= figure.bounds[1]
    ]
    if beyond:
        told = ", ".join(f"{TITLES[name]} {part}" for name, _, part in beyond)
        yield f"beyond the interval of 9 in 10 cases: {told}"


def by_percentile(run: RecordedRun) -> Iterator[str]:
    """The least and the most wrong percentile of each latency that isn't right throughout."""
    errors = {figure.name: figure.error_pct for figure in run.figures}
    for name in PER_REQUEST:
        parts = [(part, errors[f"{name}.{part}"]) for part in PERCENTILES if f"{name}.{part}" in errors]
        parts = [(part, error) for part, error in parts if not math.isnan(error)]
        if parts and max(abs(error) for _, error in parts) > RIGHT_PCT:
            told = ", ".join(f"{error:+.1f}% at {part}" for part, error in parts)
            yield f"{TITLES[name]} {told}"


def by_time(run: RecordedRun) -> Iterator[str]:
    """The part of the run whose requests' mean is most wrong, of each latency, where it stands out."""
    size = len(run.arrival_s)
    if size < 4 * NUM_SLICES:
        return
    edges = np.linspace(0, size, NUM_SLICES + 1).astype(int)
    spans = [slice(int(first), int(last)) for first, last in pairwise(edges)]
    for name in ("ttft_s", "e2e_s"):
        errors = [_mean_error_pct(run.recorded[name][part], run.simulated[name][part]) for part in spans]
        known = [number for number, error in enumerate(errors) if not math.isnan(error)]
        if not known:
            continue
        worst = max(known, key=lambda number: abs(errors[number]))
        others = [errors[number] for number in known if number != worst]
        if abs(errors[worst]) > RIGHT_PCT and others:
            first_s, last_s = run.arrival_s[spans[worst]][[0, -1]].tolist()
            span = f"{format_seconds(first_s)} to {format_seconds(last_s)}"
            rest = f"{min(others):+.1f} to {max(others):+.1f}%"
            if min(abs(error) for error in others) > ALIKE * abs(errors[worst]):
                yield f"{TITLES[name]} about as much throughout the run, {rest} in fifths of it"
            else:
                told = f"{errors[worst]:+.1f}% for requests that came at {span}"
                yield f"{TITLES[name]} {told}, {rest} in the other fifths of the run"


def _mean_error_pct(recorded: Column, simulated: Column) -> float:
    known = ~(np.isnan(recorded) | np.isnan(simulated))
    mean = float(recorded[known].mean()) if known.any() else 0.0
    return error_pct(float(simulated[known].mean()), mean) if mean > 0 else math.nan


def worst_cells(cells: Sequence[CellRatio]) -> list[CellRatio]:
    """Cells that are clearly off, the one with most time missing first."""
    off = [each for each in cells if abs(each.ratio - 1.0) > NOTED_RATIO]
    return sorted(off, key=lambda each: -abs(each.predicted_s * (each.ratio - 1.0)))[:MAX_TOLD]


def cell_ratios(stretches: Sequence[Stretch]) -> list[CellRatio]:
    """Recorded over predicted time by kind and size of steps, from stretches that may hold several cells.

    The ratios for which the stretches' times are as recorded, in the least squares weighed by the inverse of
    their predicted times, each held to 1 a little.
    """
    cells = sorted({cell for stretch in stretches for cell in stretch.cells})
    if not cells:
        return []
    place = {cell: number for number, cell in enumerate(cells)}
    shares = np.zeros((len(stretches), len(cells)))
    num_steps = np.zeros(len(cells), dtype=int)
    for row, stretch in enumerate(stretches):
        for cell, (number, predicted_s) in stretch.cells.items():
            shares[row, place[cell]] = predicted_s
            num_steps[place[cell]] += number
    recorded_s = np.array([stretch.recorded_s for stretch in stretches])
    total_s = shares.sum(axis=1)
    weights = 1.0 / np.sqrt(total_s)
    held = np.diag(np.sqrt(RIDGE * shares.sum(axis=0)))
    matrix = np.concatenate([shares * weights[:, None], held])
    excess = np.concatenate([(recorded_s - total_s) * weights, np.zeros(len(cells))])
    found = np.linalg.lstsq(matrix, excess, rcond=None)[0]
    columns = zip(cells, num_steps.tolist(), shares.sum(axis=0).tolist(), (1.0 + found).tolist(), strict=True)
    return [CellRatio(*column) for column in columns]


def name_of(cell: Cell) -> str:
    """`steps of chunks and decodes, 257 to 512 tokens`."""
    size = f"up to {cell.most:,}" if cell.least == 1 else f"{cell.least:,} to {cell.most:,}"
    if cell.kind == "decode":
        return f"steps of {size} decodes"
    return f"steps of chunks {'and decodes' if cell.kind == 'mixed' else 'alone'}, {size} tokens"


TIMINGS = {
    "decode": "timings of such decodes as the server launches them, in CUDA graphs and with its versions of "
    "libraries (attention, dense layers, LM head at such numbers of rows)",
    "mixed": "timings of chunks and decodes of such sizes launched together, with the server's versions of "
    "libraries",
    "prefill": "timings of prompts' chunks of such sizes, with the server's versions of libraries",
}
"""What to time where steps of a kind are off."""


def _steps_remedy(experiment: Experiment, cells: Sequence[CellRatio]) -> str:
    """What to time or set, by how the worst cells are off."""
    worst = worst_cells(cells)
    told = [each.missing_s for each in cells if each.num_steps >= 5 * MAX_TOLD]
    if len(told) > 1 and min(told) * max(told) > 0 and max(map(abs, told)) < 2 * min(map(abs, told)):
        mean_s = float(np.mean(told))
        gap_s = getattr(experiment.cost_model, "host_gap_s", math.inf) + mean_s
        name = "host_gap_s" if 0.0 <= gap_s <= MAX_GAP_S else "host_step_s"
        if mean_s > 0 or name == "host_gap_s":
            return (
                f"steps of every kind and size lack about {mean_s * MS_PER_S:+.2g} ms, as the host's time "
                f"would: cost_model.{name}"
            )
    how = "missing" if worst[0].missing_s > 0 else "too much"
    return f"{TIMINGS[worst[0].cell.kind]}: most time is {how} there"


def changes(experiment: Experiment) -> Iterator[tuple[str, str, list[Any]]]:
    """Settings that matter and a record seldom says: section, key and the values of servers, rising."""
    cost, scheduler = experiment.cost_model, experiment.scheduler
    if is_of_host := getattr(cost, "host", None):
        yield "cost_model", "host", [host for host in ("async", "sync") if host != is_of_host]
    if getattr(cost, "unequal_contexts", True) is False:
        yield "cost_model", "unequal_contexts", [True]
    if budget := getattr(scheduler, "max_tokens_per_step", None):
        least = getattr(scheduler, "max_num_seqs", 1)
        values = [each for each in BUDGETS if each >= least and each != budget]
        yield "scheduler", "max_tokens_per_step", values
    yield "scheduler", "async_scheduling", [not scheduler.async_scheduling]


def trials(experiment: Experiment, simulate: Callable[[Experiment], RecordedRun]) -> Iterator[Trial]:
    """`changes`, one at a time, that serve all that was served; no value beyond which none matters."""
    for section, key, values in changes(experiment):
        tried: list[Trial] = []
        for value in values:
            run = simulate(_with(experiment, section, **{key: value}))
            if (np.isfinite(run.recorded["e2e_s"]) & np.isnan(run.simulated["e2e_s"])).any():
                continue
            if tried and run.figures == tried[-1].run.figures:
                tried[-1] = tried[-1]._replace(or_more=True)
                break
            tried.append(Trial(f"{section}.{key}", json.dumps(value).strip('"'), run))
        yield from tried


def _with(experiment: Experiment, section: str, **settings: Any) -> Experiment:
    changed = getattr(experiment, section).model_copy(update=settings)
    return experiment.model_copy(update={section: changed})


def told_trials(run: RecordedRun, tried: Sequence[Trial]) -> Iterator[str]:
    """The changes that take away much of the errors and bring most figures nearer, the best first, one of a
    setting, and on what evidence; else that none does.
    """
    best: dict[str, tuple[float, Trial]] = {}
    for trial in tried:
        gain = 1.0 - _size(trial.run.error_pct) / _size(run.error_pct)
        is_good = gain > MIN_GAIN and 2 * trial.num_nearer(run) > len(run.figures)
        if is_good and gain > best.get(trial.key, (0.0,))[0]:
            best[trial.key] = gain, trial
    for _, trial in sorted(best.values(), key=lambda pair: -pair[0])[:MAX_TOLD]:
        setting = f"{trial.key}={trial.value}{' (or more: the log cannot tell)' if trial.or_more else ''}"
        evidence = f"{trial.num_nearer(run)} of {len(run.figures)} figures are nearer"
        yield f"--set {setting} would give {_errors(trial.run.error_pct)}; {evidence}"
    if best:
        yield "that is from figures alone: what the server had, its command says"
    elif tried:
        names = ", ".join(dict.fromkeys(trial.key for trial in tried))
        yield f"no setting tried does ({names}): look at the timings"


def _size(error_pct: Mapping[str, float]) -> float:
    """The largest error, without sign."""
    return max((abs(error) for error in error_pct.values()), default=math.nan)


def _errors(error_pct: Mapping[str, float]) -> str:
    return ", ".join(f"{TITLES[name]} {error:+.1f}%" for name, error in error_pct.items())
