"""Markup: HTML built from nested calls, escaped where it isn't markup already, and tables that sort."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cbsim.show.text import BEST, Table

_VOID = {"input", "meta"}
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


class Cell(NamedTuple):
    """What a cell shows, and the number it is sorted by; `None` sorts by the text, NaN last."""

    text: str
    value: float | None = None
    is_best: bool = False


@dataclass(frozen=True, slots=True)
class HtmlTable:
    """Rows under a header; the first `num_labels` columns name them."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    num_labels: int = 1

    @classmethod
    def of_text(cls, caption: str, table: Table) -> HtmlTable:
        """A table of texts; its notes are left to the caller."""
        rows = [
            [Cell(text.removesuffix(BEST), _number(text), text.endswith(BEST)) for text in row]
            for row in table.rows
        ]
        return cls(caption, table.header, rows)

    def render(self, key: str) -> Markup:
        """The element; `key` is unique on the page."""
        head = tag("tr", *(self._heading(name, place) for place, name in enumerate(self.header)))
        body = [tag("tr", *(self._cell(cell, place) for place, cell in enumerate(row))) for row in self.rows]
        named = tag("caption", self.caption)
        table = tag("table", named, tag("thead", head), tag("tbody", *body), id=key, class_="sortable")
        shown = scroller(table, self.caption)
        if len(self.rows) < MIN_FILTERED:
            return shown
        num_rows = f"{len(self.rows)} of {len(self.rows)} rows"
        field = tag("label", "Filter: ", tag("input", type="search", data_filters=key, autocomplete="off"))
        count = tag("output", num_rows, id=f"{key}-count", aria_live="polite")
        return tag("div", tag("p", field, " ", count, class_="filter"), shown)

    def _heading(self, name: str, place: int) -> Markup:
        kind = None if place < self.num_labels else "number"
        if not name:
            return tag("th", tag("span", "name", class_="unseen"), scope="col", class_=kind)
        return tag("th", tag("button", name, type="button"), scope="col", aria_sort="none", class_=kind)

    def _cell(self, cell: Cell, place: int) -> Markup:
        value = None if cell.value is None or math.isnan(cell.value) else repr(float(cell.value))
        best = tag("strong", cell.text, tag("span", " (best)", class_="unseen"))
        shown = best if cell.is_best else cell.text
        if place < self.num_labels:
            return tag("th", shown, scope="row", data_value=value)
        return tag("td", shown, data_value=value, class_="best number" if cell.is_best else "number")


def _number(text: str) -> float | None:
    """What a text is sorted by: its leading number."""
    first = text.removesuffix(BEST).split(" ")[0].replace(",", "").removesuffix("%").removesuffix("x")
    try:
        return float(first)
    except ValueError:
        return None
