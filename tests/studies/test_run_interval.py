"""The interval of a run: what its latencies would be with other step times, which is what it must hold."""

from __future__ import annotations

from typing import Any

import pytest

import cbsim
from cbsim.cost.run_errors import FRONT_S, IMPORTED, MEASURED, profile_error, roofline_error, together
from cbsim.show.reader_tables import run_answer

WORKLOAD = {
    "type": "synthetic",
    "num_requests": 120,
    "arrivals": {"type": "poisson", "rate_per_s": 6.0},
    "prompt_tokens": {"type": "uniform", "min": 50, "max": 900},
    "output_tokens": {"type": "uniform", "min": 2, "max": 80},
}
PROFILE = {"type": "profile", "profile": "h200/llama-3-8b"}


def run(**changes: Any) -> cbsim.Result:
    settings = {"model": "llama-3-8b", "gpu": "h200", "workload": WORKLOAD, "cost_model": PROFILE}
    settings |= {"scheduler": {"type": "vllm", "max_num_seqs": 16}, "kv_cache": {"num_blocks": 3000}}
    return cbsim.run(settings | changes)


APART = {
    "pools": [{"name": "prompts", "role": "prefill"}, {"name": "answers", "role": "decode"}],
    "link": {"bandwidth_gb_s": 2.0, "latency_s": 0.01},
}


CHANGING = {
    "pools": [{"name": "all", "count": 2}],
    "router": {"type": "least_expected_ttft", "refresh_s": 0.3},
    "faults": [{"pool": "all", "replica": 1, "at_s": 1.0, "repair_s": 2.0}],
    "autoscale": {"type": "ttft", "target": 0.2, "min": 1, "max": 4, "interval_s": 0.5, "provision_s": 0.5},
    "clients": {"timeout_s": 9.0, "max_retries": 2},
}


@pytest.mark.parametrize(
    ("rate_per_s", "cluster"), [(6.0, None), (60.0, None), (20.0, APART), (30.0, CHANGING)]
)
def test_bounds_are_those_of_longer_and_shorter_steps(rate_per_s, cluster):
    """As if simulated with such steps; the upper bound of TTFT and E2E has the front end on top."""
    workload = WORKLOAD | {"arrivals": {"type": "poisson", "rate_per_s": rate_per_s}}
    factors = {"low": 1 / 1.1, "now": 1.0, "high": 1.1}
    runs = {
        name: run(
            gpu="l40s",
            workload=workload,
            cluster=cluster,
            cost_model={
                "type": "roofline",
                "memory_efficiency": 0.5 / factor,
                "compute_efficiency": 0.5 / factor,
                "all_reduce_latency_s": 0.0,
                "step_error_pct": 10.0,
            },
        ).summary
        for name, factor in factors.items()
    }
    interval = runs["now"]["interval"]
    assert interval["basis"] == "estimated"
    assert interval["num_requests"] == 120
    for latency, front_s in (("ttft_s", FRONT_S), ("tpot_s", 0.0), ("e2e_s", FRONT_S)):
        for part in ("mean", "p50", "p90", "p99"):
            found = [each[latency][part] for each in runs.values()]
            expected = [min(found), max(found) + front_s]
            assert interval[latency][part] == pytest.approx(expected, rel=1e-6)


def test_queues_multiply_the_error_of_steps():
    calm, busy = (
        run(workload=WORKLOAD | {"arrivals": {"type": "poisson", "rate_per_s": rate}}).summary
        for rate in (2.0, 60.0)
    )
    grew = [
        (each["interval"]["ttft_s"]["mean"][1] - FRONT_S) / each["ttft_s"]["mean"] for each in (calm, busy)
    ]
    assert 1.1 < grew[0] < 1.3
    assert grew[1] > grew[0] + 0.02


def test_long_runs_are_known_by_their_beginning(monkeypatch):
    """Deterministic, and bounded: so many tokens, whatever the run's length."""
    monkeypatch.setattr("cbsim.studies.run.MAX_TOKENS_INTERPRETED", 10_000)
    result = run(workload=WORKLOAD | {"num_requests": 500}, engine="interpreted")
    interval = result.summary["interval"]
    tokens = result.requests["num_output_tokens"].cumsum()
    assert interval["num_requests"] == int((tokens <= 10_000).sum())
    low_s, high_s = interval["ttft_s"]["mean"]
    assert low_s < result.summary["ttft_s"]["mean"] < high_s


