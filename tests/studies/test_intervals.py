"""Intervals against tables, theory and naive counts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.studies.intervals import (
    Interval,
    block_bootstrap,
    block_weights,
    bootstrap_interval,
    mean_of,
    quantile_of,
    t_interval,
    t_quantile,
)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize(
    ("confidence", "degrees_of_freedom", "expected"),
    # Student's table (Fisher and Yates, 1963), two-sided.
    [
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 3, 3.182),
        (0.95, 4, 2.776),
        (0.95, 9, 2.262),
        (0.95, 30, 2.042),
        (0.95, 120, 1.980),
        (0.90, 4, 2.132),
        (0.99, 2, 9.925),
        (0.99, 5, 4.032),
        (0.50, 1, 1.000),
    ],
)
def test_t_quantiles_are_those_of_the_table(
    confidence: float, degrees_of_freedom: int, expected: float
) -> None:
    assert t_quantile(confidence, degrees_of_freedom) == pytest.approx(expected, abs=6e-4)


def test_a_t_interval_worked_by_hand() -> None:
    # Mean 5, deviations -2, 0, 2: standard deviation 2, standard error 2 / sqrt(3), t of 2 degrees 4.3027.
    interval = t_interval([3.0, 5.0, 7.0])
    assert interval.estimate == 5
    assert interval.half_width == pytest.approx(4.30265 * 2 / math.sqrt(3), rel=1e-5)
    assert interval.low <= 0.1 <= interval.high
    assert not interval.low <= -0.1


def test_one_replicate_leaves_everything_open() -> None:
    assert t_interval([3.0]) == bootstrap_interval([3.0]) == Interval(3.0, -math.inf, math.inf)


def test_more_bootstrap_replicates_make_no_interval_smaller() -> None:
    few, many = ([float(value) for value in random().normal(10, 2, size)] for size in (40, 4000))
    assert bootstrap_interval(many).half_width == pytest.approx(2 * 1.96, rel=0.05)
    assert t_interval(many).half_width < t_interval(few).half_width / 5
    # Four times the size of the data halves the spread, and must not halve the interval.
    assert bootstrap_interval(many, 4.0).half_width == pytest.approx(2 * bootstrap_interval(many).half_width)


@given(
    values=st.lists(st.integers(-50, 50), min_size=1, max_size=30),
    weights=st.lists(st.integers(0, 4), min_size=30, max_size=30),
    quantile=st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.99, 1.0]),
)
@settings(max_examples=100, deadline=None)
def test_weighted_statistics_are_those_of_the_repeated_values(
    values: list[int], weights: list[int], quantile: float
) -> None:
    ranked = np.sort(np.array(values, dtype=np.float64))
    counts = np.array(weights[: len(values)])
    if not counts.sum():
        counts[0] = 1
    repeated = np.repeat(ranked, counts)
    assert mean_of(ranked, counts) == pytest.approx(repeated.mean())
    expected = repeated[max(0, math.ceil(quantile * len(repeated) - 1e-9) - 1)]
    if quantile > 0:
        assert quantile_of(quantile)(ranked, counts) == expected


@pytest.mark.parametrize("size", [1, 7, 20, 101])
def test_resamples_are_whole_blocks_of_neighbours(size: int) -> None:
    length = math.ceil(size / 20)
    num_blocks = math.ceil(size / length)
    generator = random(1)
    for weights in itertools.islice(block_weights(size, random(1)), 20):
        expected = np.zeros(size, dtype=int)
        for start in generator.integers(0, size, num_blocks):
            for step in range(length):
                expected[(start + step) % size] += 1
        assert (weights == expected).all()


def test_the_bootstrap_covers_the_mean_about_as_often_as_it_says() -> None:
    covered = 0
    for trial in range(40):
        (interval,) = block_bootstrap(random(trial).exponential(3.0, 400), [mean_of], random(1000 + trial))
        covered += interval.low <= 3.0 <= interval.high
    assert 33 <= covered <= 40


def test_neighbours_that_are_alike_make_the_interval_wider() -> None:
    noise = random(3).normal(size=4000)
    alike = np.repeat(noise[::100], 100)
    (independent,), (clustered,) = (block_bootstrap(values, [mean_of], random()) for values in (noise, alike))
    assert clustered.half_width > 5 * independent.half_width


def test_equal_seeds_give_equal_intervals() -> None:
    values = random(5).normal(size=200)
    statistics = [mean_of, quantile_of(0.9)]
    assert block_bootstrap(values, statistics, random()) == block_bootstrap(values, statistics, random())
