"""The report's chapter on a capacity: how many requests a second, within the SLO."""

from __future__ import annotations

from cbsim.show.capacity_plot import RATE, capacity_bars, rate_picture
from cbsim.show.capacity_text import capacity_table, describe_slo, meaning, sentence
from cbsim.show.chapter import Chapter, Picture, provenance
from cbsim.show.figures import ITL, TPOT, TTFT, SummaryFigure
from cbsim.show.markup import Cell, HtmlTable
from cbsim.show.notes import merged_column
from cbsim.show.text import format_share
from cbsim.studies.capacity import CapacityAnswer

_CURVE = (
    SummaryFigure(RATE, "requests/s"),
    SummaryFigure("slo_attainment", "within SLO", format_share),
    SummaryFigure("goodput_per_s", "goodput (req/s)"),
    SummaryFigure("output_token_throughput_per_s", "output tokens/s"),
    *(TTFT, TPOT, ITL),
)


def capacity_chapter(answer: CapacityAnswer) -> Chapter:
    """The chapter of one capacity folder."""
    title = "Capacity of each contender"
    share, slo = f"{answer.plan.share * 100:g}%", describe_slo(answer.slo)
    described = (
        "Six panels against requests a second: p99 of TTFT, TPOT and ITL with the SLO's limits, throughput, "
        "goodput, and the share of requests within the SLO."
    )
    return Chapter(
        title=f"{answer.name}: capacity",
        question=f"Up to which rate do {share} of requests meet {slo}?",
        answers=[sentence(answer)],
        warnings=[
            *(f"{each.label}: {reason}" for each in answer.contenders for reason in each.reasons),
            *meaning(answer),
            *_notes(answer),
        ],
        tables=[HtmlTable.of_text(title, capacity_table(answer)), _curve_table(answer)],
        pictures=[
            Picture(capacity_bars(answer), title, "A bar a contender, with its interval."),
            Picture(rate_picture(answer), "What a request rate does", described),
        ],
        provenance=[provenance(answer.name, answer.config, answer.manifest)],
    )


def _curve_table(answer: CapacityAnswer) -> HtmlTable:
    """The curve, averaged over replicates."""
    by, figures = ["contender", RATE], [figure.key for figure in _CURVE[1:]]
    curve = answer.curve.groupby(by, sort=False)[figures].mean().reset_index().sort_values(by)
    rows = [
        [Cell(row["contender"]), *(Cell(each.show(row[each.key]), row[each.key]) for each in _CURVE)]
        for row in curve.to_dict("records")
    ]
    header = ("contender", *(figure.title for figure in _CURVE))
    return HtmlTable("The curve: means over replicates", header, rows)


def _notes(answer: CapacityAnswer) -> list[str]:
    """What the runs noted, apart from how they were resampled."""
    merged = merged_column(answer.curve["contender"], answer.curve["notes"])
    return [each for each in merged if "requests drawn from" not in each]
