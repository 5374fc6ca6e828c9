"""Lanes: which slot each of many spans takes, so that no two of one slot overlap."""

from __future__ import annotations

import heapq
from collections.abc import Iterable


def assign_lanes(spans: Iterable[tuple[float, float]]) -> list[int]:
    """The lane of each span `(start, end)`, given in order of start: the lowest that is free by then."""
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    num_lanes = 0
    lanes = []
    for start, end in spans:
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane, num_lanes = num_lanes, num_lanes + 1
        heapq.heappush(busy, (end, lane))
        lanes.append(lane)
    return lanes
