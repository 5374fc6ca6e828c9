"""When tokens came out, without a record a token: from the steps' ends and who took part in them."""

from __future__ import annotations

from array import array

import numpy as np

from cbsim.base.column_pieces import pieces
from cbsim.cluster.engine.recorder import Column, Table, as_column
from cbsim.cluster.engine.token_gaps import distinct_gaps
from cbsim.workload.request import Request


class TokenLog:
    """Tokens that come out one by one are seen at once, those of the decode group as segments."""

    def __init__(self) -> None:
        self._gaps = array("d")
        self._segments = Table(("before_s",), ("request", "first", "last"), "i")

    def came_out(self, request: Request, now: float) -> None:
        """A token of a request, outside the decode group."""
        last_s = request.last_token_at_s
        if last_s is None:
            request.first_token_at_s = now
        else:
            gap = now - last_s
            self._gaps.append(gap)
            if not request.max_itl_s >= gap:
                request.max_itl_s = gap
        request.last_token_at_s = now

    def came_out_in_group(self, request: Request, first: int, last: int, now: float) -> None:
        """A token in each of the group steps from `first` to `last`, which ended at `now`."""
        self._segments.append(request.last_token_at_s or 0.0, request.index, first, last)
        request.last_token_at_s = now

    def segments(self) -> tuple[Column, Column, Column]:
        """`(request, first, last)`: who took part in which of the group's steps."""
        segments = self._segments.to_columns()
        return segments["request"], segments["first"], segments["last"]

    def gaps(self, group_end_s: Column) -> Column:
        """All gaps between tokens, as in `Engine.gaps`."""
        segments = self._segments.to_columns()
        first, last = segments["first"], segments["last"]
        # A segment holds the gaps that end in its group steps first + 1 .. last.
        change = np.zeros(len(group_end_s) + 1, dtype=np.int32)
        np.add.at(change, first + 1, 1)
        np.add.at(change, last + 1, -1)
        count = np.cumsum(change, dtype=change.dtype, out=change)[1:-1]
        found = [as_column(self._gaps) + 1j, group_end_s[first] - segments["before_s"] + 1j]
        for piece in pieces(len(count)):
            times, between = count[piece], np.diff(group_end_s[piece.start : piece.stop + 1])
            gap_s, gap_count = distinct_gaps([(between + 1j * times)[times > 0]])
            found.append(gap_s + 1j * gap_count)
        return np.concatenate(found)

    def longest_gaps(self, group_end_s: Column) -> tuple[Column, Column]:
        """`(request, longest gap in the group)` for every segment, seconds."""
        segments = self._segments.to_columns()
        first, last = segments["first"], segments["last"]
        longest = group_end_s[first] - segments["before_s"]
        inner = last > first
        if inner.any():
            between = np.zeros(len(group_end_s))
            np.subtract(group_end_s[1:], group_end_s[:-1], out=between[:-1])
            bounds = np.stack([first[inner], last[inner]], axis=1).ravel()
            longest[inner] = np.maximum(longest[inner], np.maximum.reduceat(between, bounds)[::2])
        return segments["request"], longest
