"""Files that other tools write: results of benchmarks, simulators' workloads, traces of any hash block."""

import json

import pytest

from cbsim.base.errors import WorkloadError
from tests.workload.benchmark_files import MEASURED, RUN, lines


def rows(workload):
    return [(r.arrival_s, r.num_prompt_tokens, r.num_output_tokens) for r in workload.requests()]


def problem(workload):
    with pytest.raises(WorkloadError) as caught:
        list(workload.requests())
    (line,) = caught.value.problems
    return line.rpartition("/")[2]


@pytest.mark.parametrize("writer", MEASURED)
def test_requests_of_a_benchmark(trace, writer):
    workload = trace("results", MEASURED[writer])
    assert rows(workload) == [(pytest.approx(0.0), 10, 3), (pytest.approx(1.0), 20, 2)]
    notes = workload.notes()
    assert notes[0].startswith("results: read as ")
    assert "failed requests left out" in notes[-1]
    assert notes[-1].endswith(": 1")


@pytest.mark.parametrize(
    ("settings", "starts_s", "said"),
    [
        ({"request_rate": "inf"}, [0.0, 0.0], "all at once (request_rate inf)"),
        (
            {"request_rate": float("inf"), "max_concurrency": 1},
            [0.0, 0.8],
            "by 1 clients (max_concurrency), each as soon as an answer is over",
        ),
        ({"request_rate": 2.0}, [0.0, 1.0], "evenly at request_rate, 2 a second, without its bursts"),
    ],
)
def test_requests_without_start_times(trace, settings, starts_s, said):
    run = {name: value for name, value in RUN.items() if name != "start_times"}
    workload = trace("s.jsonl", lines(run | settings))
    assert [r.arrival_s for r in workload.requests()] == pytest.approx(starts_s)
    assert workload.notes()[1] == f"s.jsonl: it has no start_times: requests are taken to be sent {said}"
    assert problem(trace("s.jsonl", lines(run, run))) == (
        "s.jsonl: got 2 runs without start_times; allowed: one run a file, as it isn't said when each began"
    )


WITHOUT = "s.json: got figures of a whole run without its requests; allowed: a file with each request"


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({name: value for name, value in RUN.items() if not isinstance(value, list)}, WITHOUT),
        ({"successes": {"count": 2}, "failures": {"count": 1}}, WITHOUT),
        (RUN | {"output_lens": [1]}, "s.json: output_lens: got 1 values; allowed: 3, as in input_lens"),
        (
            RUN | {"input_lens": [10, 15, "x"]},
            "s.json:request 3: input_lens: got x; allowed: a whole number from 1",
        ),
        (RUN | {"errors": ["no"] * 3}, "s.json: got 3 failed requests alone; allowed: one answer or more"),
        (
            {"service_kind": "openai", "experiments": [{"requests": []}]},
            "s.json: got genai-perf's texts without counts of tokens; allowed: aiperf's profile_export.jsonl",
        ),
        (
            {
                "resourceSpans": [
                    {"scopeSpans": [{"spans": [{"spanId": "a", "attributes": [{"key": 1}, 2]}]}]}
                ]
            },
            "s.json: got 1 spans, none with gen_ai.usage.input_tokens or gen_ai.usage.prompt_tokens",
        ),
        ({"0": {"input_tokens": "{}"}}, "s.json: got distributions of the lengths of a client of ServeGen"),
        (
            {"session_id": "s", "arrival_time_ns": 0, "sub_requests": []},
            "s.json: got sessions without sub_requests",
        ),
    ],
)
def test_what_documents_lack(trace, document, told):
    assert problem(trace("s.json", json.dumps(document))).startswith(told)


def test_of_spans_within_each_other_the_innermost_counts(trace):
    """A gateway, an agent round a call, and a call that failed before any engine saw it."""
    workload = trace("spans.jsonl", MEASURED["OpenTelemetry"])
    assert [request.request_id for request in workload.requests()] == ["e1", "e2"]
    assert workload.notes() == [
        "spans.jsonl: read as OpenTelemetry's spans, clock in nanoseconds, latencies in seconds",
        "spans.jsonl: spans left out round those of the same request: 1",
        "spans.jsonl: failed requests left out (marked so, or answers of 0 tokens): 1",
    ]


def test_several_benchmarks_are_one_run(trace):
    report = json.loads(MEASURED["guidellm"])
    (benchmark,) = report["benchmarks"]
    later = json.loads(json.dumps(benchmark).replace("175000000", "175000010").replace('"q', '"p'))
    workload = trace("benchmarks.json", json.dumps({"benchmarks": [benchmark, later]}))
    assert [r.arrival_s for r in workload.requests()] == [0.0, 1.0, 100.0, 101.0]
    assert "benchmarks.json: 2 benchmarks, taken as one run on their common clock" in workload.notes()


