"""Arrivals in milliseconds or since 1970 are noted, with the setting that mends them; others are not."""

import numpy as np
import pytest

from cbsim.workload.trace import clock_notes

GAPS_MS = np.random.default_rng(7).integers(1, 500, 60)
MS = np.cumsum(GAPS_MS).astype(np.float64)


def cbsim_trace(arrivals):
    rows = "".join(f"{arrival!r},10,2\n" for arrival in arrivals.tolist())
    return "arrival_s,num_prompt_tokens,num_output_tokens\n" + rows


@pytest.fixture
def noted(make, tmp_path):
    """The notes on a trace of these arrivals after it was read."""

    def read(arrivals, content=cbsim_trace, **settings):
        (tmp_path / "t.csv").write_text(content(arrivals))
        workload = make(type="trace", path="t.csv", **settings)
        found = [request.arrival_s for request in workload.requests()]
        return workload.notes(), found

    return read


def test_dates_are_noted_with_the_start_that_mends_them(noted):
    (note,), _ = noted(1.7e9 + MS / 1000)
    start_s = 1_700_000_000 + int(MS[0]) // 1000
    assert note == (
        f"t.csv: arrivals begin at {1_700_000_000 + MS[0] / 1000:,.0f} s, as seconds since 1970 would: "
        f"to start there, set workload.start_s={start_s}"
    )
    mended, arrivals = noted(1.7e9 + MS / 1000, start_s=start_s)
    assert mended == []
    assert len(arrivals) == 60
    assert arrivals[0] < 1


@pytest.mark.parametrize(
    ("unit", "ticks_per_s", "named"),
    [("ms", 1e3, "milliseconds"), ("us", 1e6, "microseconds"), ("ns", 1e9, "nanoseconds")],
)
def test_dates_in_smaller_units_are_noted_with_the_unit_too(noted, unit, ticks_per_s, named):
    (note,), _ = noted((1.7e9 + MS / 1000) * ticks_per_s)
    start_s = 1_700_000_000 + int(MS[0] / 1000)
    assert note.endswith(
        f"as {named} since 1970 would: to start there, set workload.time_unit={unit} and "
        f"workload.start_s={start_s}"
    )
    mended, arrivals = noted((1.7e9 + MS / 1000) * ticks_per_s, start_s=start_s, time_unit=unit)
    assert mended == []
    assert arrivals == pytest.approx(1.7e9 + MS / 1000 - start_s, abs=1e-6)


@pytest.mark.parametrize(("unit", "scale"), [("ms", 1), ("us", 1000), ("ns", 1_000_000)])
def test_whole_numbers_far_apart_may_be_milliseconds_or_less(noted, unit, scale):
    arrivals = MS * scale + np.arange(len(MS)) % 7
    (note,), _ = noted(arrivals)
    mean_s = (arrivals[-1] - arrivals[0]) / 59
    assert note == (
        f"t.csv: arrivals are whole numbers, {mean_s:.3g} s apart on average: if they are in {unit}, "
        f"workload.time_unit={unit} makes seconds of them"
    )
    mended, found = noted(arrivals, time_unit=unit)
    assert mended == []
    assert found[-1] == pytest.approx(MS[-1] / 1000, rel=1e-3)
    assert noted(arrivals, rate_scale=1000 * scale)[0] == []


@pytest.mark.parametrize(
    "arrivals",
    [MS / 1000, MS + 0.25, MS[:10], np.arange(60) * 60.0, np.arange(60) * 7.0, MS + 9e8 + 0.5],
    ids=["seconds", "fractions", "few", "one a minute", "seven seconds", "thirty years"],
)
def test_other_arrivals_are_not_noted(noted, arrivals):
    assert noted(arrivals)[0] == []


def test_a_format_that_fixes_its_unit_is_believed(noted):
    def burstgpt(arrivals):
        rows = "".join(f"{arrival!r},10,2\n" for arrival in arrivals.tolist())
        return "Timestamp,Request tokens,Response tokens\n" + rows

    assert noted(MS, burstgpt)[0] == []
    assert len(noted(MS + 1.7e9, burstgpt)[0]) == 1


def test_an_instant_is_no_rate():
    assert clock_notes("t.csv", np.full(60, 3.0), 0.0, unit_may_slip=True) == []
