"""Logs with known answers: what a server would have written of a run whose every token is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cbsim.core.stepping import Slice
from cbsim.lab.validate.recorded_run import replay
from cbsim.lab.validate.server_log import ServerLog
from cbsim.results.run_log import EMITTED, RunLog
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_workload

SETTINGS: dict[str, Any] = {
    "model": "llama-3-8b",
    "gpu": "h200",
    "workload": {
        "type": "synthetic",
        "num_requests": 60,
        "arrivals": {"type": "poisson", "rate_per_s": 12.0},
        "prompt_tokens": {"type": "uniform", "min": 50, "max": 900},
        "output_tokens": {"type": "uniform", "min": 1, "max": 120},
    },
    "scheduler": {"type": "vllm", "max_num_seqs": 12, "max_tokens_per_step": 512},
    "kv_cache": {"num_blocks": 3000, "block_size": 16},
    "cost_model": {"type": "profile", "profile": "h200/llama-3-8b"},
}


def make_experiment(**changes: Any) -> Experiment:
    return Experiment.from_mapping({**SETTINGS, **changes})


class Slower:
    """A server whose steps take so many times what is predicted, by their kind, with some noise."""

    def __init__(self, decode: float, other: float, noise: float = 0.0) -> None:
        self.decode, self.other, self.noise = decode, other, noise
        self.rng = np.random.default_rng(1)

    def end_s(self, number: int, slices: Sequence[Slice], start_s: float, predicted_s: float) -> float:
        is_decode = not any(part.is_prefill for part in slices)
        return start_s + predicted_s * (self.decode if is_decode else self.other) * self.rng.lognormal(
            0.0, self.noise
        )


def serve(experiment: Experiment, decode: float = 1.0, other: float = 1.0, noise: float = 0.0) -> RunLog:
    """What such a server does with the experiment's requests."""
    return replay(experiment, make_workload(experiment), Slower(decode, other, noise))


def server_log(log: RunLog, *, with_tokens: bool, tmp_path: Any = "served") -> ServerLog:
    """What it writes down: of each request its first and last token, or every one."""
    from pathlib import Path

    requests = log.requests
    emitted = log.events["event"] == EMITTED
    row, time_s = log.events["request"][emitted], log.events["time_s"][emitted]
    times = [time_s[row == index] for index in range(len(requests["arrival_s"]))]
    return ServerLog(
        path=Path(tmp_path),
        request_id=tuple(requests["request_id"]),
        num_prompt_tokens=requests["num_prompt_tokens"],
        num_output_tokens=requests["num_output_tokens"],
        sent_s=requests["arrival_s"],
        queued_s=None,
        first_token_s=np.array([each[0] for each in times]),
        last_token_s=np.array([each[-1] for each in times]),
        token_times_s=tuple(times) if with_tokens else None,
        scheduled_s=requests["first_scheduled_at_s"],
    )
