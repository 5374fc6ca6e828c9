"""Look: a letter and a colour for each request, and the parts that panels are made of."""

from __future__ import annotations

import string

from rich.style import Style
from rich.text import Text

from cbsim.workload.request import Request

_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
"""Okabe and Ito's colours for colour-blind readers (jfly.uni-koeln.de/color, 2008)."""
_WITH_WHITE = ("#0072B2",)
"""Those dark enough for white letters."""

TITLE = Style(bold=True)
FAINT = Style(dim=True)
ALERT = Style(bold=True, reverse=True)
DONE, NOW, LEFT = "█", "▓", "░"
"""Parts of a bar: what was there before the step, what the step added, what is still to come."""

HERE = "▸"
"""Before the name of the replica that is shown."""
AGAIN = "↺"
"""Before how many times a request was preempted."""


def letter(request: Request) -> str:
    """The letter of a request, on all replicas: the 27th to arrive has that of the first again."""
    return string.ascii_uppercase[request.source % len(string.ascii_uppercase)]


def badge(request: Request, mark: str = "") -> Text:
    """The letter, or a mark in its place, in the request's colour: readable on light and dark terminals."""
    colour = _COLOURS[request.source % len(_COLOURS)]
    ink = "#FFFFFF" if colour in _WITH_WHITE else "#000000"
    return Text().append(mark or letter(request), Style(color=ink, bgcolor=colour))


def title(text: str, width: int, note: str = "") -> Text:
    """The heading of a panel: a rule that begins with its name."""
    line = Text.assemble(("─ ", FAINT), (f"{text} ", TITLE), f"{note} " if note else "")
    return line.append("─" * max(0, width - line.cell_len), FAINT)


def bar(num_before: int, num_now: int, num_total: int, width: int) -> str:
    """A bar of `width` cells: nothing that is there is without a cell, nothing that is left is hidden."""
    if width <= 0:
        return ""
    if num_total <= 0:
        return LEFT * width
    filled = num_cells(num_before + num_now, num_total, width)
    before = min(num_cells(num_before, num_total, width), filled - 1 if num_now and filled else filled)
    return DONE * before + NOW * (filled - before) + LEFT * (width - filled)


def num_cells(count: int, total: int, width: int) -> int:
    """Cells of `width` that show `count` of `total`: none for 0 alone, all from `total` on."""
    if count <= 0:
        return 0
    if count >= total:
        return width
    return min(max(1, round(width * count / total)), max(1, width - 1))


def fitted(line: Text, width: int) -> Text:
    """The line cut or filled to `width` cells."""
    kept = line.copy()
    kept.truncate(width, overflow="ellipsis", pad=True)
    return kept


def side_by_side(left: list[Text], right: list[Text], widths: tuple[int, int], height: int) -> list[Text]:
    """Two panels with a blank column between, `height` lines of each."""
    blank = [Text()] * height
    pairs = zip((left + blank)[:height], (right + blank)[:height], strict=True)
    return [Text(" ").join([fitted(one, widths[0]), fitted(other, widths[1])]) for one, other in pairs]
