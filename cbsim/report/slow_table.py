"""The slowest requests of a run as a table."""

from __future__ import annotations

from cbsim.explain.parts import MIN_SHARE, WORDS
from cbsim.explain.run_diagnosis import LATENCIES, RunDiagnosis, SlowRequest
from cbsim.report.text import Table, format_figure

_MAX_PARTS = 2
_PARTS = "mostly"


def slow_table(diagnosis: RunDiagnosis) -> Table:
    """A row a request, the slowest first, with the largest parts of the latency they are sorted by."""
    header = ("slowest", "arrival (s)", "TTFT (s)", "E2E (s)", "prompt", "output", "preemptions")
    name = f"{LATENCIES[diagnosis.by]} is {_PARTS}"
    rows = tuple(_row(request) for request in diagnosis.slow)
    return Table((*header, name), rows, words=(name,))


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
