"""Chapter: one part of the report, and the HTML it is made of: tables that sort, pictures, provenance."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from cbsim.results.result import known_hashes
from cbsim.show.style import INK, PALETTE, styled
from cbsim.show.text import BEST, Table

_VOID = {"input", "meta"}
SHORT_LABEL = 32
"""Characters of a row's name that stand on one line where there is room."""
MIN_FILTERED = 6
"""Shorter tables need no filter."""


class Markup(str):
    """HTML that needs no escaping any more."""

    __slots__ = ()


def tag(name: str, /, *children: str | None, **attributes: str | bool | None) -> Markup:
    """An element: texts among its children are escaped, `None` is left out.

    Attributes are given with `_` for `-` (`aria_label`, `class_`); one that is `None` or false is left out.
    """
    told = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{told}>")
    return Markup(f"<{name}{told}>{joined(child for child in children if child is not None)}</{name}>")


def joined(pieces: Iterable[str]) -> Markup:
    """Pieces after each other, texts among them escaped."""
    return Markup(
        "".join(piece if isinstance(piece, Markup) else html.escape(piece, quote=False) for piece in pieces)
    )


def scroller(child: str, label: str) -> Markup:
    """A box in which something wide scrolls by itself; `label` is for those who can't see it."""
    return tag("div", child, class_="scroll", tabindex="0", role="region", aria_label=label)


def prose(text: str) -> Markup:
    """A sentence in which `names in backquotes` are code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False)))


def breakable(name: str) -> Markup:
    """A name in which a line may break after each underscore."""
    return Markup(html.escape(name, quote=False).replace("_", "_<wbr>"))


@dataclass(frozen=True, slots=True)
class HtmlTable:
    """A table of texts; its first `num_labels` columns name the rows, its notes are left to the chapter."""

    caption: str
    table: Table
    num_labels: int = 1

    def render(self, key: str) -> Markup:
        """The element; `key` is unique on the page."""
        head = tag("tr", *(self._heading(name, place) for place, name in enumerate(self.table.header)))
        rows = self.table.rows
        body = [tag("tr", *(self._cell(cell, place) for place, cell in enumerate(row))) for row in rows]
        named = tag("caption", tag("span", self.caption))
        table = tag("table", named, tag("thead", head), tag("tbody", *body), id=key, class_="sortable")
        shown = scroller(table, self.caption)
        if len(rows) < MIN_FILTERED:
            return shown
        num_rows = f"{len(rows)} of {len(rows)} rows"
        field = tag("label", "Filter: ", tag("input", type="search", data_filters=key, autocomplete="off"))
        count = tag("output", num_rows, id=f"{key}-count", aria_live="polite")
        return tag("div", tag("p", field, " ", count, class_="filter"), shown)

    def _heading(self, name: str, place: int) -> Markup:
        kind = None if place < self.num_labels else "number"
        if not name:
            return tag("th", tag("span", "name", class_="unseen"), scope="col", class_=kind)
        button = tag("button", breakable(name), type="button")
        return tag("th", button, scope="col", aria_sort="none", class_=kind)

    def _cell(self, cell: str, place: int) -> Markup:
        text, value = cell.removesuffix(BEST), _number(cell)
        best = tag("strong", text, tag("span", " (best)", class_="unseen"))
        shown = breakable(text) if cell == text else best
        if place < self.num_labels:
            kind = "short" if len(text) <= SHORT_LABEL else None
            return tag("th", shown, scope="row", data_value=value, class_=kind)
        return tag("td", shown, data_value=value, class_="number" if cell == text else "best number")


def _number(cell: str) -> str | None:
    """What a cell is sorted by: its leading number; one without goes last."""
    first = re.match(r"([-+]?[\d,]*\.?\d+)[%x]?( |$)", cell.removesuffix(BEST))
    return first and first[1].replace(",", "")


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
    rows += [(f"read from {name}", f"sha256 {digest}") for name, digest in known_hashes(manifest).items()]
    terms = [piece for name, value in rows if value for piece in (tag("dt", name), tag("dd", value))]
    shown = tag("pre", tag("code", json.dumps(config, indent=2, ensure_ascii=False)), tabindex="0")
    told = tag("p", "Configuration as resolved:")
    return tag("details", tag("summary", label), tag("dl", *terms), told, shown)


@dataclass(frozen=True, slots=True)
class Chapter:
    """Everything the report says about one sweep, one capacity, or some runs."""

    title: str
    served: str
    """Model, GPUs and traffic: the first line under the title."""
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
            tag("p", self.served, class_="served"),
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
