"""The rate of a trace: what swings, what chance does, and the steady stretch in between."""

from __future__ import annotations

import numpy as np
import pytest

from cbsim.workload.swing import NUM_PARTS, swing_of


def arrivals(rates_per_s: list[float], part_s: float = 100.0, seed: int = 0) -> np.ndarray:
    """Poisson arrivals with a rate for each part of a trace."""
    random = np.random.default_rng(seed)
    parts = [
        place * part_s + np.sort(random.uniform(0, part_s, random.poisson(rate * part_s)))
        for place, rate in enumerate(rates_per_s)
    ]
    return np.concatenate(parts)


@pytest.mark.parametrize("seed", range(5))
def test_chance_is_no_swing(seed: int) -> None:
    assert swing_of(arrivals([1.0] * NUM_PARTS, seed=seed)) is None


def test_few_arrivals_or_one_instant_tell_nothing() -> None:
    assert swing_of(np.arange(100.0)) is None
    assert swing_of(np.zeros(10_000)) is None


def test_a_burst_is_told_with_the_longest_steady_stretch() -> None:
    swing = swing_of(arrivals([2.0] * 12 + [10.0] * 3 + [2.0] * 5))
    assert swing is not None
    assert swing.low_per_s == pytest.approx(2.0, rel=0.25)
    assert swing.high_per_s == pytest.approx(10.0, rel=0.15)
    assert swing.steady is not None
    assert swing.steady.start_s == pytest.approx(0.0, abs=1.0)
    assert swing.steady.end_s == pytest.approx(1200.0, abs=10.0)
    assert swing.steady.rate_per_s == pytest.approx(2.0, rel=0.1)


def test_a_rate_that_rises_all_along_has_no_steady_stretch() -> None:
    swing = swing_of(arrivals([3.0 * 1.3**place for place in range(NUM_PARTS)]))
    assert swing is not None
    assert swing.steady is None
