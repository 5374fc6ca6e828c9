"""Chapter: one part of the report: question, answer, warnings, tables, pictures, provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cbsim.show.html_table import HtmlTable
from cbsim.show.inline_svg import inline_svg
from cbsim.show.markup import Markup, prose, tag

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure, and what it shows for those who can't see it."""

    figure: Figure
    title: str
    description: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """What one run, or all of a sweep's, depended on."""

    label: str
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Chapter:
    """Everything the report says about one sweep, one capacity, or some runs."""

    title: str
    question: str
    answers: Sequence[str]
    """Sentences with their uncertainty; `names in backquotes` are code."""
    warnings: Sequence[str]
    tables: Sequence[HtmlTable]
    pictures: Sequence[Picture]
    provenance: Sequence[Provenance]

    def render(self, key: str, heading: str | None = None) -> Markup:
        """The section under its title, or another heading; `key` is unique on the page."""
        tables = [table.render(f"{key}-table-{place}") for place, table in enumerate(self.tables)]
        pictures = [
            inline_svg(picture.figure, f"{key}-picture-{place}", picture.title, picture.description)
            for place, picture in enumerate(self.pictures)
        ]
        return tag(
            "section",
            tag("h2", heading or self.title, id=f"{key}-heading"),
            tag("p", prose(self.question), class_="question"),
            tag("div", *(tag("p", prose(answer)) for answer in self.answers), class_="answer"),
            self._warnings(),
            tag("h3", "Figures"),
            *tables,
            tag("h3", "Pictures") if pictures else None,
            *pictures,
            tag("h3", "Provenance"),
            *(_provenance(each) for each in self.provenance),
            id=key,
            aria_labelledby=f"{key}-heading",
        )

    def _warnings(self) -> Markup | None:
        if not self.warnings:
            return None
        items = tag("ul", *(tag("li", prose(warning)) for warning in self.warnings))
        return tag("div", tag("h3", "What to know"), items, class_="warnings", role="note")


def _provenance(source: Provenance) -> Markup:
    versions = ", ".join(f"{name} {number}" for name, number in source.manifest.get("versions", {}).items())
    rows = [("versions", versions), ("seed", str(source.manifest.get("seed", "")))]
    for read in source.manifest.get("inputs", []):
        what = f"file {read['file']}" if "file" in read else f"{read['spec']} as resolved"
        rows.append((what, f"sha256 {read['sha256']}"))
    terms = [piece for name, value in rows if value for piece in (tag("dt", name), tag("dd", value))]
    config = json.dumps(source.config, indent=2, ensure_ascii=False)
    return tag(
        "details",
        tag("summary", source.label),
        tag("dl", *terms),
        tag("p", "Configuration as resolved:"),
        tag("pre", tag("code", config), tabindex="0"),
    )
