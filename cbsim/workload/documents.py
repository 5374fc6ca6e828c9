"""Documents: the requests in files of JSON that is no table, as the tools that measure servers write them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from cbsim.base.text_files import parse_json

Row = dict[str, Any]
"""One request; values below other objects are named by their path, as in `metrics.ttft.value`."""


class Requests(NamedTuple):
    """The requests of some documents, and what to know of how they were found."""

    rows: list[Row]
    notes: list[str]


class Layout(NamedTuple):
    """A kind of document that isn't itself a request: the keys that tell it, and how its requests are found.

    `read` gets all documents of the file (a file of JSON lines may hold several runs). It raises `ValueError`
    with the end of an error line where they hold no requests.
    """

    marks: tuple[str, ...]
    read: Callable[[Sequence[Row]], Requests]


def layout_of(document: Row) -> Layout | None:
    """How the requests stand in a document; `None` if it is a request itself."""
    return next((each for each in LAYOUTS if all(mark in document for mark in each.marks)), None)


def value_at(row: Row, name: str) -> Any:
    """The value of a key, or of a path of keys joined by dots; `None` if it isn't there."""
    if name in row or "." not in name:
        return row.get(name)
    value: Any = row
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def names_in(rows: Iterable[Row]) -> list[str]:
    """The names of all values of some requests, paths included, in the order in which they appear."""

    def paths(row: Row, prefix: str = "") -> Iterator[str]:
        for key, value in row.items():
            yield prefix + key
            if isinstance(value, dict):
                yield from paths(value, f"{prefix}{key}.")

    return list(dict.fromkeys(name for row in rows for name in paths(row)))


