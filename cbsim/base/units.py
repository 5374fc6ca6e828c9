"""Units: SI inside (seconds, bytes, tokens, FLOP); constants to convert at the edges, formatters, tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

KILO = 1000
MEGA = 1_000_000
GIGA = 1_000_000_000
TERA = 1_000_000_000_000
KIB = 2**10
MIB = 2**20
GIB = 2**30

MS_PER_S = 1000
US_PER_S = 1_000_000
NS_PER_S = 1_000_000_000
S_PER_HOUR = 3600
S_PER_DAY = 86_400
TICKS_PER_S = 2**36
"""Where durations must add up without remainder they are counted in ticks of 2**-36 s, 15 ps.

A power of two, so that seconds become ticks by one rounding and ticks become seconds exactly; runs of more
than a year are counted in longer ones (`cbsim.results.latency.spans`).
"""


def format_seconds(seconds: float | None) -> str:
    """A duration with three significant digits: `832 us`, `41.2 ms`, `3.07 s`, `1 h 02 min`; `-` for None."""
    if seconds is None:
        return "-"
    size = abs(seconds)
    if size == 0:
        return "0 s"
    if size < 0.9995e-3:
        return f"{_three_digits(seconds * US_PER_S)} us"
    if size < 0.9995:
        return f"{_three_digits(seconds * MS_PER_S)} ms"
    if size < 120:
        return f"{_three_digits(seconds)} s"
    minutes = round(size / 60)
    sign = "-" if seconds < 0 else ""
    if minutes < 60:
        return f"{sign}{minutes} min"
    return f"{sign}{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(num_bytes: float) -> str:
    """A size in binary units: `141 GiB`, `16.1 GiB`, `512 B`."""
    if abs(num_bytes) < 999.5:
        return f"{int(num_bytes)} B"
    size = num_bytes / KIB
    unit = "KiB"
    for larger in ("MiB", "GiB"):
        if abs(size) >= 999.5:
            size, unit = size / KIB, larger
    return f"{_three_digits(size)} {unit}"


def format_count(count: float) -> str:
    """A count that can be read at a glance: `950`, `19,366`, `4.09 M`, `8.03 B`."""
    if abs(count) < MEGA:
        return f"{count:,.0f}"
    is_large = abs(count) >= 999.5 * MEGA
    return f"{_three_digits(count / (GIGA if is_large else MEGA))} {'B' if is_large else 'M'}"


def _three_digits(number: float) -> str:
    size = abs(number)
    if size < 9.995:
        return f"{number:.2f}"
    if size < 99.95:
        return f"{number:.1f}"
    return f"{number:,.0f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells as a table, the first column to the left and figures to the right."""
    aligned = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, aligned, *rows))
