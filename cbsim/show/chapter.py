"""Chapter: one part of the report: question, answer, warnings, tables, pictures, provenance."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from cbsim.show.markup import HtmlTable, Markup, prose, scroller, tag
from cbsim.show.style import INK, PALETTE, styled

_FOLLOWING = {INK: "currentColor", PALETTE[-1]: "currentColor", "#e6e6e6": "var(--grid)"}
"""Colours that follow the page's, light or dark."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure, and what it shows for those who can't see it."""

    figure: Figure
    title: str
    description: str

    def render(self, key: str) -> Markup:
        """The figure as SVG within the page, with its caption; `key` is unique on the page."""
        for patch in (self.figure.patch, *(axes.patch for axes in self.figure.axes)):
            patch.set_visible(False)
        stream = io.StringIO()
        with styled():
            self.figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
        svg = re.sub(r"<metadata>.*?</metadata>", "", stream.getvalue(), flags=re.DOTALL)
        for color, following in _FOLLOWING.items():
            svg = re.sub(re.escape(color), following, svg, flags=re.IGNORECASE)
        # Several pictures share a page, and so do the names within them.
        svg = re.sub(r'\bid="', f'id="{key}-', svg)
        svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{key}-", svg)
        opening = re.search(r'<svg[^>]*(viewBox="\S+ \S+ (\S+) [^"]+")[^>]*>', svg)
        assert opening is not None
        view_box, width = opening.groups()
        described = self.description.replace("`", "")
        told = tag("title", self.title, id=f"{key}-title") + tag("desc", described, id=f"{key}-desc")
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'{view_box} role="img" aria-labelledby="{key}-title {key}-desc" '
            f'style="max-width: {float(width) * 4 / 3:.0f}px">'
        )
        drawn = scroller(Markup(head + told + svg[opening.end() :]), self.title)
        return tag("figure", drawn, tag("figcaption", prose(self.description)))


def provenance(label: str, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> Markup:
    """What one run, or all of a sweep's, depended on, behind a line that opens."""
    versions = ", ".join(f"{name} {number}" for name, number in manifest.get("versions", {}).items())
    rows = [("versions", versions), ("seed", str(manifest.get("seed", "")))]
    for read in manifest.get("inputs", []):
        what = f"file {read['file']}" if "file" in read else f"{read['spec']} as resolved"
        rows.append((what, f"sha256 {read['sha256']}"))
    terms = [piece for name, value in rows if value for piece in (tag("dt", name), tag("dd", value))]
    shown = tag("pre", tag("code", json.dumps(config, indent=2, ensure_ascii=False)), tabindex="0")
    told = tag("p", "Configuration as resolved:")
    return tag("details", tag("summary", label), tag("dl", *terms), told, shown)


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
    provenance: Sequence[Markup]

    def render(self, key: str, heading: str | None = None) -> Markup:
        """The section under its title, or another heading; `key` is unique on the page."""
        pictures = [each.render(f"{key}-picture-{place}") for place, each in enumerate(self.pictures)]
        warnings = tag("ul", *(tag("li", prose(warning)) for warning in self.warnings))
        noted = tag("div", tag("h3", "What to know"), warnings, class_="warnings", role="note")
        return tag(
            "section",
            tag("h2", heading or self.title, id=f"{key}-heading"),
            tag("p", prose(self.question), class_="question"),
            tag("div", *(tag("p", prose(answer)) for answer in self.answers), class_="answer"),
            noted if self.warnings else None,
            tag("h3", "Figures"),
            *(table.render(f"{key}-table-{place}") for place, table in enumerate(self.tables)),
            tag("h3", "Pictures") if pictures else None,
            *pictures,
            tag("h3", "Provenance"),
            *self.provenance,
            id=key,
            aria_labelledby=f"{key}-heading",
        )
