"""Capacities in words: a table over contenders, and the answer in a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cbsim.results.slo import joined, percent
from cbsim.show.text import (
    MAX_NAMED,
    MISSING,
    Table,
    certainty,
    format_interval,
    format_share,
    merged_column,
)
from cbsim.studies.capacity import CapacityAnswer, Contender
from cbsim.studies.intervals import Interval, is_known_by_spread, seen_range

if TYPE_CHECKING:
    import pandas as pd

NO_RATE = {"unlimited": "unlimited", "never": "none", "too short": "not found"}
"""Verdicts without a rate -> what stands in its place."""


def capacity_table(answer: CapacityAnswer) -> Table:
    """A row for each contender: requests a second, how that compares with the first, and what to know."""
    first, *others = answer.contenders
    rows = [
        {
            "": each.label,
            "capacity (req/s)": rate_text(each),
            **({"x the first": _ratio_text(each.against_first, each, first)} if others else {}),
            **({"within SLO unloaded": format_share(each.alone)} if answer.slo.own else {}),
            **({"unloaded": each.alone_misses or "met"} if answer.slo.of_run else {}),
            "verdict": "never met" if each.verdict == "never" else each.verdict,
        }
        for each in answer.contenders
    ]
    cells = tuple(tuple(row.values()) for row in rows)
    return Table(tuple(rows[0]), cells, notes=(*remarks(answer), *meaning(answer), *run_notes(answer)))


def run_notes(answer: CapacityAnswer) -> list[str]:
    """What was noted of runs at rates that a contender can take, apart from how they were resampled."""
    curve = _within_capacity(answer)
    merged = merged_column(curve["contender"], curve["notes"])
    return [each for each in merged if "requests drawn from" not in each]


def _within_capacity(answer: CapacityAnswer) -> pd.DataFrame:
    """The rows of the curve up to each contender's capacity, and its lowest; all where it has none."""
    curve = answer.curve
    most = {each.label: each.rate_per_s.estimate for each in answer.contenders if each.rate_per_s is not None}
    lowest = curve.groupby("contender")["rate_per_s"].transform("min")
    top = curve["contender"].map(most).fillna(math.inf)
    rows: pd.DataFrame = curve[(curve["rate_per_s"] <= top) | (curve["rate_per_s"] == lowest)]
    return rows


def remarks(answer: CapacityAnswer) -> list[str]:
    """What to know of each contender, and of all."""
    own = [f"{each.label}: {reason}" for each in answer.contenders for reason in each.reasons]
    return [*own, *answer.notes]


def rate_text(contender: Contender) -> str:
    """The capacity with its interval, or the word for why there is none."""
    if contender.rate_per_s is None:
        return NO_RATE.get(contender.verdict, MISSING)
    return format_interval(contender.rate_per_s, seen_range(contender.own_rates_per_s))


def _ratio_text(ratio: Interval | None, contender: Contender, other: Contender) -> str:
    """How many times as much a contender can take as another, replicate by replicate; `-` for `None`."""
    if ratio is None:
        return MISSING
    pairs = zip(contender.own_rates_per_s, other.own_rates_per_s, strict=True)
    return format_interval(ratio, seen_range([one / two for one, two in pairs]))


def sentence(answer: CapacityAnswer) -> str:
    """The answer to "how many requests a second?", whether the SLO is met first, with its uncertainty.

    And what the step times behind it come from, and what else may be asked.
    """
    curve = _within_capacity(answer)
    sure, told = certainty(curve["contender"], curve["notes"]), _answer(answer)
    if sure and "±" in told:
        sure = f"{sure.removesuffix('.')}, which the ± leaves out."
    return " ".join(filter(None, [told, _few(answer), _elsewhere(answer), sure]))


def _are_few(answer: CapacityAnswer) -> bool:
    """Whether what replicates saw is told in place of intervals."""
    return any(seen_range(each.own_rates_per_s) for each in answer.contenders)


def _few(answer: CapacityAnswer) -> str:
    """That intervals need more replicates, where there are too few."""
    if not _are_few(answer):
        return ""
    return "Two replicates say little, so that only what they saw is told: --replicates 5 gives intervals."


def _elsewhere(answer: CapacityAnswer) -> str:
    """That the best at a rate below is another question, where there are several contenders."""
    if sum(each.rate_per_s is not None for each in answer.contenders) < 2:
        return ""
    return "At a given rate below that others may be faster, which `cbsim sweep` tells."


