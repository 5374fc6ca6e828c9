"""Turns that wait for the answer before them: as files and generators have them, and as they run."""

import json

import pytest

from cbsim.base.errors import ConfigError, WorkloadError
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import run
from cbsim.workload.convert import convert

AIPERF = [
    {"session_id": "a", "timestamp": 0, "input_length": 300, "output_length": 40},
    {"session_id": "a", "delay": 2000, "input_length": 150, "output_length": 20},
    {"session_id": "b", "timestamp": 1000, "input_length": 30, "output_length": 10},
    {"session_id": "a", "delay": 500, "input_length": 50, "output_length": 5},
]
SESSIONS = {
    "type": "synthetic",
    "num_requests": 30,
    "arrivals": {"type": "poisson", "rate_per_s": 5.0},
    "prompt_tokens": {"type": "fixed", "value": 20},
    "output_tokens": {"type": "uniform", "min": 1, "max": 9},
    "sessions": {"num_turns": {"type": "fixed", "value": 3}, "think_time_s": 2.0},
}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def experiment(workload, **more):
    """Steps of 1/8 s, one at a time: each turn of n tokens takes n steps."""
    cost = {"type": "constant", "step_s": 0.125}
    return {"model": "llama-3-8b", "scheduler": "vllm", "cost_model": cost, "workload": workload, **more}


def turns_of(requests):
    """By session, (arrival, end) of each turn in order of arrival."""
    sessions = {}
    for row in requests.itertuples():
        sessions.setdefault(row.request_id, []).append((row.arrival_s, row.finished_at_s))
    return sessions


def test_aiperf_form_by_hand(trace):
    """Delays are milliseconds after the answer; a later prompt is all said before and what is new."""
    workload = trace("t.jsonl", lines(AIPERF))
    requests = list(workload.requests())
    assert [r.request_id for r in requests] == ["r0", "r1", "r3", "r2"]
    assert [r.follows for r in requests] == [-1, 0, 1, -1]
    assert [r.delay_s for r in requests] == [0.0, 2.0, 0.5, 0.0]
    assert [r.num_prompt_tokens for r in requests] == [300, 490, 560, 30]
    assert requests[1].prompt == (("p:r0", 300), ("o:r0", 40), ("p:r1", 150))
    found = run(experiment({"type": "trace", "path": str(workload.inputs()[0])})).requests
    # Answers of 40, 20, 10 and 5 tokens at 8 steps a second, the prompt's step giving the first. When r2
    # arrives at 1.0 the step from then on is decided already (asynchronous scheduling).
    assert found["request_id"].tolist() == ["r0", "r2", "r1", "r3"]
    assert found["arrival_s"].tolist() == [0.0, 1.0, 7.0, 10.0]
    assert found["finished_at_s"].tolist() == [5.0, 2.375, 9.5, 10.625]


@pytest.mark.parametrize("engine", ["interpreted", "compiled"])
def test_both_engines_and_a_closed_loop(engine):
    workload = {**SESSIONS, "wait_for_answers": True, "concurrency": 2}
    found = run(experiment(workload, engine=engine)).requests
    assert len(found) == 30
    running = [
        sum(row.arrival_s <= at_s < row.finished_at_s for row in found.itertuples())
        for at_s in found["arrival_s"]
    ]
    assert max(running) <= 2, "two sessions go on at a time"


def test_a_turn_comes_its_delay_after_the_answer(make):
    workload = {**SESSIONS, "wait_for_answers": True}
    planned = {r.request_id: r for r in make(**workload).requests()}
    names = list(planned)
    found = run(experiment(workload), overrides={"seed": 0}).requests.set_index("request_id")
    assert len(found) == 30
    num_later = 0
    for name, request in planned.items():
        if request.follows < 0:
            assert found["arrival_s"][name] == request.arrival_s
        else:
            num_later += 1
            before = found["finished_at_s"][names[request.follows]]
            assert found["arrival_s"][name] == before + request.delay_s
            assert request.prompt[:2] == (*planned[names[request.follows]].prompt, request.prompt[-2])[:2]
    assert num_later == 20


def test_recorded_turns_wait_for_the_answer_if_told_to(trace, tmp_path):
    """The second was recorded at 0.5 s, when the first, of 8 steps, is still under way; the third at 9 s."""
    header = "request_id,arrival_s,num_prompt_tokens,num_output_tokens,session_id\n"
    path = trace("t.csv", f"{header}a,0,5,8,s\nb,0.5,5,1,s\nc,9,5,1,s\n").inputs()[0]
    apart = run(experiment({"type": "trace", "path": str(path)})).requests
    assert apart["arrival_s"].tolist() == [0.0, 0.5, 9.0]
    waiting = run(experiment({"type": "trace", "path": str(path), "wait_for_answers": True})).requests
    assert waiting["arrival_s"].tolist() == [0.0, 1.0, 9.0]


