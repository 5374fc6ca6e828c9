"""What a picture says, without a file."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.text import Text


def texts(figure: Figure) -> list[str]:
    """The lines of all texts that a figure shows."""
    figure.draw_without_rendering()
    shown = [each for each in figure.findobj(Text) if isinstance(each, Text) and each.get_visible()]
    return [line for each in shown for line in each.get_text().splitlines()]
