"""Arrival processes against the theory of each: mean rate, spread, and independence of how they are drawn.

Bounds are four standard errors of the estimate, computed from the theory, with a fixed seed.
"""

import math
from itertools import islice

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from cbsim.workload.arrivals import Arrivals
from cbsim.workload.streams import Streams

NUM = 100_000
KINDS = {
    "constant": {"rate_per_s": 4.0},
    "poisson": {"rate_per_s": 4.0},
    "gamma": {"rate_per_s": 4.0, "cv": 2.5},
    "ramp": {"rate_per_s": 4.0, "ramp_s": 600.0, "start_share": 0.25, "burstiness": 0.5},
    "on_off": {"rate_per_s": 4.0, "on_s": 3.0, "off_s": 5.0},
    "daily": {"rate_per_s": 4.0, "period_s": 600.0, "amplitude": 0.8, "peak_at_s": 150.0},
    "all_at_once": {},
}


def draw(kind, num=NUM, size=8192, seed=0, **settings):
    process = TypeAdapter(Arrivals).validate_python({"type": kind, **(settings or KINDS[kind])})
    chunks = process.times(Streams(seed, "arrivals"), size)
    found, total = [], 0
    while total < num:
        found.append(next(chunks))
        total += len(found[-1])
    return np.concatenate(found)[:num]


def test_constant_arrivals_are_exact():
    assert draw("constant", num=5).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert draw("constant", rate_per_s=3.0)[-1] == (NUM - 1) / 3.0


def test_poisson_gaps_are_exponential():
    gaps = np.diff(draw("poisson"))
    assert gaps.mean() == pytest.approx(0.25, abs=4 * 0.25 / math.sqrt(NUM))
    # the CV of n exponential gaps has a standard error of 1 / sqrt(n)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=4 / math.sqrt(NUM))
    # P(gap > t) = exp(-4 t)
    for t in (0.1, 0.5, 1.0):
        p = math.exp(-4 * t)
        assert (gaps > t).mean() == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / NUM))


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.5])
def test_gamma_gaps_have_the_rate_and_cv_asked_for(cv):
    gaps = np.diff(draw("gamma", rate_per_s=4.0, cv=cv))
    assert gaps.mean() == pytest.approx(0.25, abs=4 * 0.25 * cv / math.sqrt(NUM))
    # variance of the sample variance of a gamma: sigma^4 (2 + 6 cv^2) / n, as its excess kurtosis is 6 cv^2
    variance = (0.25 * cv) ** 2
    assert gaps.var() == pytest.approx(variance, abs=4 * variance * math.sqrt((2 + 6 * cv**2) / NUM))


def test_burstiness_is_the_shape_as_vllms_benchmark_has_it():
    """`numpy.random.gamma(shape=burstiness, scale=1 / (rate * burstiness))`: a CV of 1 / sqrt(burstiness)."""
    assert (
        draw("gamma", rate_per_s=4.0, burstiness=0.16).tolist()
        == draw("gamma", rate_per_s=4.0, cv=2.5).tolist()
    )
    gaps = np.diff(draw("gamma", rate_per_s=4.0, burstiness=4.0))
    assert gaps.std() / gaps.mean() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("given", [{}, {"cv": 1.0, "burstiness": 1.0}])
def test_one_of_cv_and_burstiness_is_given(given):
    with pytest.raises(ValidationError, match="give one of cv and burstiness"):
        TypeAdapter(Arrivals).validate_python({"type": "gamma", "rate_per_s": 1.0, **given})


@pytest.mark.parametrize("curve", ["linear", "exponential"])
@pytest.mark.parametrize("start_share", [0.1, 1.0, 3.0])
def test_a_ramp_has_the_rate_asked_for_at_each_instant(curve, start_share):
    """Counts in tenths of the ramp, and beyond, against the integral of the rate there."""
    settings = {"rate_per_s": 50.0, "ramp_s": 1000.0, "start_share": start_share, "curve": curve}
    times = draw("ramp", num=200_000, **settings)
    edges = np.arange(0, 1500, 100.0)
    start, end = 50.0 * start_share, 50.0

    def rate(t):
        share = np.minimum(t, 1000.0) / 1000.0
        return start + (end - start) * share if curve == "linear" else start * (end / start) ** share

    fine = (np.arange(0, 1400, 0.1) + 0.05).reshape(14, -1)
    expected = rate(fine).sum(axis=1) * 0.1
    counts, _ = np.histogram(times, edges)
    assert np.abs(counts - expected).max() < 4.5 * math.sqrt(expected.max())
    assert (np.diff(times) >= 0).all()


