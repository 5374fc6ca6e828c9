"""Surrogates interpolate what they know, are sure near it and unsure far from it; proposals by seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.config.document import Document
from cbsim.config.tune_space import TuneSpace, parse_space
from cbsim.studies.tune.surrogate import Surrogate, chance_above, expected_gain


def test_a_smooth_figure_is_known_between_its_points() -> None:
    random = np.random.default_rng(0)
    places = random.random((30, 2))
    figures = np.sin(3 * places[:, 0]) + places[:, 1] ** 2
    found = Surrogate(places, figures.tolist(), random)
    inside = random.random((50, 2)) * 0.8 + 0.1
    mean, deviation = found.predict(inside)
    assert np.abs(mean - np.sin(3 * inside[:, 0]) - inside[:, 1] ** 2).max() < 0.1
    _, known = found.predict(places)
    assert known.mean() < deviation.mean()


def test_one_figure_for_all_is_told_everywhere() -> None:
    found = Surrogate(np.array([[0.1], [0.9]]), [7.0, 7.0], np.random.default_rng(0))
    mean, _ = found.predict(np.array([[0.5]]))
    assert mean.tolist() == pytest.approx([7.0])


def test_expected_gain_and_chance_are_those_of_a_normal_figure() -> None:
    mean, deviation = np.array([1.0, 3.0, -50.0]), np.array([1.0, 2.0, 0.5])
    drawn = np.random.default_rng(0).normal(mean, deviation, (400_000, 3))
    assert expected_gain(mean, deviation, 2.0) == pytest.approx(
        np.maximum(drawn - 2.0, 0).mean(axis=0), abs=0.01
    )
    assert chance_above(mean, deviation, 2.0) == pytest.approx((drawn > 2.0).mean(axis=0), abs=0.01)


def space(**keys: Any) -> TuneSpace:
    found = parse_space(Document({"tune": keys}), set())
    assert found is not None
    return found


FORMS = st.sampled_from(
    [
        [1, 8],
        [1, 4096],
        [0.5, 0.9],
        [0.01, 3.0],
        ["x", "y", "z"],
        [1, 2, 4],
        {"from": 0, "to": 1, "step": 0.25},
    ]
)


@settings(max_examples=8, deadline=None)
@given(st.lists(FORMS, min_size=1, max_size=4), st.integers(0, 5))
def test_proposals_lie_in_the_space_and_follow_from_the_seed(forms: list[Any], seed: int) -> None:
    pytest.importorskip("optuna")
    from cbsim.studies.tune.sampler import Sampler

    found = space(**{f"k{number}": form for number, form in enumerate(forms)})
    told: list[list[tuple[Any, ...]]] = []
    for _ in range(2):
        sampler, proposed = Sampler(found, seed), []
        for count in range(14):
            number, values = sampler.propose_by_surrogate() if count % 2 else sampler.propose()
            proposed.append(values)
            gain = sum(d.place(v) for d, v in zip(found.dimensions, values, strict=True))
            sampler.tell(number, gain, gain, 1.0 - gain)
            sampler.end_batch()
        told.append(proposed)
        for values in proposed:
            for dimension, value in zip(found.dimensions, values, strict=True):
                assert 0 <= dimension.place(value) <= 1
                assert dimension.settings(value)
    assert told[0] == told[1]


def test_settings_behind_the_best_on_a_window_are_given_up() -> None:
    pytest.importorskip("optuna")
    from cbsim.studies.tune.sampler import Sampler

    sampler = Sampler(space(a=[1, 100]), 0)
    best, good, behind, missing = (sampler.propose()[0] for _ in range(4))
    # Nobody has run in full: there is nobody to be behind.
    assert not sampler.is_behind(best, 0, 10.0, 10.0, 1.0)
    sampler.tell(best, 8.0, 8.0, 0.5)
    assert not sampler.is_behind(good, 0, 9.6, 9.6, 1.0)
    assert sampler.is_behind(behind, 0, 9.4, 9.4, 1.0)
    assert sampler.is_behind(missing, 0, -0.1, 20.0, -0.1)


def test_while_none_meets_the_slo_those_that_do_on_a_window_go_on() -> None:
    pytest.importorskip("optuna")
    from cbsim.studies.tune.sampler import Sampler

    sampler = Sampler(space(a=[1, 100]), 0)
    best, low, missing = (sampler.propose()[0] for _ in range(3))
    assert not sampler.is_behind(best, 0, 10.0, 10.0, 1.0)
    sampler.tell(best, -0.5, 8.0, -0.5)
    assert not sampler.is_behind(low, 0, 1.0, 1.0, 1.0)
    assert sampler.is_behind(missing, 0, -0.1, 20.0, -0.1)
