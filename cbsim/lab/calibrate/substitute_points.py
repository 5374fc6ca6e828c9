"""Stand-ins: launches of chunks and decodes together for those alone, where only the former were timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from cbsim.lab.calibrate.point import MIN_POINTS, Op, Point

SENTENCES: dict[Op, str] = {
    "prefill": "chunks alone were hardly timed: launches with the least decode context stand for them, "
    "which makes steps without decodes too long",
    "decode": "decodes alone were hardly timed: launches with the smallest chunks stand for them, which "
    "makes steps of decodes alone too long, by a third and more",
}


def with_stand_ins(points: Sequence[Point]) -> tuple[list[Point], list[str]]:
    """The points, with stand-ins for chunks alone and decodes alone if too few were timed, a sentence each.

    A fused launch costs more than its larger part alone, so that pure steps come out dear rather than cheap.
    """
    mixed = [point for point in points if point.op == "mixed" and point.split == "fit"]
    counts = Counter(point.op for point in points if point.split == "fit")
    added: list[Point] = []
    sentences = []
    for op, sentence in SENTENCES.items():
        if mixed and counts[op] < MIN_POINTS[op]:
            added += [_alone(point, op) for point in _least(mixed, op)]
            sentences.append(sentence)
    return [*points, *added], sentences


def _least(mixed: Sequence[Point], op: Op) -> list[Point]:
    """Of launches equal but for the other part, those with the least of it."""
    best: dict[object, Point] = {}
    for point in sorted(mixed, key=lambda point: _other_size(point, op)):
        best.setdefault(_own_part(point, op), point)
    least = min(_other_size(point, op) for point in mixed)
    return [
        point
        for number, point in enumerate(best.values())
        if number < 2 * MIN_POINTS[op] or _other_size(point, op) <= 2 * least
    ]


def _own_part(point: Point, op: Op) -> object:
    return point.chunks if op == "prefill" else (point.num_decodes, point.decode_context)


def _other_size(point: Point, op: Op) -> int:
    if op == "prefill":
        return point.decode_context
    return sum(tokens + context for tokens, context in point.chunks)


def _alone(point: Point, op: Op) -> Point:
    if op == "prefill":
        return replace(point, op=op, num_decodes=0, decode_context=0, max_decode_context=0)
    return replace(point, op=op, chunks=())
