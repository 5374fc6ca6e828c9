"""Capacities in words: a table over contenders, and the answer in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cbsim.base.units import format_seconds
from cbsim.show.text import MISSING, Table, format_figure, format_interval, format_share
from cbsim.studies.capacity import CapacityAnswer, Contender
from cbsim.studies.intervals import Interval, is_known_by_spread


def capacity_table(answer: CapacityAnswer) -> Table:
    """A row for each contender: requests a second, how that compares with the first, and what to know."""
    rows = [
        {
            "": each.label,
            "capacity (req/s)": format_estimate(each.rate_per_s),
            **({"x the first": format_estimate(each.against_first)} if len(answer.contenders) > 1 else {}),
            "within SLO unloaded": format_share(each.alone),
            "verdict": "never met" if each.verdict == "never" else each.verdict,
        }
        for each in answer.contenders
    ]
    notes = [f"{each.label}: {reason}" for each in answer.contenders for reason in each.reasons]
    cells = tuple(tuple(row.values()) for row in rows)
    return Table(tuple(rows[0]), cells, notes=(*notes, *meaning(answer)))


def sentence(answer: CapacityAnswer) -> str:
    """The answer to "how many requests a second?", with its uncertainty: the best contender's."""
    known = [contender for contender in answer.contenders if contender.rate_per_s is not None]
    slo = f"{describe_slo(answer.slo)} for {_percent(answer.plan.share)} of requests"
    if not known:
        if all(contender.verdict == "never" for contender in answer.contenders):
            return f"No rate holds {slo}: {answer.contenders[0].reasons[0]}."
        return f"These requests are too few to find the rate that holds {slo}."
    best, *others = sorted(known, key=_estimate, reverse=True)
    held = f"{best.label} holds {slo} up to {format_estimate(best.rate_per_s)} requests/s"
    if best.verdict == "too short":
        held += ", as far as requests so few can tell"
    return f"{held}.{_runners_up(others)}"


def _runners_up(others: Sequence[Contender]) -> str:
    """The next best, and which contenders the paired intervals can't tell from the best."""
    if not others or others[0].against_best is None:
        return ""
    following, *rest = others
    rate, ratio = format_estimate(following.rate_per_s), format_estimate(following.against_best)
    told = f" {following.label}, the next, up to {rate}: replicate by replicate {ratio} times as much"
    alike = [each.label for each in rest if _is_tied(each)]
    if _is_tied(following):
        told += ", so that the two can't be told apart"
    if alike:
        told += f"; nor can {' or '.join(alike)} be told from the best"
    return f"{told}."


def _is_tied(contender: Contender) -> bool:
    """Whether it can't be told from the best: the interval of their ratio isn't clear of 1."""
    return contender.against_best is not None and contender.against_best.high >= 1


def describe_slo(limits: Mapping[str, float]) -> str:
    """`TTFT <= 2 s and TPOT <= 50 ms`."""
    told = [f"{name.removesuffix('_s').upper()} ≤ {_duration(limit)}" for name, limit in limits.items()]
    return " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)


def meaning(answer: CapacityAnswer) -> tuple[str, ...]:
    """What the columns of the table say, and how its intervals were made."""
    share = _percent(answer.plan.share)
    told = [f"capacity: the rate at which the curve, the mean over replicates, falls to {share}"]
    if len(answer.contenders) > 1:
        told.append(
            "x the first: mean of the replicates' own capacities over those of the first line; "
            "an interval that holds 1 can't tell the two apart"
        )
    told.append("within SLO unloaded: of requests served one by one, which no rate can better")
    told.append(method(answer))
    intervals = [each for of in answer.contenders for each in (of.rate_per_s, of.against_first) if each]
    # Chance in where the rates lie may then be more than the intervals tell.
    if any(0 < each.half_width < answer.plan.tolerance / 2 * each.estimate for each in intervals):
        told.append(
            f"an interval narrower than the steps between the rates that were run, "
            f"{_percent(answer.plan.tolerance)}, may owe that to them: try a smaller --tolerance"
        )
    return tuple(told)


def format_estimate(interval: Interval | None) -> str:
    """`19.8 ± 3.8`, or `24.3` alone where nothing was drawn that would give an interval; `-` for `None`."""
    if interval is None:
        return MISSING
    return format_interval(interval) if interval.half_width > 0 else format_figure(interval.estimate)


def method(answer: CapacityAnswer) -> str:
    """How the intervals were made."""
    plan = answer.plan
    found = [each.rate_per_s for each in answer.contenders if each.rate_per_s is not None]
    if found and all(interval.low == interval.high for interval in found):
        return "nothing in these runs is drawn: replicates are identical and give no intervals"
    percent, seeds = _percent(plan.confidence), f"{plan.num_replicates} seeds' own capacities"
    if answer.resampled_from is not None:
        return (
            f"± {percent} intervals by the block bootstrap, the spread of the own capacities of "
            f"{plan.num_replicates} resamples of the trace's {answer.resampled_from:,} requests, "
            "each the same for every rate and contender"
        )
    if is_known_by_spread(answer.config):
        drawn = "each the same for every rate, which draw the cost model's errors"
        return f"± {percent} intervals by the spread of {seeds}, {drawn}"
    return f"± {percent} t intervals over {seeds}, each seed the same for every rate"


def _estimate(contender: Contender) -> float:
    return 0.0 if contender.rate_per_s is None else contender.rate_per_s.estimate


def _percent(share: float) -> str:
    return f"{share * 100:g}%"


def _duration(seconds: float) -> str:
    """A limit as people write it: `2 s`, `50 ms`."""
    value, _, unit = format_seconds(seconds).partition(" ")
    return f"{float(value):g} {unit}" if value.replace(".", "").isdigit() else f"{value} {unit}"
