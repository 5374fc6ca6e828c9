"""Small files of the shapes that other tools write: the same three requests, one of which failed.

Request 1 is sent at 0 s (10 tokens in, 3 out at 0.5, 0.6 and 0.8 s), request 2 at 1 s (20 in, 2 out at
1.25 and 1.5 s); the one that failed was sent between them.
"""

from __future__ import annotations

import json
from typing import Any

EPOCH_S = 1_750_000_000.0
EPOCH_NS = 1_750_000_000_000_000_000

RUN: dict[str, Any] = {
    "backend": "vllm",
    "num_prompts": 3,
    "request_rate": "inf",
    "max_concurrency": None,
    "duration": 1.5,
    "completed": 2,
    "failed": 1,
    "request_throughput": 1.3,
    "input_lens": [10, 15, 20],
    "output_lens": [3, 0, 2],
    "ttfts": [0.5, 0.0, 0.25],
    "itls": [[0.1, 0.2], [], [0.25]],
    "start_times": [5000.0, 5000.5, 5001.0],
    "generated_texts": ["a b c", "", "d e"],
    "errors": ["", "Internal Server Error", ""],
}


def guidellm(request: dict[str, Any], start: str, first: str, last: str) -> str:
    def row(number: int, start_s: float, first_s: float | None, last_s: float | None, *tokens: int) -> Any:
        row: dict[str, Any] = {
            "request_id": f"q{number}",
            "prompt_tokens": tokens[0],
            "output_tokens": tokens[1],
        }
        row |= json.loads(json.dumps(request))
        for path, value in ((start, start_s), (first, first_s), (last, last_s)):
            at = row
            *above, key = path.split(".")
            for each in above:
                at = at[each]
            at[key] = None if value is None else EPOCH_S + value
        return row

    requests = {
        "successful": [row(1, 0.0, 0.5, 0.8, 10, 3), row(2, 1.0, 1.25, 1.5, 20, 2)],
        "incomplete": [],
        "errored": [row(3, 0.5, None, None, 15, 0)],
    }
    return json.dumps({"benchmarks": [{"requests": requests}]}, indent=1)


def aiperf(
    start_s: float, end_s: float, tokens: tuple[int, int] | None, ttft_ms: float, gaps_ms: list[float]
) -> Any:
    metadata = {
        "x_request_id": f"id-{start_s}",
        "request_start_ns": EPOCH_NS + int(start_s * 1e9),
        "request_end_ns": EPOCH_NS + int(end_s * 1e9),
        "was_cancelled": tokens is None,
    }
    if tokens is None:
        error = {"code": 499, "type": "RequestCancellationError", "message": "cancelled"}
        return {
            "metadata": metadata,
            "metrics": {"error_isl": {"value": 15, "unit": "tokens"}},
            "error": error,
        }
    metrics = {
        "input_sequence_length": {"value": tokens[0], "unit": "tokens"},
        "output_sequence_length": {"value": tokens[1], "unit": "tokens"},
        "time_to_first_token": {"value": ttft_ms, "unit": "ms"},
        "inter_chunk_latency": {"value": gaps_ms, "unit": "ms"},
    }
    return {"metadata": metadata, "metrics": metrics, "error": None}


