"""The curve of a contender: attainment over all its replicates, run at the rates that its capacity needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from cbsim.studies.capacity.bracket import Bracket
from cbsim.studies.capacity.search import SearchOutcome, SearchTask

RunAll = Callable[[Sequence[SearchTask]], Sequence[SearchOutcome]]
"""Carries out tasks; the outcomes in their order."""


def pooled_bracket(outcomes: Sequence[SearchOutcome]) -> Bracket:
    """The mean attainment of a contender's replicates, at every rung on which all of them have run.

    Its crossing is the capacity: the rate up to which the SLO holds for the share of all requests, whichever
    replicate they are in, and where the curve that is shown falls below the share. The mean of the
    replicates' own capacities is higher where attainment drops steeply, for at that rate the replicates that
    are beyond theirs miss far more than the others have to spare.
    """
    own = [outcome.bracket for outcome in outcomes if outcome.bracket is not None]
    bottom, top = min(each.bottom for each in own), max(each.top for each in own)
    shared = set.intersection(*(set(outcome.figures) for outcome in outcomes))
    attainment = {bottom: fmean(outcome.alone for outcome in outcomes)} | {
        rung: fmean(outcome.figures[rung]["slo_attainment"] for outcome in outcomes)
        for rung in sorted(shared)
        if bottom < rung <= top
    }
    return Bracket(own[0].share, bottom, top, attainment)


def complete_curves(
    contenders: Sequence[Sequence[str]],
    tasks: Mapping[str, SearchTask],
    found: Mapping[str, SearchOutcome],
    run_all: RunAll,
) -> None:
    """Run what the curves lack, until the capacity of each contender lies between neighbours of the ladder.

    A contender is the keys of its replicates' searches. In the end all of them have run at every rate that
    any of them tried. `found` is added to.
    """
    while missing := _missing(contenders, found):
        more = [replace(tasks[key], rungs=tuple(sorted(rungs))) for key, rungs in missing.items()]
        for key, outcome in zip(missing, run_all(more), strict=True):
            found[key].figures |= outcome.figures


def _missing(contenders: Sequence[Sequence[str]], found: Mapping[str, SearchOutcome]) -> dict[str, set[int]]:
    """The rungs to run next, by search."""
    missing: dict[str, set[int]] = {}
    for keys in contenders:
        rungs = {rung for key in keys for rung in found[key].figures}
        if all(rungs == found[key].figures.keys() for key in keys):
            asked = pooled_bracket([found[key] for key in keys]).next_rung()
            rungs = rungs if asked is None else {*rungs, asked}
        for key in keys:
            if left := rungs - found[key].figures.keys():
                missing.setdefault(key, set()).update(left)
    return missing