def test_without_times_sessions_go_on_one_after_the_other(trace):
    rows = [{key: value for key, value in row.items() if key != "timestamp"} for row in AIPERF]
    path = trace("t.jsonl", lines(rows)).inputs()[0]
    workload = {"type": "trace", "path": str(path), "concurrency": 1}
    result = run(experiment(workload))
    assert result.requests["request_id"].tolist() == ["r0", "r1", "r3", "r2"]
    assert any("all sessions begin at 0" in note for note in result.summary["notes"])


def test_a_refused_turn_does_not_end_its_session(trace):
    header = "request_id,arrival_s,num_prompt_tokens,num_output_tokens,session_id,delay_s\n"
    path = trace("t.csv", f"{header}a,0,500,8,s,\nb,,5,1,s,2\n").inputs()[0]
    workload = {"type": "trace", "path": str(path)}
    found = run(experiment(workload, kv_cache={"num_blocks": 4})).requests
    assert found["state"].tolist() == ["rejected", "finished"]
    assert found["arrival_s"].tolist() == [0.0, 2.0]


def test_turns_whose_answer_never_came_are_told(trace):
    workload = {"type": "trace", "path": str(trace("t.jsonl", lines(AIPERF)).inputs()[0])}
    result = run(experiment(workload, stop_at_s=3.0))
    assert len(result.requests) == 2
    assert any(note.startswith("2 requests were never sent") for note in result.summary["notes"])


def test_a_window_begins_within_a_session(trace):
    workload = trace("t.jsonl", lines(AIPERF), start_s=0.5)
    assert [(r.request_id, r.follows) for r in workload.requests()] == [("r2", -1)]


def test_agents_of_llmservingsim(trace):
    """A call waits for the one before and for its tool; prompts are whole."""
    calls = [
        {"input_toks": 10, "output_toks": 8, "tool_duration_ns": 3_000_000_000},
        {"input_toks": 25, "output_toks": 4, "tool_duration_ns": 0},
    ]
    rows = [{"session_id": f"s{n}", "arrival_time_ns": n * 10**9, "sub_requests": calls} for n in range(2)]
    workload = trace("t.jsonl", lines(rows))
    found = run(experiment({"type": "trace", "path": str(workload.inputs()[0])})).requests
    assert found["num_prompt_tokens"].tolist() == [10, 10, 25, 25]
    assert found["arrival_s"].tolist() == [0.0, 1.0, 4.0, 5.0]


def test_a_batch_task_without_times(trace):
    rows = [
        {"request_id": n, "type": "text", "input_length": 61 + n, "output_length": 3, "duration": 9}
        for n in range(3)
    ]
    workload = trace("t.jsonl", lines(rows))
    assert [(r.arrival_s, r.num_prompt_tokens) for r in workload.requests()] == [(0, 61), (0, 62), (0, 63)]
    assert "all requests begin at 0" in " ".join(workload.notes())


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_round_trip(make, facts, tmp_path, suffix):
    workload = make(**SESSIONS, wait_for_answers=True)
    convert(workload, tmp_path / f"w{suffix}")
    again = make(type="trace", path=f"w{suffix}")
    for one, other in zip(again.requests(), workload.requests(), strict=True):
        assert facts(one) == facts(other)
        assert (one.follows, one.delay_s) == (other.follows, other.delay_s)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (
            [{**AIPERF[0]}, {"delay": 5, "timestamp": 1, "input_length": 1, "output_length": 1}],
            "2: delay: got 5",
        ),
        (
            [AIPERF[0], {"session_id": "z", "delay": 5, "input_length": 1, "output_length": 1}],
            "2: timestamp: got",
        ),
        ([AIPERF[0], {**AIPERF[1], "delay": -5}], "2: delay: got -5"),
        (
            [{"session_id": "s", "arrival_time_ns": 0, "sub_requests": []}],
            "got sessions without sub_requests",
        ),
        ([{"session_id": "s", "arrival_time_ns": 0, "sub_requests": [1]}], "sub_requests: got 1"),
    ],
)
def test_mistakes(trace, rows, problem):
    with pytest.raises(WorkloadError) as caught:
        list(trace("t.jsonl", lines(rows)).requests())
    assert problem in str(caught.value)


def test_settings_that_mean_nothing():
    for workload in (
        {**SESSIONS, "sessions": None, "wait_for_answers": True},
        {"type": "resampled", "path": "azure-2023-code.csv", "wait_for_answers": True},
    ):
        with pytest.raises(ConfigError, match="wait_for_answers"):
            Experiment.from_mapping(experiment(workload))
