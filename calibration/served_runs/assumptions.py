"""What the sample doesn't say of servers and clients, assumed one way or another.

Tried on the dense models in bf16, where step costs leave least in doubt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from calibration.served_runs.sample import ServedRun
from calibration.served_runs.servers import REQUESTS_PER_CLIENT, SETUPS, Settings

SPREAD = 0.1
"""How much shorter and longer answers are made to tell what clients in step are worth."""

Changes = Callable[[ServedRun], Settings]
"""What differs of a run from its server's documentation."""


@dataclass(frozen=True, slots=True, eq=False)
class Assumption:
    """One of them; frameworks that it says nothing of are left out."""

    text: str
    changes: Mapping[str, Changes]
    """By framework."""
    requests_per_client: int = REQUESTS_PER_CLIENT


def always(settings: Settings) -> Changes:
    """The same of every run."""
    return lambda run: settings


def of_all(text: str, changes: Changes, requests_per_client: int = REQUESTS_PER_CLIENT) -> Assumption:
    """The same of every framework."""
    return Assumption(text, dict.fromkeys(SETUPS, changes), requests_per_client)


def token_budget(num_tokens: int, *frameworks: str) -> Assumption:
    """So many tokens a step."""
    changes = always({"scheduler.max_tokens_per_step": num_tokens})
    return Assumption(f"{num_tokens:,} tokens a step", dict.fromkeys(frameworks, changes))


def uneven_answers(run: ServedRun) -> Settings:
    """Lengths with which clients don't stay in step."""
    least, most = (round(factor * run.num_output_tokens) for factor in (1 - SPREAD, 1 + SPREAD))
    return {"workload.output_tokens": {"type": "uniform", "min": least, "max": most}}


DOCUMENTED = of_all("as documented", always({}))
OTHERS = (
    token_budget(2048, "vllm"),
    token_budget(8192, "trtllm"),
    token_budget(16_384, "vllm", "sglang", "trtllm"),
    Assumption(
        "host hidden where it was added, added where it was hidden",
        {
            "vllm": always({"scheduler.async_scheduling": True, "cost_model.host": "async"}),
            "sglang": always({"cost_model.host": "sync"}),
            "trtllm": always({"scheduler.async_scheduling": False, "cost_model.host": "sync"}),
        },
    ),
    of_all("no host time", always({"cost_model.host": "none"})),
    Assumption(
        "45 us a request in each step, not 10", {"vllm": always({"cost_model.host_request_s": 4.5e-5})}
    ),
    of_all("3 requests a client", always({}), requests_per_client=3),
    of_all("20 requests a client", always({}), requests_per_client=20),
    of_all(f"answers up to {SPREAD:.0%} shorter or longer", uneven_answers),
    Assumption(
        "5% of the memory less",
        {
            "vllm": always({"kv_cache.gpu_memory_utilization": 0.85}),
            "sglang": always({"kv_cache.gpu_memory_utilization": 0.79}),
        },
    ),
    Assumption(
        "a seat less than clients",
        {"trtllm": lambda run: {"scheduler.max_num_seqs": run.clients_of_rank - 1}},
    ),
)
