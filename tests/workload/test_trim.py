"""The settings all workloads share, against their plain meaning request by request."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cbsim.workload.request import RequestBatch
from cbsim.workload.request_source import Trim, WorkloadConfig, first_tokens

ROWS = [(0.0, 500, 100), (1.0, 600, 5), (1.0, 20, 900), (2.5, 7, 7), (4.0, 2000, 2), (9.0, 1, 1)]

HALVES = st.integers(0, 40).map(lambda n: n / 2)
"""Instants that often coincide, with one another and with the window."""


def batches(rows, size):
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield RequestBatch(
            np.arange(start, start + len(part)),
            np.array([row[0] for row in part]),
            np.array([row[1] for row in part]),
            np.array([row[2] for row in part]),
        )


def naive(rows, config):
    kept = [
        (f"r{i}", (arrival_s - config.start_s) / config.rate_scale, prompt, output)
        for i, (arrival_s, prompt, output) in enumerate(rows)
        if arrival_s >= config.start_s and (config.end_s is None or arrival_s < config.end_s)
    ]
    return [
        (
            name,
            arrival_s,
            min(prompt, config.max_prompt_tokens or prompt),
            min(output, config.max_output_tokens or output),
        )
        for name, arrival_s, prompt, output in kept[: config.limit]
    ]


@given(
    rows=st.lists(st.tuples(HALVES, st.integers(1, 50), st.integers(1, 50)), max_size=30).map(sorted),
    size=st.integers(1, 10),
    settings_=st.fixed_dictionaries(
        {
            "rate_scale": st.sampled_from([0.5, 1.0, 3.0]),
            "start_s": HALVES.map(lambda t: t / 2),
            "end_s": st.none() | HALVES.map(lambda t: 10.5 + t / 2),
            "limit": st.none() | st.integers(1, 20),
            "max_prompt_tokens": st.none() | st.integers(1, 50),
            "max_output_tokens": st.none() | st.integers(1, 50),
        }
    ),
)
def test_trim_does_what_the_settings_say(rows, size, settings_):
    config = WorkloadConfig(type="any", **settings_)
    found = [
        (r.request_id, r.arrival_s, r.num_prompt_tokens, r.num_output_tokens)
        for batch in Trim(config).apply(batches(rows, size))
        for r in batch.requests()
    ]
    assert found == naive(rows, config)


def test_caps_are_counted_for_the_notes():
    trim = Trim(WorkloadConfig(type="any", max_prompt_tokens=500, max_output_tokens=100))
    list(trim.apply(batches(ROWS, 2)))
    assert trim.notes() == [
        "max_prompt_tokens = 500: prompts cut: 2, tokens left out: 1,600",
        "max_output_tokens = 100: answers cut: 1, tokens left out: 800",
    ]


def test_nothing_cut_is_nothing_noted():
    trim = Trim(WorkloadConfig(type="any", max_prompt_tokens=5000))
    list(trim.apply(batches(ROWS, 2)))
    assert trim.notes() == []


def test_no_batch_is_drawn_beyond_the_limit_or_the_window():
    def counted():
        for batch in batches(ROWS, 1):
            drawn.append(batch)
            yield batch

    for settings_, num_wanted in (({"limit": 2}, 2), ({"end_s": 2.0}, 4)):
        drawn = []
        list(Trim(WorkloadConfig(type="any", **settings_)).apply(counted()))
        assert len(drawn) == num_wanted


def test_a_capped_prompt_keeps_its_first_segments(trace):
    text = (
        '{"arrival_s": 0, "num_prompt_tokens": 60, "num_output_tokens": 1, "prompt": [["a",40],["b",20]]}\n'
        '{"arrival_s": 1, "num_prompt_tokens": 9, "num_output_tokens": 1}\n'
    )
    workload = trace("c.jsonl", text, max_prompt_tokens=50)
    assert [(r.num_prompt_tokens, r.prompt) for r in workload.requests()] == [
        (50, (("a", 40), ("b", 10))),
        (9, None),
    ]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=5), st.integers(0, 50))
def test_first_tokens_keeps_the_tokens_in_front(prompt, num_tokens):
    def spelled(segments):
        return [(i, name, offset) for i, (name, n) in enumerate(segments) for offset in range(n)]

    assert spelled(first_tokens(tuple(prompt), num_tokens)) == spelled(prompt)[:num_tokens]


def test_the_window_must_not_be_empty():
    with pytest.raises(ValidationError, match="end_s: got 3; allowed: more than start_s, 5"):
        WorkloadConfig(type="any", start_s=5.0, end_s=3.0)


@pytest.mark.parametrize(
    "settings_",
    [{"concurrency": 8, "think_time_s": 0.5}, {"concurrency": 1}],
)
def test_closed_loop_settings_are_carried_by_every_workload(trace, make, settings_):
    generated = make(
        type="synthetic",
        num_requests=3,
        arrivals={"type": "all_at_once"},
        prompt_tokens={"type": "fixed", "value": 5},
        output_tokens={"type": "fixed", "value": 5},
        **settings_,
    )
    read = trace("v.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n1,5,6\n", **settings_)
    for workload in (generated, read):
        assert {name: getattr(workload.config, name) for name in settings_} == settings_


def test_num_requests_of_a_trace_counts_window_and_limit(trace):
    text = "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(f"{i},5,6\n" for i in range(10))
    for settings_ in ({}, {"start_s": 2.5}, {"end_s": 4.0}, {"start_s": 1.0, "limit": 3}, {"limit": 99}):
        workload = trace("v.csv", text, **settings_)
        assert workload.num_requests() == len(list(workload.requests()))


def test_the_window_takes_its_start_and_leaves_its_end():
    config = WorkloadConfig(type="any", start_s=1.0, end_s=4.0)
    (batch,) = Trim(config).apply(batches(ROWS, len(ROWS)))
    assert batch.arrival_s.tolist() == [0.0, 0.0, 1.5]
