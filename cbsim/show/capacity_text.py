"""Capacities in words: a table over contenders, and the answer in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cbsim.base.units import format_seconds
from cbsim.show.differences import format_interval
from cbsim.show.text import MISSING, Table, format_figure, format_share
from cbsim.studies.capacity import CapacityAnswer, Contender
from cbsim.studies.intervals import Interval
from cbsim.studies.replicates import is_known_by_spread


def capacity_table(answer: CapacityAnswer) -> Table:
    """A row for each contender: requests a second, how that compares with the first, and what to know."""
    contenders = answer.contenders
    ratios = {"x the first": tuple(map(_ratio, contenders))} if len(contenders) > 1 else {}
    columns = {
        "": tuple(each.label for each in contenders),
        "capacity (req/s)": tuple(
            MISSING if each.rate_per_s is None else format_estimate(each.rate_per_s) for each in contenders
        ),
        **ratios,
        "within SLO unloaded": tuple(format_share(each.alone) for each in contenders),
        "verdict": tuple({"never": "never met"}.get(each.verdict, each.verdict) for each in contenders),
    }
    notes = [f"{each.label}: {reason}" for each in contenders for reason in each.reasons]
    return Table(tuple(columns), tuple(zip(*columns.values(), strict=True)), notes=(*notes, *meaning(answer)))


def sentence(answer: CapacityAnswer) -> str:
    """The answer to "how many requests a second?", with its uncertainty: the best contender's."""
    known = [contender for contender in answer.contenders if contender.rate_per_s is not None]
    slo = f"{describe_slo(answer.slo)} for {_percent(answer.plan.share)} of requests"
    if not known:
        if all(contender.verdict == "never" for contender in answer.contenders):
            return f"No rate holds {slo}: {answer.contenders[0].reasons[0]}."
        return f"These requests are too few to find the rate that holds {slo}."
    best = max(known, key=lambda contender: _estimate(contender))
    assert best.rate_per_s is not None
    held = f"{best.label} holds {slo} up to {format_estimate(best.rate_per_s)} requests/s"
    if best.verdict == "too short":
        held += ", as far as requests so few can tell"
    others = sorted((each for each in known if each is not best), key=_estimate, reverse=True)
    return f"{held}.{_runners_up(others)}"


def _runners_up(others: Sequence[Contender]) -> str:
    """The next best, and which contenders the paired intervals can't tell from the best."""
    if not others or others[0].rate_per_s is None or others[0].against_best is None:
        return ""
    following, *rest = others
    rate = format_estimate(others[0].rate_per_s)
    ratio = f"{format_estimate(others[0].against_best)} times as much"
    told = f" {following.label}, the next, up to {rate}: replicate by replicate {ratio}"
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
    if any(_is_finer_than_steps(each, answer.plan.tolerance) for each in answer.contenders):
        told.append(
            f"an interval narrower than the steps between the rates that were run, "
            f"{_percent(answer.plan.tolerance)}, may owe that to them: try a smaller --tolerance"
        )
    return tuple(told)


def _is_finer_than_steps(contender: Contender, tolerance: float) -> bool:
    """Whether chance in where the rates lie may be more than the intervals tell."""
    told = (contender.rate_per_s, contender.against_first)
    return any(each is not None and 0 < each.half_width < tolerance / 2 * each.estimate for each in told)


def format_estimate(interval: Interval) -> str:
    """`19.8 ± 3.8`, or `24.3` alone where nothing was drawn that would give an interval."""
    return format_interval(interval) if interval.half_width > 0 else format_figure(interval.estimate)


def method(answer: CapacityAnswer) -> str:
    """How the intervals were made."""
    plan = answer.plan
    found = [each.rate_per_s for each in answer.contenders if each.rate_per_s is not None]
    if found and all(interval.low == interval.high for interval in found):
        return "nothing in these runs is drawn: replicates are identical and give no intervals"
    percent = _percent(plan.confidence)
    if answer.resampled_from is None and is_known_by_spread(answer.config):
        return (
            f"± {percent} intervals by the spread of {plan.num_replicates} seeds' own capacities, "
            "each the same for every rate, which draw the cost model's errors"
        )
    if answer.resampled_from is None:
        return (
            f"± {percent} t intervals over {plan.num_replicates} seeds' own capacities, "
            "each seed the same for every rate"
        )
    return (
        f"± {percent} intervals by the block bootstrap, the spread of the own capacities of "
        f"{plan.num_replicates} resamples of the trace's {answer.resampled_from:,} requests, "
        "each the same for every rate and contender"
    )


def _ratio(contender: Contender) -> str:
    return MISSING if contender.against_first is None else format_estimate(contender.against_first)


def _estimate(contender: Contender) -> float:
    return 0.0 if contender.rate_per_s is None else contender.rate_per_s.estimate


def _percent(share: float) -> str:
    return f"{share * 100:g}%"


def _duration(seconds: float) -> str:
    """A limit as people write it: `2 s`, `50 ms`."""
    value, _, unit = format_seconds(seconds).partition(" ")
    return f"{float(value):g} {unit}" if value.replace(".", "").isdigit() else f"{value} {unit}"
