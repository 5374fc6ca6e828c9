"""CompiledDecodes: `DecodeTable` for one launch at a time, and for steps in a row, with the same bits."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cbsim.cost.attention_grid import DecodeTable, Floats, Table
from cbsim.cost.counted import CountTables

DecodeSeconds = Callable[[int, int, int], float]
"""Of decodes, their context in all and the longest of them."""
DecodesSeconds = Callable[[int, int, int, int], list[float]]
"""Of the same and a number of steps in a row."""


class CompiledAxis:
    """Where sizes lie among the knots of an axis, by whole size from 0 to the last knot."""

    def __init__(self, table: Table, number: int) -> None:
        knots = np.array(table.axes[number])
        sizes = np.arange(int(knots[-1]) + 1)
        places = np.clip(np.searchsorted(knots, sizes, side="right") - 1, 0, len(knots) - 2)
        widths = np.diff(knots)
        self.low, self.high = int(knots[0]), int(knots[-1])
        self.knots: list[float] = knots.tolist()
        self.widths: list[float] = widths.tolist()
        self.places: list[int] = places.tolist()
        self.weights: list[float] = ((sizes - knots[places]) / widths[places]).tolist()
        self._nowhere = len(table.seconds)

    def starts(self, stride: int) -> list[int]:
        """Where the knot below lies in a flat table, by size; beyond its end for sizes below the first."""
        below = [self._nowhere] * self.low
        return below + [place * stride for place in self.places[self.low :]]

    def cells(self) -> list[tuple[int, float, float]]:
        """The knot below, its number first, and the width of the cell, by whole size below the last knot."""
        found = list(zip(range(len(self.widths)), self.knots, self.widths, strict=False))
        below = [(self._nowhere, 0.0, 1.0)] * self.low
        return below + [found[place] for place in self.places[self.low : self.high]]


class Line(NamedTuple):
    """What a number of decodes decides."""

    heights: list[float]
    """Seconds at the knots of their mean context."""
    near: float
    """The nearest number in the table."""
    skew_s: float
    """For each token that the longest context is beyond the mean."""


class CompiledDecodes(dict[int, Line]):
    """Lines by number of decodes, made when first asked for."""

    def __init__(self, decode: DecodeTable) -> None:
        super().__init__()
        self.decode = decode
        self.means = CompiledAxis(decode.table, 0)
        self.attention_s = self._attention()
        """Seconds of one layer's attention for decodes alone, at least one."""

    def __missing__(self, num_decodes: int) -> Line:
        near, heights = folded(self.decode.table, num_decodes)
        self[num_decodes] = line = Line(heights, near, float(self.decode.skew.factor(num_decodes)))
        return line

    def _attention(self) -> DecodeSeconds:
        means, lines, more_s = self.means, self, self.decode.slopes.decodes_s
        knots, widths, places, low, high = means.knots, means.widths, means.places, means.low, means.high

        def attention_s(num_decodes: int, context: int, max_context: int) -> float:
            heights, near_decodes, skew_s = lines[num_decodes]
            mean = context / num_decodes
            if low <= mean <= high:
                place = places[context // num_decodes]
                height_s = heights[place]
                seconds = height_s + (mean - knots[place]) / widths[place] * (heights[place + 1] - height_s)
                if near_decodes != num_decodes:
                    seconds += more_s(num_decodes, mean) - more_s(near_decodes, mean)
            else:
                # As the table is read at its last knot: all the way from the one before, to the last bit.
                last_s = heights[-2] + (heights[-1] - heights[-2])
                near, seconds = (low, heights[0]) if mean < low else (high, last_s)
                seconds += more_s(num_decodes, mean) - more_s(near_decodes, near)
            if max_context > mean:
                return seconds + skew_s * (max_context - mean)
            return seconds

        return attention_s

    def step(self, tables: CountTables) -> DecodeSeconds:
        """Seconds of a whole step of decodes alone."""
        counted, counted_at, layers = tables.counted, tables.counted_at, tables.layers
        attention_s = self.attention_s

        def decode_s(num_decodes: int, context: int, max_context: int) -> float:
            try:
                base_s, _, _, added_s, least_s = counted[num_decodes]
            except IndexError:
                base_s, _, _, added_s, least_s = counted_at(num_decodes)
            seconds = base_s + layers * attention_s(num_decodes, context, max_context) + added_s
            return seconds if seconds > least_s else least_s

        return decode_s

    def steps(self, tables: CountTables) -> DecodesSeconds:
        """Seconds of so many such steps in a row, each with one token more of context for every decode."""
        counted, layers, decode_s, lines = tables.counted, tables.layers, self.step(tables), self
        means, places, last = self.means, self.means.places, len(self.means.widths) - 1

        def decodes_s(num_decodes: int, context: int, max_context: int, num_steps: int) -> list[float]:
            heights, near_decodes, skew_s = lines[num_decodes]
            # Floor and quotient of the same numbers are quicker by floats, and the same.
            tokens, more, floor = float(context), float(num_decodes), context // num_decodes
            end = floor + num_steps
            if near_decodes != num_decodes or floor < means.low or end > means.high:
                contexts = range(context, context + num_decodes * num_steps, num_decodes)
                return [
                    decode_s(num_decodes, total, max_context + step) for step, total in enumerate(contexts)
                ]
            base_s, _, _, added_s, least_s = counted[num_decodes]
            series: list[float] = []
            while floor < end:
                place = places[floor]
                knot, width, height_s = means.knots[place], means.widths[place], heights[place]
                rise_s = heights[place + 1] - height_s
                first, floor = floor, end if place == last else min(end, int(means.knots[place + 1]))
                if not skew_s:
                    for _ in range(first, floor):
                        seconds = height_s + (tokens / more - knot) / width * rise_s
                        tokens += more
                        series.append(base_s + layers * seconds + added_s)
                    continue
                for _ in range(first, floor):
                    mean = tokens / more
                    seconds = (
                        height_s + (mean - knot) / width * rise_s + skew_s * max(max_context - mean, 0.0)
                    )
                    tokens += more
                    max_context += 1
                    series.append(base_s + layers * seconds + added_s)
            if base_s + added_s < least_s:
                return [seconds if seconds > least_s else least_s for seconds in series]
            return series

        return decodes_s


def folded(table: Table, num_decodes: int) -> tuple[float, list[float]]:
    """The number of decodes nearest to a table's, and the table for it: its last axis folded, flat.

    `Table.at` folds that axis first too.
    """
    knots = table.axes[-1]
    near = min(max(float(num_decodes), knots[0]), knots[-1])
    place = min(bisect_right(knots, near), len(knots) - 1) - 1
    weight = (near - knots[place]) / (knots[place + 1] - knots[place])
    low: Floats = table.values[..., place]
    heights: Floats = low + weight * (table.values[..., place + 1] - low)
    return near, heights.ravel().tolist()
