"""Grids: products, zips, seeds, and mistakes in their form."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.base.errors import ConfigError
from cbsim.config.document import Document
from cbsim.config.sweep_grid import Grid, parse_grid
from cbsim.config.yaml_text import parse_yaml


def grid(text: str, pinned: set[tuple[str | int, ...]] | None = None, seed: int = 0) -> Grid:
    parsed = parse_yaml(text, "f")
    return parse_grid(Document(parsed.value, "f", parsed.lines), pinned or set(), seed)


def values(found: Grid) -> list[tuple[Any, ...]]:
    return [tuple(value.value for value in point) for point in found.points()]


def test_no_sweep_has_no_points() -> None:
    for text in ("a: 1", "sweep:", "sweep: {}"):
        assert (grid(text).num_points, values(grid(text))) == (0, [])


def test_the_first_axis_varies_slowest() -> None:
    found = grid("sweep: {a: [1, 2], b.c: [x, y]}")
    assert values(found) == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    assert [value.key for value in next(found.points())] == ["a", "b.c"]


def test_zip_varies_keys_together_and_replicates_come_last() -> None:
    found = grid("sweep:\n  a: [1, 2]\n  zip: {b: [3, 4], c: [5, 6]}\n  replicates: 2\n", seed=7)
    assert values(found) == [(a, b, c, seed) for a in (1, 2) for b, c in ((3, 5), (4, 6)) for seed in (7, 8)]


def test_a_value_knows_where_it_stands() -> None:
    point = list(grid("sweep:\n  a: [1]\n  zip: {b: [2, 3]}\n").points())[1]
    assert [value.origin for value in point] == [("sweep", "a", 0), ("sweep", "zip", "b", 1)]


def test_pinned_axes_are_dropped_with_a_note() -> None:
    found = grid("sweep: {a.b: [1, 2], zip: {c: [3, 4], d: [5, 6]}, replicates: 3}", {("a", "b"), ("c",)})
    assert values(found) == [(d, seed) for d in (5, 6) for seed in (0, 1, 2)]
    assert found.notes == ("sweep.a.b: dropped, since a.b is set", "sweep.c: dropped, since c is set")
    assert grid("sweep: {replicates: 3}", {("seed",)}).notes == (
        "replicates: dropped, since the seed is set",
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_one_by_one_takes_every_value_once(lengths: list[int]) -> None:
    axes = ", ".join(f"k{i}: {list(range(length))}" for i, length in enumerate(lengths))
    found = grid(f"sweep: {{{axes}}}")
    assert found.num_points == math.prod(lengths) == len(set(values(found)))
    alone = list(found.points_one_by_one())
    assert len(alone) == 1 + sum(length - 1 for length in lengths)
    assert {value for point in alone for value in point} == {
        value for point in found.points() for value in point
    }


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("3", "sweep: got 3; expected a mapping of dotted keys to lists of values"),
        ("{a: 3}", "sweep.a: got 3; expected a list of values"),
        ("{a: []}", "sweep.a: got an empty list; expected a list of values"),
        ("{sweep.a: [1]}", "sweep.sweep.a: a sweep can't vary itself"),
        ("{a: [1], zip: {a: [2]}}", "sweep.zip.a: is swept twice"),
        ("{zip: {a: [1], b: [1, 2]}}", "sweep.zip: lists of unequal length: a has 1, b has 2"),
        (
            "{zip: {}}",
            "sweep.zip: got an empty mapping; expected a mapping of dotted keys to lists of equal length",
        ),
        ("{replicates: 0}", "sweep.replicates: got 0; expected an integer >= 1"),
        ("{replicates: true}", "sweep.replicates: got true; expected an integer >= 1"),
        (
            "{seed: [1], replicates: 2}",
            "sweep.replicates: replicates varies the seed, which has an axis of its own",
        ),
        ("{a: [1], where: 3}", "sweep.where: got 3; expected a comparison, as in 'seed < 3'"),
        (
            "{a: [1], where: [a < 3, a <]}",
            "sweep.where[1]: 'a <' can't be read; expected a comparison, as in 'seed < 3'",
        ),
        ("{replicates: 100001}", "sweep: 100,001 points; expected at most 100,000"),
    ],
)
def test_mistakes_in_form(sweep: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grid(f"sweep: {sweep}")
    assert caught.value.problems == (f"f:1: {message}",)