def test_qwen_bailian(trace):
    text = lines(
        {"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 40, "output_length": 3}
        | {"type": "text", "turn": 1, "hash_ids": [7, 8, 9]},
        {"chat_id": 2, "parent_chat_id": 1, "timestamp": 61.114, "input_length": 48, "output_length": 2}
        | {"type": "text", "turn": 2, "hash_ids": [7, 8, 10]},
    )
    workload = trace("q.jsonl", text)
    found = list(workload.requests())
    assert [r.arrival_s for r in found] == [0.5, 61.114]
    assert found[0].prompt == (("h:7", 16), ("h:8", 16), ("h:9", 8))
    assert workload.notes() == ["q.jsonl: read as Qwen-Bailian, arrivals in seconds"]


def mooncake(*requests):
    keys = ("timestamp", "input_length", "output_length", "hash_ids")
    return lines(*(dict(zip(keys, request, strict=True)) for request in requests))


@pytest.mark.parametrize("block", [16, 64, 512, 1024])
def test_the_size_of_a_hash_block_is_found(trace, block):
    text = mooncake((0, 4 * block, 1, [1, 2, 3, 4]), (10, 3 * block + 1, 1, [1, 2, 3, 5]))
    workload = trace("m.jsonl", text)
    first, second = workload.requests()
    assert first.prompt == tuple((f"h:{number}", block) for number in (1, 2, 3, 4))
    assert second.prompt[-1] == ("h:5", 1)
    told = f"m.jsonl: one of hash_ids stands for {block:,} prompt tokens"
    told += " (by their number; hash_block_tokens sets it)"
    assert workload.notes() == ([] if block == 512 else [told])


def test_the_size_of_a_hash_block_may_be_set(trace):
    text = mooncake((0, 250, 1, [1, 2, 3]))
    (request,) = trace("m.jsonl", text, hash_block_tokens=100).requests()
    assert request.prompt == (("h:1", 100), ("h:2", 100), ("h:3", 50))
    told = problem(trace("m.jsonl", text, hash_block_tokens=200))
    assert told == "m.jsonl:1: hash_ids: got 3 ids; allowed: at most 2 for 250 prompt tokens in blocks of 200"


def test_ids_of_64_bits_are_told_apart(trace):
    text = mooncake(
        (0, 1024, 1, [2**64 - 1, 2**64 - 2]), (1, 1024, 1, [2**53 + 1, 2**53]), (2, 512, 1, [-(2**63)])
    )
    found = [[name for name, _ in r.prompt] for r in trace("m.jsonl", text).requests()]
    assert found == [
        [f"h:{2**64 - 1}", f"h:{2**64 - 2}"],
        [f"h:{2**53 + 1}", f"h:{2**53}"],
        [f"h:{-(2**63)}"],
    ]


def test_dynamo_names_of_columns(trace):
    text = lines({"created_time": 1500, "input_tokens": 600, "output_tokens": 2, "hash_ids": [1, 2]})
    workload = trace("d.jsonl", text)
    assert rows(workload) == [(1.5, 600, 2)]
    assert workload.notes() == ["d.jsonl: read as Dynamo, arrivals in milliseconds"]


def test_llmservingsim(trace):
    shared = list(range(100, 132))
    text = lines(
        {"input_toks": 40, "output_toks": 5, "arrival_time_ns": 0, "input_tok_ids": [*shared, *[1] * 8]},
        {
            "input_toks": 34,
            "output_toks": 6,
            "arrival_time_ns": 1_500_000_000,
            "input_tok_ids": [*shared, 2, 3],
        },
        {"input_toks": 9, "output_toks": 7, "arrival_time_ns": 2_000_000_000},
    )
    workload = trace("l.jsonl", text)
    first, second, third = workload.requests()
    assert rows(workload) == [(0.0, 40, 5), (1.5, 34, 6), (2.0, 9, 7)]
    assert [number for _, number in first.prompt] == [16, 16, 8]
    assert first.prompt[:2] == second.prompt[:2]
    assert first.prompt[2][0] != second.prompt[2][0]
    assert third.prompt is None


@pytest.mark.parametrize(("unit", "per_s"), [("s", 1), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
def test_the_unit_of_arrivals_may_be_set(trace, unit, per_s):
    workload = trace("m.jsonl", mooncake((0, 5, 1, []), (2 * per_s, 5, 1, [])), time_unit=unit)
    assert [r.arrival_s for r in workload.requests()] == [0.0, 2.0]


def test_dates_have_no_unit(trace):
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-01-01 00:00:05,1,1\n"
    told = "a.csv: time_unit: got ms, but TIMESTAMP holds dates; allowed: null"
    assert problem(trace("a.csv", text, time_unit="ms")) == told


def test_a_log_in_milliseconds_since_1970(trace):
    rows = [
        {"prompt_tokens": 5, "output_tokens": 1, "arrival_time": 1_750_000_000_000 + ms} for ms in (0, 2500)
    ]
    workload = trace("l.jsonl", lines(*rows))
    assert [r.arrival_s for r in workload.requests()] == [0.0, 2.5]
    assert workload.notes()[1] == "l.jsonl: arrival_time is in ms since 1970, by its size; time_unit sets it"


def test_mooncake_in_seconds_is_noted(trace):
    text = mooncake(*((1.37 * number, 5, 1, []) for number in range(200)))
    (note,) = trace("m.jsonl", text).notes()
    assert note == (
        "m.jsonl: timestamp in milliseconds, as the format says, means 734 requests a second: if it is in "
        "seconds, set workload.time_unit=s"
    )
    workload = trace("m.jsonl", text, time_unit="s")
    assert workload.notes() == []
    assert list(workload.requests())[1].arrival_s == 1.37