def test_what_is_known_is_told():
    result = run()
    pct = IMPORTED[False, False].pct
    assert result.summary["interval"]["step_error_pct"] == pct
    assert any(note.startswith(f"step times are imported: within {pct}% in 9 of 10") for note in result.notes)
    (sentence,) = run_answer(result)
    assert sentence.startswith("Step times are imported: in 90% of cases means are TTFT 0.")


def test_a_percentage_of_ones_own_and_none():
    own = run(cost_model=PROFILE | {"step_error_pct": 3.0}).summary["interval"]
    assert (own["step_error_pct"], own["evidence"]) == (3.0, "cost_model.step_error_pct")
    for cost in (
        PROFILE | {"step_error_pct": 0},
        PROFILE | {"uncertainty": True},
        {"type": "constant", "step_s": 0.01},
    ):
        result = run(cost_model=cost)
        assert "interval" not in result.summary
        assert run_answer(result) == []
        assert not any(note.startswith("step times are") for note in result.notes)


def test_closed_loops_and_stopped_runs_have_intervals_too():
    closed = WORKLOAD | {"concurrency": 8, "think_time_s": 0.5, "think_time_cv": 1.0}
    for result in (run(workload=closed), run(stop_at_s=8.0)):
        low_s, high_s = result.summary["interval"]["e2e_s"]["mean"]
        assert low_s < result.summary["e2e_s"]["mean"] < high_s


def test_what_a_profiles_errors_are():
    known = {"has_collectives": False, "num_gpus": 1, "has_experts": False}
    assert profile_error({}, **known)[:2] == ("imported", IMPORTED[False, False].pct)
    mixed = {"held_out": {"mixed": {}}}
    assert profile_error(mixed, **known)[:2] == ("measured", MEASURED.pct)
    steps = {"whole_steps": {"step": {"p90_pct": 50.0}}}
    assert profile_error(mixed | steps, **known).pct == 50.0
    several = known | {"num_gpus": 2}
    assert (
        profile_error(mixed, **several).pct > profile_error(mixed, **several | {"has_collectives": True}).pct
    )
    assert "all-reduces were not timed" in profile_error(mixed, **several).evidence
    assert roofline_error(45.0, "h100").pct > 45.0
    assert together(3.0) == pytest.approx(3.0)
    assert together(3.0, 4.0) == pytest.approx(5.0, rel=0.02)


def test_the_front_end_is_the_clients_not_the_engines():
    """Every client waits so much longer; the engine's own times stay, and a known front end is no error."""
    plain, fronted = run(), run(front_end_s=0.006)
    for latency, more_s in (("ttft_s", 0.006), ("e2e_s", 0.006), ("tpot_s", 0.0), ("queue_s", 0.0)):
        for part in ("mean", "p50", "p99"):
            told = plain.summary[latency][part] + more_s
            assert fronted.summary[latency][part] == pytest.approx(told, abs=1e-12)
    assert plain.steps.equals(fronted.steps)
    assert plain.summary["parts"] == fronted.summary["parts"]
    assert any("TTFT and E2E have 6.00 ms of the front end in them" in note for note in fronted.notes)
    bounds = [each.summary["interval"]["ttft_s"]["mean"] for each in (plain, fronted)]
    assert bounds[0][1] == pytest.approx(bounds[1][1], abs=1e-9)


def test_clients_of_a_closed_loop_wait_for_the_front_end():
    """One client, one request after the other: each takes so much longer."""
    closed = WORKLOAD | {"concurrency": 1, "num_requests": 10}
    plain, fronted = (run(workload=closed, front_end_s=each).requests for each in (0.0, 0.5))
    moved = fronted["arrival_s"] - plain["arrival_s"]
    assert moved.tolist() == pytest.approx([0.5 * number for number in range(10)])
