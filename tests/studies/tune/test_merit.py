"""What makes settings good: within the SLO first, then the objective; the front; costs."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbsim.results.slo import Slo
from cbsim.studies.tune.merit import GPU_HOURS, Aim

AIM = Aim(Slo.of({"ttft_s": 1.0, "e2e_s": {"p95": 4.0}}))


def run(
    goodput: float, *, kept: float = 1.0, e2e_p95: float = 2.0, hours: float = 1.0, **more: Any
) -> dict[str, Any]:
    figures = {
        "num_requests": 100,
        "num_finished": 100,
        "goodput_per_s": goodput,
        "request_throughput_per_s": goodput,
        "slo_attainment": kept,
        "ttft_s.p99": 0.5,
        "e2e_s.p95": e2e_p95,
        "e2e_s.p99": 3.0,
        GPU_HOURS: hours,
    }
    return figures | more


def test_what_meets_the_slo_goes_before_all_that_does_not() -> None:
    met, far, near = run(1.0), run(9.0, e2e_p95=8.0), run(9.0, kept=0.98)
    assert AIM.score(met) == 1.0
    assert AIM.score(far) == -1.0
    assert AIM.score(near) == pytest.approx(-0.01 / 0.99)
    assert AIM.best([far, near, met]) == 2
    assert AIM.best([far, near]) == 1
    assert AIM.score(run(0.0)) == 0.0


def test_the_objective_decides_among_those() -> None:
    fast, cheap = run(9.0, hours=3.0), run(5.0, hours=1.0, **{"e2e_s.p99": 2.0})
    assert AIM.best([fast, cheap]) == 0
    assert Aim(AIM.slo, "cost").best([fast, cheap]) == 1
    assert Aim(AIM.slo, "latency").best([fast, cheap]) == 1


def test_of_those_that_reach_the_same_the_cheapest_and_then_the_quickest_is_best() -> None:
    first, cheaper, quicker = run(10.0), run(9.98, hours=0.8), run(9.97, hours=0.801, **{"e2e_s.p99": 2.9})
    assert AIM.best([first, cheaper]) == 1
    assert AIM.best([first, cheaper, quicker]) == 2
    assert AIM.best([first, cheaper, quicker, run(10.2)]) == 3


def test_without_limits_on_each_request_throughput_is_what_is_served() -> None:
    aim = Aim(Slo.of({"ttft_s": {"p99": 1.0}}))
    figures = run(0.0) | {"goodput_per_s": None, "request_throughput_per_s": 7.0}
    assert aim.gain == "request_throughput_per_s"
    assert aim.score(figures) == 7.0
    assert Aim(Slo()).score(figures) == 7.0


def test_headroom_is_the_nearest_limit_over_its_figure() -> None:
    assert AIM.headroom(run(1.0)) == pytest.approx(math.log(2))
    assert AIM.headroom(run(1.0, e2e_p95=8.0)) == pytest.approx(-math.log(2))
    # A share that is missed tells that nothing is left, whatever the p99.
    assert AIM.headroom(run(1.0, kept=0.5)) == -0.01
    assert AIM.headroom(run(1.0, e2e_p95=4e9)) == AIM.headroom(run(1.0, e2e_p95=4e8))
    assert Aim(Slo()).headroom(run(1.0)) > 0


RUNS = st.lists(
    st.builds(
        run,
        st.floats(0.1, 100),
        kept=st.sampled_from([1.0, 0.99, 0.5]),
        e2e_p95=st.floats(0.1, 8),
        hours=st.floats(0.1, 10),
    ),
    min_size=1,
    max_size=12,
)


@given(RUNS, st.sampled_from(["goodput", "cost", "latency"]))
def test_nothing_beats_the_front_and_the_best_meets_what_can_be_met(runs: list[Any], objective: Any) -> None:
    aim = Aim(AIM.slo, objective)
    met = [figures for figures in runs if not aim.misses(figures)]
    best = runs[aim.best(runs)]
    assert (best in met) == bool(met)
    front = [runs[place] for place in aim.front(runs)]
    assert bool(front) == bool(met)
    assert all(figures in met for figures in front)
    for figures in met:
        assert any(
            each[aim.gain] >= figures[aim.gain] * 0.99 and each[aim.cost] <= figures[aim.cost] * 1.0101
            for each in front
        )
    costs = [each[aim.cost] for each in front]
    assert all(first < second * 1.005 for first, second in pairwise(costs))
