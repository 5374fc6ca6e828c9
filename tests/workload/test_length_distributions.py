"""Length distributions against their theory, and what their settings refuse."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from cbsim.workload.length_distributions import Lengths, LognormalLengths
from cbsim.workload.streams import Streams
from cbsim.workload.trace_reader import read_trace

NUM = 100_000


def parse(**settings_):
    return TypeAdapter(Lengths).validate_python(settings_)


def draw(num=NUM, size=None, side="prompt", folder=None, **settings_):
    sampler = parse(**settings_).sampler(Streams(0, "lengths"), lambda path: read_trace(folder / path), side)
    return np.concatenate([sampler(min(size or num, num - i)) for i in range(0, num, size or num)])


def test_fixed():
    assert draw(num=3, type="fixed", value=7).tolist() == [7, 7, 7]


def test_uniform_reaches_both_ends_equally_often():
    counts = np.bincount(draw(type="uniform", min=3, max=7))[3:]
    assert len(counts) == 5
    assert (np.abs(counts - NUM / 5) < 4 * math.sqrt(NUM * 0.2 * 0.8)).all()


@pytest.mark.parametrize(
    ("given_", "mu", "sigma"),
    [
        ({"median": 1000.0, "sigma": 0.8}, math.log(1000), 0.8),
        ({"median": 1000.0, "p90": 2000.0}, math.log(1000), math.log(2) / 1.2815515655446004),
        ({"mean": 1000.0, "sigma": 0.8}, math.log(1000) - 0.32, 0.8),
    ],
)
def test_lognormal_has_the_moments_asked_for(given_, mu, sigma):
    assert parse(type="lognormal", **given_).log_mean_and_sigma == pytest.approx((mu, sigma))
    logs = np.log(draw(type="lognormal", **given_))
    assert logs.mean() == pytest.approx(mu, abs=4 * sigma / math.sqrt(NUM) + 1e-3)
    assert logs.std() == pytest.approx(sigma, abs=4 * sigma / math.sqrt(2 * NUM) + 1e-3)


@given(mean=st.floats(1.0, 1e5), ratio=st.floats(1.0, 2.27))
def test_a_lognormal_by_mean_and_p90_has_both(mean, ratio):
    mu, sigma = LognormalLengths(type="lognormal", mean=mean, p90=mean * ratio).log_mean_and_sigma
    assert sigma <= 1.2815515655446004  # the narrower of the two that fit
    assert math.exp(mu + sigma**2 / 2) == pytest.approx(mean)
    assert math.exp(mu + 1.2815515655446004 * sigma) == pytest.approx(mean * ratio)


def test_lognormal_is_clipped():
    lengths = draw(type="lognormal", median=100.0, sigma=1.0, min=50, max=200)
    assert (lengths.min(), lengths.max()) == (50, 200)
    # ln 2 standard deviations above the median
    share = 0.5 * math.erfc(math.log(2) / math.sqrt(2))
    assert (lengths == 200).mean() == pytest.approx(share, abs=4 * math.sqrt(share / NUM) + 2e-3)


def test_short_lognormal_lengths_are_never_0():
    assert draw(type="lognormal", median=0.5, sigma=1.0).min() == 1


def test_empirical_values_occur_by_weight():
    lengths = draw(type="empirical", values=[5, 9, 700], weights=[1, 0, 3])
    assert set(lengths.tolist()) == {5, 700}
    assert (lengths == 700).mean() == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / NUM))


def test_a_mixture_draws_each_part_by_weight():
    parts = [{"type": "fixed", "value": 1}, {"type": "uniform", "min": 10, "max": 11}]
    lengths = draw(type="mixture", parts=parts, weights=[3, 1])
    assert set(lengths.tolist()) == {1, 10, 11}
    assert (lengths == 1).mean() == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / NUM))


def test_lengths_of_a_trace_keep_prompt_and_answer_together(tmp_path):
    rows = [(i + 1, 1000 - i) for i in range(50)]
    text = "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(f"0,{p},{o}\n" for p, o in rows)
    (tmp_path / "v.csv").write_text(text)
    prompts, outputs = (
        draw(2000, type="empirical", path="v.csv", side=side, folder=tmp_path)
        for side in ("prompt", "output")
    )
    assert set(zip(prompts.tolist(), outputs.tolist(), strict=True)) == set(rows)


EVERY = [
    {"type": "fixed", "value": 7},
    {"type": "uniform", "min": 1, "max": 5000},
    {"type": "lognormal", "median": 300.0, "p90": 900.0},
    {"type": "empirical", "values": [1, 2, 3], "weights": [1, 2, 3]},
    {"type": "mixture", "parts": [{"type": "uniform", "min": 1, "max": 9}] * 2, "weights": [1, 1]},
]


@pytest.mark.parametrize("settings_", EVERY, ids=lambda each: each["type"])
@settings(max_examples=20)
@given(size=st.integers(1, 600))
def test_how_many_at_a_time_does_not_matter(settings_, size):
    assert np.array_equal(draw(num=600, size=size, **settings_), draw(num=600, **settings_))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"type": "uniform", "min": 5, "max": 4}, r"max: got 4; allowed: min \(5\) or more"),
        ({"type": "lognormal", "sigma": 1.0}, "give one of median and mean"),
        ({"type": "lognormal", "mean": 5.0, "median": 5.0, "sigma": 1.0}, "give one of median and mean"),
        ({"type": "lognormal", "mean": 5.0}, "give one of sigma and p90"),
        ({"type": "lognormal", "median": 5.0, "p90": 4.0}, r"p90: got 4; allowed: at least the median \(5\)"),
        (
            {"type": "lognormal", "mean": 5.0, "p90": 50.0},
            r"p90: got 50; allowed: at least the mean \(5\) and at most 2.273 times it",
        ),
        ({"type": "lognormal", "mean": 5.0, "sigma": 1.0, "min": 9, "max": 8}, "max: got 8"),
        ({"type": "empirical"}, "give one of values and path"),
        ({"type": "empirical", "values": [1], "path": "x"}, "give one of values and path"),
        (
            {"type": "empirical", "values": [1, 2], "weights": [1.0]},
            "weights: got 1; allowed: one for each value, 2",
        ),
        ({"type": "empirical", "values": [1], "weights": [0.0]}, "got 0 for all"),
        ({"type": "empirical", "values": [0]}, "greater than or equal to 1"),
        ({"type": "mixture", "parts": [{"type": "fixed", "value": 1}], "weights": []}, "weights: got 0"),
        ({"type": "normal"}, "lognormal"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValidationError, match=message):
        parse(**wrong)
