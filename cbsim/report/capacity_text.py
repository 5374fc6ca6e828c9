"""Capacities in words: a table over contenders, and the answer in a sentence."""

from __future__ import annotations

from collections.abc import Mapping

from cbsim.capacity import CapacityAnswer, Contender
from cbsim.replicates import is_known_by_spread
from cbsim.report.differences import format_interval
from cbsim.report.text import MISSING, Table, format_share
from cbsim.units import format_seconds


def capacity_table(answer: CapacityAnswer) -> Table:
    """A row for each contender: requests a second, how that compares with the first, and what to know."""
    rows = tuple(_row(contender) for contender in answer.contenders)
    header = ("", "capacity (req/s)", "against the first", "SLO met alone", "verdict")
    notes = [
        f"{contender.label}: {reason}" for contender in answer.contenders for reason in contender.reasons
    ]
    return Table(header, rows, notes=(*notes, method(answer)))


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
    held = f"{best.label} holds {slo} up to {format_interval(best.rate_per_s)} requests/s"
    if best.verdict == "too short":
        return f"{held}, as far as requests so few can tell."
    others = [contender for contender in known if contender is not best and contender.rate_per_s is not None]
    if not others:
        return f"{held}."
    next_best = max(others, key=lambda contender: _estimate(contender))
    assert next_best.rate_per_s is not None
    return f"{held}; {next_best.label}, the next, {format_interval(next_best.rate_per_s)}."


def describe_slo(limits: Mapping[str, float]) -> str:
    """`TTFT <= 2 s and TPOT <= 50 ms`."""
    told = [f"{name.removesuffix('_s').upper()} ≤ {_duration(limit)}" for name, limit in limits.items()]
    return " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)


def method(answer: CapacityAnswer) -> str:
    """How the intervals were made."""
    plan = answer.plan
    found = [each.rate_per_s for each in answer.contenders if each.rate_per_s is not None]
    if found and all(interval.low == interval.high for interval in found):
        return "nothing in these runs is drawn: replicates are identical and give no intervals"
    percent = _percent(plan.confidence)
    if answer.resampled_from is None and is_known_by_spread(answer.config):
        return (
            f"± {percent} intervals by the spread of {plan.num_replicates} seeds, each the same for every "
            "rate, which draw the cost model's errors"
        )
    if answer.resampled_from is None:
        return f"± {percent} t intervals over {plan.num_replicates} seeds, each the same for every rate"
    return (
        f"± {percent} intervals by the block bootstrap: {plan.num_replicates} resamples of the trace's "
        f"{answer.resampled_from:,} requests, each the same for every rate and contender"
    )


def _row(contender: Contender) -> tuple[str, ...]:
    rate, ratio = contender.rate_per_s, contender.against_first
    return (
        contender.label,
        MISSING if rate is None else format_interval(rate),
        MISSING if ratio is None else f"{format_interval(ratio)} x",
        format_share(contender.alone),
        {"never": "never met"}.get(contender.verdict, contender.verdict),
    )


def _estimate(contender: Contender) -> float:
    return 0.0 if contender.rate_per_s is None else contender.rate_per_s.estimate


def _percent(share: float) -> str:
    return f"{share * 100:g}%"


def _duration(seconds: float) -> str:
    """A limit as people write it: `2 s`, `50 ms`."""
    value, _, unit = format_seconds(seconds).partition(" ")
    return f"{float(value):g} {unit}" if value.replace(".", "").isdigit() else f"{value} {unit}"
