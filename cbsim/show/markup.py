"""Markup: HTML built from nested calls, everything escaped that isn't markup already."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_VOID = {"input", "meta"}


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
