"""The report's chapter on a capacity: how many requests a second, within the SLO."""

from __future__ import annotations

from cbsim.base.units import MS_PER_S
from cbsim.show.bar_plot import capacity_bars
from cbsim.show.capacity_text import capacity_table, describe_slo, meaning, sentence
from cbsim.show.chapter import Chapter, Picture, Provenance
from cbsim.show.html_table import Cell, HtmlTable
from cbsim.show.notes import merged_notes
from cbsim.show.rate_plot import RATE, rate_picture
from cbsim.show.text import format_figure, format_share
from cbsim.studies.capacity import CapacityAnswer

_CURVE = {
    RATE: ("requests/s", 1),
    "slo_attainment": ("within SLO", 100),
    "goodput_per_s": ("goodput (req/s)", 1),
    "output_token_throughput_per_s": ("output tokens/s", 1),
    "ttft_s.p99": ("TTFT p99 (s)", 1),
    "tpot_s.p99": ("TPOT p99 (ms)", MS_PER_S),
    "itl_s.p99": ("ITL p99 (ms)", MS_PER_S),
}


def capacity_chapter(answer: CapacityAnswer) -> Chapter:
    """The chapter of one capacity folder."""
    share = f"{answer.plan.share * 100:g}%"
    slo = describe_slo(answer.slo)
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
        tables=[
            HtmlTable.of_text("Capacity of each contender", capacity_table(answer)),
            _curve_table(answer),
        ],
        pictures=[
            Picture(
                capacity_bars(answer), "Capacity of each contender", "A bar a contender, with its interval."
            ),
            Picture(rate_picture(answer), "What a request rate does", described),
        ],
        provenance=[Provenance(answer.name, answer.config, answer.manifest)],
    )


def _curve_table(answer: CapacityAnswer) -> HtmlTable:
    """The curve, averaged over replicates."""
    curve = answer.curve.groupby(["contender", RATE], sort=False)[list(_CURVE)[1:]].mean().reset_index()
    rows = [
        [Cell(row["contender"]), *(_cell(name, row[name]) for name in _CURVE)]
        for row in curve.sort_values(["contender", RATE]).to_dict("records")
    ]
    header = ("contender", *(title for title, _ in _CURVE.values()))
    return HtmlTable("The curve: means over replicates", header, rows)


def _cell(name: str, value: float) -> Cell:
    scaled = value * _CURVE[name][1]
    return Cell(format_share(value) if name == "slo_attainment" else format_figure(scaled), scaled)


def _notes(answer: CapacityAnswer) -> list[str]:
    """What the runs noted, apart from how they were resampled."""
    curve = answer.curve
    notes = [told.split("; ") if isinstance(told, str) else [] for told in curve["notes"]]
    merged = merged_notes(list(zip(curve["contender"], notes, strict=True)))
    return [each for each in merged if "requests drawn from" not in each]
