"""The slowest requests of a run as a table."""

from __future__ import annotations

from cbsim.show.text import Table, format_figure
from cbsim.studies.explain.latency_shares import LATENCIES, MIN_SHARE, WORDS
from cbsim.studies.explain.run_diagnosis import RunDiagnosis, SlowRequest

WIDE = 110
"""Characters in which the largest parts can be told in full."""
_MAX_PARTS = 2
_PARTS = "mostly"
_SHORT = {
    "queue": "its turn",
    "no_slot": "slot",
    "no_kv": "KV blocks",
    "prefill": "prompt",
    "recompute": "again",
    "others_prefill": "others",
    "decode": "decodes",
    "skipped": "passed by",
    "preempted": "preempted",
    "swap": "swap",
    "host": "host",
}


def slow_table(diagnosis: RunDiagnosis, max_width: int | None = None) -> Table:
    """A row a request, the slowest first, with the largest parts of the latency they are sorted by.

    On a terminal of less than `WIDE` characters the largest part alone is told, in a word or two.
    """
    if max_width is not None and max_width < WIDE:
        header = ("slowest", "arrival (s)", "TTFT (s)", "E2E (s)", "prompt", "output")
        rows = tuple((*_row(request)[: len(header)], _largest(request)) for request in diagnosis.slow)
        name = LATENCIES[diagnosis.by]
        return Table((*header, name), rows, words=(name,))
    columns = ("slowest", "arrival (s)", "TTFT (s)", "E2E (s)", "prompt", "output", "preemptions")
    name = f"{LATENCIES[diagnosis.by]} is {_PARTS}"
    return Table((*columns, name), tuple(map(_row, diagnosis.slow)), words=(name,))


def _row(request: SlowRequest) -> tuple[str, ...]:
    parts = [f"{WORDS[name]} {share:.0%}" for name, share in request.mostly.items() if share >= MIN_SHARE]
    return (
        request.request_id,
        f"{request.arrival_s:.3f}",
        format_figure(request.ttft_s),
        format_figure(request.e2e_s),
        f"{request.num_prompt_tokens:,}",
        f"{request.num_output_tokens:,}",
        f"{request.num_preemptions:,}",
        ", ".join(parts[:_MAX_PARTS]),
    )


def _largest(request: SlowRequest) -> str:
    return next((f"{_SHORT[name]} {share:.0%}" for name, share in request.mostly.items()), "")
