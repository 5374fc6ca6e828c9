"""Documents: the requests in files of JSON that is no table, as the tools that measure servers write them."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

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
    Layout(("request_throughput",), _WHOLE_RUN),
    Layout(("successes", "failures"), _WHOLE_RUN),
)
"""Every kind of document, in the order in which they are tried."""


def parse_document(text: bytes) -> list[Row] | None:
    """The objects of a file that is one JSON value, an object or an array of objects; `None` if it is not."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    found = value if isinstance(value, list) else [value]
    return found if found and all(isinstance(each, dict) for each in found) else None