def inference_perf(*, nested: bool) -> str:
    def row(
        start_s: float, end_s: float, tokens: tuple[int, int], times_s: list[float], error: Any = None
    ) -> Any:
        info: dict[str, Any] = {
            "input_tokens": tokens[0],
            "output_tokens": tokens[1],
            "output_token_times": times_s,
        }
        if nested:
            response = {"output_tokens": tokens[1], "output_token_times": times_s}
            info = {"request_metrics": {"text": {"input_tokens": tokens[0]}}, "response_metrics": response}
        return {
            "start_time": start_s,
            "end_time": end_s,
            "request": "{}",
            "response": "",
            "info": info,
            "error": error,
        }

    rows = [
        row(700.0, 700.8, (10, 3), [700.5, 700.6, 700.8]),
        row(700.5, 700.6, (15, 0), [], {"error_type": "TimeoutError", "error_msg": ""}),
        row(701.0, 701.5, (20, 2), [701.25, 701.5]),
    ]
    return json.dumps(rows)


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def spans() -> str:
    """A line an export, as the file exporter of a collector writes them: a gateway's, then the engines'."""

    def span(name: str, start_s: float, end_s: float, of: tuple[str, str], status: int, **values: Any) -> Any:
        attributes = [{"key": f"gen_ai.{key}", "value": value} for key, value in values.pop("given").items()]
        clock = {
            key: str(EPOCH_NS + int(time_s * 1e9))
            for key, time_s in (("startTimeUnixNano", start_s), ("endTimeUnixNano", end_s))
        }
        ids = dict(zip(("traceId", "parentSpanId"), of, strict=True)) | {"spanId": name}
        return clock | ids | {"name": name, "attributes": attributes, "status": {"code": status}}

    def export(*found: Any) -> Any:
        scope = {"scope": {"name": "any"}, "spans": list(found)}
        return {"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": [scope]}]}

    def tokens(prompt: int, answer: int, names: tuple[str, str] = ("input", "output")) -> dict[str, Any]:
        counts = zip(names, (prompt, answer), strict=True)
        return {f"usage.{name}_tokens": {"intValue": str(count)} for name, count in counts}

    def engine(prompt: int, answer: int, ttft_s: float) -> dict[str, Any]:
        latency = {"latency.time_to_first_token": {"doubleValue": ttft_s}}
        return tokens(prompt, answer, ("prompt", "completion")) | latency

    chat = {"operation.name": {"stringValue": "chat"}}
    agent = {"operation.name": {"stringValue": "invoke_agent"}}
    return lines(
        export(
            span("g1", -0.01, 0.81, ("t1", ""), 0, given=chat | tokens(10, 3)),
            span("hop", 0.0, 0.8, ("t1", "g1"), 0, given={}),
            span("g3", 0.5, 0.6, ("t3", ""), 2, given=chat),
            span("a", -0.1, 2.0, ("t2", ""), 0, given=agent | tokens(30, 5)),
        ),
        {"resourceMetrics": []},
        export(
            span("e1", 0.0, 0.8, ("t1", "hop"), 0, given=engine(10, 3, 0.5)),
            span("e2", 1.0, 1.5, ("t2", "a"), 1, given=engine(20, 2, 0.25)),
        ),
    )


MEASURED = {
    "OpenTelemetry": spans(),
    "vllm bench serve": json.dumps(RUN),
    "vllm bench serve, indented": json.dumps(RUN, indent=2),
    "SGLang bench_serving": lines(RUN | {"backend": "sglang", "total_output_tokens_retokenized": 5}),
    "guidellm": guidellm(
        {"info": {"timings": {}}},
        "request_start_time",
        "info.timings.first_token_iteration",
        "info.timings.last_token_iteration",
    ),
    "guidellm before 0.4": guidellm({}, "start_time", "first_token_time", "last_token_time"),
    "aiperf": lines(
        aiperf(0.5, 0.6, None, 0.0, []),
        aiperf(0.0, 0.8, (10, 3), 500.0, [100.0, 200.0]),
        aiperf(1.0, 1.5, (20, 2), 250.0, [250.0]),
    ),
    "inference-perf": inference_perf(nested=True),
    "inference-perf before multimodal": inference_perf(nested=False),
    "a server's log": lines(
        {
            "id": "a",
            "prompt_tokens": 10,
            "output_tokens": 3,
            "arrival_ts": EPOCH_S,
            "first_token_ts": EPOCH_S + 0.5,
        }
        | {"last_token_ts": EPOCH_S + 0.8, "token_times": [EPOCH_S + 0.5, EPOCH_S + 0.6, EPOCH_S + 0.8]},
        {"id": "b", "prompt_tokens": 15, "output_tokens": 0, "arrival_ts": EPOCH_S + 0.5, "error": "timeout"},
        {"id": "c", "prompt_tokens": 20, "output_tokens": 2, "arrival_ts": EPOCH_S + 1.0}
        | {"first_token_ts": EPOCH_S + 1.25, "last_token_ts": EPOCH_S + 1.5}
        | {"token_times": [EPOCH_S + 1.25, EPOCH_S + 1.5]},
    ),
}
"""Files with when each request was sent and when its tokens came, by who writes them."""
