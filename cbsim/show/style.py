"""How every picture looks, and how a figure becomes a PNG and an SVG that are equal to the byte each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import NullFormatter, PercentFormatter

from cbsim.base.paths import written_whole
from cbsim.results.output import PICTURE_MAKER

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours for colour-blind readers (jfly.uni-koeln.de/color, 2008), dark ones first."""
DASHES = ("-", "--", "-.", ":")
"""Tell runs apart where colours have come round."""
INK = "#222222"
FAINT = "#B8B8B8"
_CHARACTERS_PER_INCH = 13
_KEY_CHARACTERS = 8
"""How wide texts of a legend are, and the lines before them."""
_DPI = 150


def styled() -> AbstractContextManager[None]:
    """A context in which figures are made and saved in this style, whatever the user's matplotlibrc says."""
    return mpl.rc_context(fname=Path(__file__).with_name("pictures.mplstyle"))


@contextmanager
def drawing(width_in: float, height_in: float) -> Iterator[Figure]:
    """A figure of a size in inches that is drawn, within this context, in this style, without a window.

    At its end everything has its place, in whichever format the figure is then saved.
    """
    with styled():
        figure = Figure(figsize=(width_in, height_in), dpi=_DPI)
        FigureCanvasAgg(figure)
        yield figure
        if figure.axes:
            ConstrainedLayoutEngine().execute(figure)


def line_style(place: int) -> dict[str, str]:
    """Colour and dashes of the run at a place, different for the first 28."""
    round_, color = divmod(place, len(PALETTE))
    return {"color": PALETTE[color], "linestyle": DASHES[round_ % len(DASHES)]}


def label(
    axes: Axes, text: str, at: tuple[Any, Any], offset: tuple[float, float] = (0, 6), **style: Any
) -> None:
    """A small text `offset` points (1/72 inch) from a place, centred unless `style` says otherwise."""
    told: dict[str, Any] = {"ha": "center", "fontsize": 8} | style
    axes.annotate(text, at, offset, textcoords="offset points", **told)


def mark_limit(axes: Axes, limit: float, text: str, height: float = 0.02) -> bool:
    """A line at a limit along x with its text at a height, a share of the panel's; whether it could be drawn.

    Where the limit lies beyond the axis, an arrow points to it instead.
    """
    first, last = axes.get_xlim()
    if not first <= limit <= last:
        shown, place, side = (f"{text} →", 0.99, "right") if limit > last else (f"← {text}", 0.01, "left")
        axes.text(place, height, shown, transform=axes.transAxes, ha=side, fontsize=8)
        return False
    axes.axvline(limit, color=INK, linewidth=1, linestyle=(0, (1, 2)))
    is_near_end = axes.transAxes.inverted().transform(axes.transData.transform((limit, 0)))[0] > 0.8
    where: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "ha": "right" if is_near_end else "left"}
    label(axes, text, (limit, height), (-4 if is_near_end else 4, 0), **where)
    return True


def show_percent(axis: Axis) -> None:
    """Write an axis of shares as percentages."""
    axis.set_major_formatter(PercentFormatter(xmax=1))


def show_plain(axis: Axis) -> None:
    """Write the ticks of a logarithmic axis as plain numbers, minor ones not at all."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def head(figure: Figure, title: str, caption: str, axes: Axes | None = None) -> None:
    """A title with, from the labelled lines of `axes`, one legend for all panels; a caption at the foot."""
    handles, labels = axes.get_legend_handles_labels() if axes else ([], [])
    # A line of the legend that is too long would be cut off at the figure's edge.
    longest = max(map(len, labels), default=1) + _KEY_CHARACTERS
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=max(1, min(len(labels), 6, int(_CHARACTERS_PER_INCH * figure.get_figwidth() / longest))),
        borderaxespad=0.2,
        title=title,
        title_fontproperties={"size": 12, "weight": "bold"},
        alignment="left",
    )
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8)


def save_figure(figure: Figure, path: str | Path) -> list[Path]:
    """Write `path` as PNG and SVG, whichever suffix it has, equal figures to equal bytes; returns both paths.

    Raises `CbsimError` if the folder can't be written.
    """
    written = []
    made_by = {".png": {"Software": PICTURE_MAKER}, ".svg": {"Date": None, "Creator": PICTURE_MAKER}}
    for suffix, metadata in made_by.items():
        target = Path(path).with_suffix(suffix)
        with written_whole(target) as partial, styled():
            figure.savefig(partial, format=suffix[1:], dpi=_DPI, metadata=metadata)
        written.append(target)
    return written


def save_figures(figures: Mapping[str, Figure], folder: Path) -> list[str]:
    """Save figures by the names of their files; returns the names of the PNG files."""
    return [save_figure(figure, folder / stem)[0].name for stem, figure in figures.items()]