def test_a_linear_ramp_may_start_at_nothing():
    times = draw("ramp", num=60_000, rate_per_s=100.0, ramp_s=1000.0, burstiness=4.0)
    # Half as many as at the full rate come during the ramp, a quarter of these in its first half.
    assert np.searchsorted(times, 1000.0) == pytest.approx(50_000, rel=0.01)
    assert np.searchsorted(times, 500.0) == pytest.approx(12_500, rel=0.02)
    with pytest.raises(ValidationError, match="exponential ramp from 0"):
        TypeAdapter(Arrivals).validate_python(
            {"type": "ramp", "rate_per_s": 1.0, "ramp_s": 1.0, "curve": "exponential"}
        )


def test_gamma_of_cv_1_is_poisson_in_distribution():
    gamma = np.sort(np.diff(draw("gamma", rate_per_s=4.0, cv=1.0)))
    distance = np.abs((1 - np.exp(-4 * gamma)) - np.arange(1, len(gamma) + 1) / len(gamma)).max()
    assert distance < 1.95 / math.sqrt(len(gamma))  # Kolmogorov-Smirnov, 0.1 %


def test_fixed_bursts_come_only_while_on_and_at_the_mean_rate():
    times = draw("on_off")
    phase = times % 8.0
    assert phase.max() <= 3.0 + 1e-6
    # n arrivals take n / 4 seconds, to within the spread of a Poisson process of the burst's rate
    assert times[-1] == pytest.approx(NUM / 4, rel=4 / math.sqrt(NUM) + 8.0 / (NUM / 4))
    counts = np.bincount((times // 8.0).astype(int))[:-1]  # each burst: Poisson with mean 32
    assert counts.mean() == pytest.approx(32, abs=4 * math.sqrt(32 / len(counts)))
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=4 * math.sqrt(2 / len(counts)))


def test_exponential_bursts_keep_the_mean_rate_and_are_burstier_than_poisson():
    times = draw("on_off", rate_per_s=4.0, on_s=3.0, off_s=5.0, periods="exponential")
    gaps = np.diff(times)
    # interrupted Poisson process (Kuczura, 1973): rate L while on, ends at rate a, silence ends at rate b.
    # E[gap] = (a + b) / (b L);  E[gap^2] = 2 ((a + b)^2 + a L) / (b L)^2
    burst_rate, a, b = 4.0 * 8 / 3, 1 / 3, 1 / 5
    mean = (a + b) / (b * burst_rate)
    second = 2 * ((a + b) ** 2 + a * burst_rate) / (b * burst_rate) ** 2
    assert mean == pytest.approx(0.25)
    cv = math.sqrt(second / mean**2 - 1)
    assert gaps.mean() == pytest.approx(mean, abs=4 * mean * cv / math.sqrt(NUM))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


def test_daily_arrivals_follow_the_cosine():
    times = draw("daily")
    whole = times[times < 600.0 * (times[-1] // 600.0)]
    num_days = times[-1] // 600.0
    counts = np.histogram(whole % 600.0, bins=12, range=(0, 600.0))[0]
    edges = np.linspace(0, 600.0, 13)
    # integral of 4 (1 + 0.8 cos(2 pi (t - 150) / 600)) over each bin
    swing = 0.8 * 600 / (2 * math.pi) * np.diff(np.sin(2 * math.pi * (edges - 150) / 600))
    expected = 4 * (50 + swing) * num_days
    assert (np.abs(counts - expected) < 4.5 * np.sqrt(expected)).all()
    assert counts.argmax() in (2, 3)


def test_all_at_once():
    assert draw("all_at_once", num=3).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", KINDS)
def test_instants_never_fall_and_do_not_depend_on_the_chunk_size(kind):
    times = draw(kind, num=3000)
    assert (np.diff(times) >= 0).all()
    for size in (1, 7, 1000):
        assert np.array_equal(draw(kind, num=3000, size=size), times)


def test_exponential_periods_do_not_depend_on_the_chunk_size():
    settings = {"rate_per_s": 4.0, "on_s": 0.1, "off_s": 0.2, "periods": "exponential"}
    assert np.array_equal(draw("on_off", 3000, 8192, **settings), draw("on_off", 3000, 11, **settings))


def test_seeds_and_purposes_have_streams_of_their_own():
    assert not np.array_equal(draw("poisson", num=10, seed=1), draw("poisson", num=10, seed=2))
    streams = Streams(7, "a")
    assert streams.generator().random() == Streams(7, "a").generator().random()
    drawn = [
        each.generator().random() for each in (streams, streams.child("b"), Streams(7, "b"), Streams(8, "a"))
    ]
    assert len(set(drawn)) == 4


def test_streams_are_endless():
    process = TypeAdapter(Arrivals).validate_python({"type": "poisson", "rate_per_s": 1.0})
    assert len(list(islice(process.times(Streams(0, "x"), 5), 1000))) == 1000