def _from_lists(runs: Sequence[Row]) -> Requests:
    """Runs of `vllm bench serve` or SGLang's `bench_serving`: a list for each column, in one order."""
    rows: list[Row] = []
    notes = []
    for run in runs:
        num_requests = len(run["input_lens"])
        lists = {name: value for name, value in run.items() if isinstance(value, list)}
        lists = {name: value for name, value in lists.items() if len(value) == num_requests}
        if "output_lens" not in lists:
            raise ValueError(
                f"output_lens: got {len(run['output_lens']):,} values; allowed: {num_requests:,}, as in "
                "input_lens"
            )
        if "start_times" not in lists:
            if len(runs) > 1:
                raise ValueError(
                    f"got {len(runs):,} runs without start_times; allowed: one run a file, as it isn't said "
                    "when each began"
                )
            lists["start_times"], note = _starts(run, lists, num_requests)
            notes.append(f"it has no start_times: requests are taken to be sent {note}")
        rows += [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    return Requests(rows, notes)


def _starts(run: Row, lists: dict[str, list[Any]], num_requests: int) -> tuple[list[float], str]:
    """When requests were sent, seconds, as the run's own settings say, and that in words.

    Requests go out in order, at `request_rate` a second, but at most `max_concurrency` at a time. An answer
    is over after its `ttfts` and all its `itls`.
    """
    rate_per_s = float(run.get("request_rate") or math.inf)
    cap = run.get("max_concurrency") or num_requests
    even_s = 0.0 if math.isinf(rate_per_s) else 1.0 / rate_per_s
    busy_until_s: list[float] = []
    starts_s = []
    nothing: list[Any] = [None] * num_requests
    latencies = zip(lists.get("ttfts", nothing), lists.get("itls", nothing), strict=True)
    for number, (ttft_s, gaps_s) in enumerate(latencies):
        start_s = number * even_s
        if len(busy_until_s) >= cap:
            start_s = max(start_s, heapq.heappop(busy_until_s))
        starts_s.append(start_s)
        gaps = gaps_s if isinstance(gaps_s, list) else []
        took_s = math.fsum(gap for gap in (ttft_s, *gaps) if isinstance(gap, int | float))
        heapq.heappush(busy_until_s, start_s + took_s)
    how = [] if even_s == 0.0 else [f"evenly at request_rate, {rate_per_s:g} a second, without its bursts"]
    if cap < num_requests:
        how.append(f"by {cap:,} clients (max_concurrency), each as soon as an answer is over")
    return starts_s, " and ".join(how) or "all at once (request_rate inf)"


def _from_benchmarks(reports: Sequence[Row]) -> Requests:
    """The `benchmarks.json` of guidellm: for each benchmark lists of requests by how they ended."""
    benchmarks = [each for report in reports for each in report["benchmarks"]]
    rows = []
    for benchmark in benchmarks:
        requests = benchmark.get("requests") if isinstance(benchmark, dict) else None
        for ending, of_it in (requests or {}).items():
            has_failed = ending != "successful"
            rows += [row | {"failed": has_failed} for row in of_it or () if isinstance(row, dict)]
    several = [f"{len(benchmarks):,} benchmarks, taken as one run on their common clock"]
    return Requests(rows, several if len(benchmarks) > 1 else [])


def _from_sessions(sessions: Sequence[Row]) -> Requests:
    """LLMServingSim's agents: calls that wait for each other, and for the tool that runs after each.

    A call gets the arrival of its session, and as `delay_ns` how long the tool took that the one before used.
    """
    rows = []
    for number, session in enumerate(sessions):
        calls = session["sub_requests"] if isinstance(session["sub_requests"], list) else []
        beside = {"session_id": f"s{number}", "arrival_time_ns": session.get("arrival_time_ns")}
        beside |= {"session_id": session["session_id"]} if session.get("session_id") is not None else {}
        delay_ns: Any = None
        for call in calls:
            if not isinstance(call, dict):
                raise ValueError(
                    f"sub_requests: got {call!r}; allowed: an object with input_toks, output_toks"
                )
            rows.append({**call, **beside, "delay_ns": delay_ns})
            delay_ns = call.get("tool_duration_ns", 0)
    if not rows:
        raise ValueError("got sessions without sub_requests; allowed: at least one")
    return Requests(rows, ["calls of a session wait for the one before and its tool (tool_duration_ns)"])


_TOKENS_IN = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_TOKENS_OUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_FIRST_TOKEN = ("gen_ai.latency.time_to_first_token", "gen_ai.response.time_to_first_chunk")
"""Attributes of a span, the semantic conventions' name first but for the last, where it is vLLM's."""
_CALLS = (None, "chat", "text_completion", "generate_content")
"""Values of `gen_ai.operation.name` of what is one request to a model."""
_ERRORS = (2, "STATUS_CODE_ERROR")


def _from_spans(exports: Sequence[Row]) -> Requests:
    """OpenTelemetry's spans in OTLP's JSON, exports of them: a request is a span of a call of a model.

    Of spans within each other, as a gateway's round an engine's, the innermost counts, for it is one request.
    """
    spans = [span for export in exports for span in _spans_of(export)]
    parents = {_span_id(span, "spanId"): _span_id(span, "parentSpanId") for span in spans}
    calls = [(span, row) for span in spans if (row := _call_of(span)) is not None]
    outer = set()
    for span, _ in calls:
        above = _span_id(span, "parentSpanId")
        while above in parents and above not in outer:
            outer.add(above)
            above = parents[above]
    rows = [row for span, row in calls if _span_id(span, "spanId") not in outer]
    if not rows:
        raise ValueError(
            f"got {len(spans):,} spans, none with {' or '.join(_TOKENS_IN)}; allowed: spans of requests"
        )
    left_out = len(calls) - len(rows)
    return Requests(
        rows, [f"spans left out round those of the same request: {left_out:,}"] if left_out else []
    )


def _spans_of(export: Row) -> Iterator[Row]:
    """The spans of an export of OTLP; nothing of exports of metrics and logs."""
    level = [export]
    for key in ("resourceSpans", "scopeSpans", "spans"):
        within = [each.get(key) for each in level]
        level = [
            each for group in within if isinstance(group, list) for each in group if isinstance(each, dict)
        ]
    yield from level


def _span_id(span: Row, key: str) -> tuple[str, str] | None:
    """The name of a span or of the one above it; `None` of none."""
    return (str(span.get("traceId")), str(span[key])) if span.get(key) else None


def _call_of(span: Row) -> Row | None:
    """The request that a span is about, with its own names for what it says; `None` if it is about none."""
    given = span.get("attributes")
    attributes = {
        str(each.get("key")): next(iter(each["value"].values()), None)
        for each in (given if isinstance(given, list) else [])
        if isinstance(each, dict) and isinstance(each.get("value"), dict)
    }
    status = span.get("status")
    has_failed = isinstance(status, dict) and status.get("code") in _ERRORS
    if attributes.get("gen_ai.operation.name") not in _CALLS:
        return None
    if not any(name in attributes for name in _TOKENS_IN) and not (
        has_failed and any(name.startswith("gen_ai.") for name in attributes)
    ):
        return None
    row = {key: _whole(span.get(key)) for key in ("startTimeUnixNano", "endTimeUnixNano")}
    for names in (_TOKENS_IN, _TOKENS_OUT, _FIRST_TOKEN):
        found = next((attributes[name] for name in names if name in attributes), None)
        row |= {} if found is None else {names[0]: _whole(found)}
    names = ("gen_ai.request.id", "gen_ai.response.id")
    row["id"] = next((attributes[name] for name in names if name in attributes), span.get("spanId"))
    return row | {"session_id": attributes.get("gen_ai.conversation.id"), "failed": has_failed}


def _whole(value: Any) -> Any:
    """A whole number where JSON has its digits in quotes, as OTLP writes those of 64 bits."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _refuse(got: str, allowed: str) -> Callable[[Sequence[Row]], Requests]:
    def read(documents: Sequence[Row]) -> Requests:
        raise ValueError(f"got {got}; allowed: {allowed}")

    return read


_WHOLE_RUN = _refuse(
    "figures of a whole run without its requests",
    "a file with each request (vllm bench serve: --save-result --save-detailed; SGLang bench_serving: "
    "--output-details; aiperf: profile_export.jsonl; inference-perf: per_request_lifecycle_metrics.json)",
)

LAYOUTS = (
    Layout(("input_lens", "output_lens"), _from_lists),
    Layout(("benchmarks",), _from_benchmarks),
    Layout(
        ("experiments", "service_kind"),
        _refuse("genai-perf's texts without counts of tokens", "aiperf's profile_export.jsonl"),
    ),
    Layout(("sub_requests",), _from_sessions),
    Layout(("resourceSpans",), _from_spans),
    Layout(
        ("0",),
        _refuse("distributions of the lengths of a client of ServeGen", "the requests that ServeGen draws"),
    ),
    Layout(("request_throughput",), _WHOLE_RUN),
    Layout(("successes", "failures"), _WHOLE_RUN),
)
"""Every kind of document, in the order in which they are tried."""


def parse_document(text: bytes) -> list[Row] | None:
    """The objects of a file that is one JSON value, an object or an array of objects; `None` if it is not."""
    try:
        value = parse_json(text)
    except ValueError:
        return None
    found = value if isinstance(value, list) else [value]
    return found if found and all(isinstance(each, dict) for each in found) else None
