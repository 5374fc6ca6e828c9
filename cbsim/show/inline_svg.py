"""Pictures within the page: SVG that follows light and dark, and says what it shows."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from cbsim.show.markup import Markup, prose, tag
from cbsim.show.style import INK, PALETTE, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FOLLOWING = {INK: "currentColor", PALETTE[-1]: "currentColor", "#e6e6e6": "var(--grid)"}
"""Colours that follow the page's."""


def inline_svg(figure: Figure, key: str, title: str, description: str) -> Markup:
    """A figure with its caption; `key` is unique on the page, `description` tells those who can't see it."""
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_visible(False)
    stream = io.StringIO()
    with styled():
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for color, following in _FOLLOWING.items():
        svg = re.sub(re.escape(color), following, svg, flags=re.IGNORECASE)
    # Several pictures share a page, and so do the names within them.
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{key}-", svg)
    opening = re.match(r"<svg[^>]*>", svg)
    assert opening is not None
    view_box = re.search(r'viewBox="[^"]+"', opening.group())
    assert view_box is not None
    width = float(view_box.group().split()[2])
    told = tag("title", title, id=f"{key}-title") + tag(
        "desc", description.replace("`", ""), id=f"{key}-desc"
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{view_box.group()} role="img" aria-labelledby="{key}-title {key}-desc" '
        f'style="max-width: {width * 4 / 3:.0f}px">'
    )
    drawn = tag(
        "div",
        Markup(head + told + svg[opening.end() :]),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=title,
    )
    return tag("figure", drawn, tag("figcaption", prose(description)))