def _answer(answer: CapacityAnswer) -> str:
    slo, contenders = answer.slo.promise(), answer.contenders
    known = sorted((each for each in contenders if each.rate_per_s is not None), key=_estimate, reverse=True)
    unlimited = [each.label for each in contenders if each.verdict == "unlimited"]
    open_ended = [
        each.label for each in contenders if each.verdict == "too short" and each.rate_per_s is None
    ]
    too_few = f" These requests are too few to tell how many {joined(open_ended)} can take."
    untold = too_few if open_ended else ""
    if unlimited:
        are = "is" if len(unlimited) == 1 else "are"
        told = f"Met at any rate: {joined(unlimited)} {are} unlimited under this SLO, {slo}."
        if known:
            told += f" {known[0].label}, the next, meets it up to {rate_text(known[0])} requests/s."
        return told + untold
    if known:
        best, *others = known
        told = f"Met up to {rate_text(best)} requests/s by {best.label}: {slo}"
        if best.verdict == "too short":
            told += ", as far as these requests can tell"
            told += f" ({best.reasons[0]})" if best.reasons else ""
        return f"{told}.{_runners_up(best, others)}{untold}"
    if open_ended:
        return f"Met at every rate by {joined(open_ended)}: these requests are too few to break {slo}."
    nearest = max(contenders, key=lambda each: each.alone_margin)
    which = f"The nearest is {nearest.label}: served" if len(contenders) > 1 else "Served"
    return f"Not met at any rate: {slo}. {which} one by one, it {nearest.alone_misses}."


def _runners_up(best: Contender, others: Sequence[Contender]) -> str:
    """The next best, and which contenders the paired intervals can't tell from the best."""
    if not others or others[0].against_best is None:
        return ""
    following, *rest = others
    rate, ratio = rate_text(following), _ratio_text(following.against_best, following, best)
    told = f" {following.label}, the next, up to {rate}: replicate by replicate {ratio} times as much"
    alike = [each.label for each in rest if _is_tied(each)]
    if _is_tied(following):
        few = seen_range(following.own_rates_per_s)
        told += (
            ", which two replicates can't tell from chance"
            if few
            else ", so that the two can't be told apart"
        )
    if alike:
        named = alike if len(alike) <= MAX_NAMED else [f"{len(alike)} more"]
        told += f"; nor can {joined(named).replace(' and ', ' or ')} be told from the best"
    return f"{told}."


def _is_tied(contender: Contender) -> bool:
    """Whether it can't be told from the best: the interval of their ratio isn't clear of 1."""
    return contender.against_best is not None and contender.against_best.high >= 1


def meaning(answer: CapacityAnswer) -> tuple[str, ...]:
    """What the columns of the table say, and how its intervals were made."""
    slo = answer.slo
    leaves = "leaves the SLO" if slo.of_run else f"falls to {percent(slo.share)}"
    told = [f"capacity: the rate at which the curve, the mean over replicates, {leaves}"]
    if len(answer.contenders) > 1:
        told.append(
            "x the first: mean of the replicates' own capacities over those of the first line; "
            "an interval that holds 1 can't tell the two apart"
        )
    if slo.own:
        told.append("within SLO unloaded: of requests served one by one, which no rate can better")
    if slo.of_run:
        told.append("unloaded: what of the SLO is missed by requests served one by one")
    told.append(method(answer))
    intervals = [each for of in answer.contenders for each in (of.rate_per_s, of.against_first) if each]
    # Chance in where the rates lie may then be more than the intervals tell.
    if any(0 < each.half_width < answer.plan.tolerance / 2 * each.estimate for each in intervals):
        told.append(
            f"an interval narrower than the steps between the rates that were run, "
            f"{percent(answer.plan.tolerance)}, may owe that to them: try a smaller --tolerance"
        )
    return tuple(told)


def method(answer: CapacityAnswer) -> str:
    """How the intervals were made."""
    plan = answer.plan
    found = [each.rate_per_s for each in answer.contenders if each.rate_per_s is not None]
    if found and all(interval.low == interval.high for interval in found):
        return "nothing in these runs is drawn: replicates are identical and give no intervals"
    wide, seeds = f"± {percent(plan.confidence)}", f"{plan.num_replicates} seeds' own capacities"
    if _are_few(answer):
        drawn = "seeds" if answer.resampled_from is None else "resamples of the trace"
        return f"in brackets the least and the most of {plan.num_replicates} {drawn}, each by itself"
    if answer.resampled_from is not None:
        return (
            f"{wide} intervals by the block bootstrap, the spread of the own capacities of "
            f"{plan.num_replicates} resamples of the trace's {answer.resampled_from:,} requests, "
            "each the same for every rate and contender"
        )
    if is_known_by_spread(answer.config):
        drawn = "each the same for every rate, which draw the cost model's errors"
        return f"{wide} intervals by the spread of {seeds}, {drawn}"
    return f"{wide} t intervals over {seeds}, each seed the same for every rate"


def _estimate(contender: Contender) -> float:
    return 0.0 if contender.rate_per_s is None else contender.rate_per_s.estimate
