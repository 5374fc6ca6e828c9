"""A recorded run against its simulation: figures side by side, and the forced replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cbsim.lab.validate.replay import replay
from cbsim.lab.validate.server_log import Arrivals, LoggedWorkload, ServerLog
from cbsim.lab.validate.side_by_side import (
    Figure,
    latency_figures,
    log_statistics,
    rates,
    statistics,
    throughput_figures,
)
from cbsim.lab.validate.step_counts import Engine
from cbsim.lab.validate.step_gaps import waiting_since
from cbsim.lab.validate.token_clock import RecordedTokens
from cbsim.results.run_log import RunLog
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import simulate
from cbsim.workload.request import RequestState

MAX_PASSES = 5


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """What the server measured beside what the simulation says."""

    figures: list[Figure]
    log: RunLog
    """Of the simulation."""
    notes: list[str]


def compare_with_log(experiment: Experiment, log: ServerLog, arrivals: Arrivals = "sent") -> RecordedRun:
    """Simulate a log's requests by an experiment's settings; latencies count from `arrivals` in both."""
    simulated, notes = simulate(experiment, log.workload(arrivals))
    real = {name: statistics(values) for name, values in log.latencies(arrivals).items()}
    finished = simulated.requests["state"] == RequestState.FINISHED
    makespan_s = float(log.last_token_s.max() - log.arrival_s(arrivals).min())
    simulated_s = float(simulated.end_s - simulated.requests["arrival_s"].min())
    served = int(simulated.requests["num_output_tokens"][finished].sum())
    figures = latency_figures(real, log_statistics(simulated)) + throughput_figures(
        rates(len(log), int(log.num_output_tokens.sum()), makespan_s),
        rates(int(finished.sum()), served, simulated_s),
    )
    num_lost = int((~finished).sum())
    lost = [f"{num_lost:,} requests did not finish in the simulation"] if num_lost else []
    return RecordedRun(figures, simulated, [*log.notes, *notes, *lost])


def replay_log(experiment: Experiment, log: ServerLog) -> RecordedTokens:
    """Force the simulated clock to a log's recorded tokens, and tell what contradicts them.

    How many steps lie between two recorded instants isn't in a log of first and last tokens: a first pass
    estimates it, further ones take the counts that agree with all requests' tokens. The pass with the fewest
    contradictions is told.
    """
    budget = int(getattr(experiment.scheduler, "max_tokens_per_step", 2**31))
    cap = int(getattr(experiment.scheduler, "chunk_size", 0)) or budget
    engine = Engine(2 if experiment.scheduler.async_scheduling else 1, min(cap, budget))
    best: RecordedTokens | None = None
    counts = None
    for _ in range(MAX_PASSES):
        clock = RecordedTokens(log, budget, counts)
        replay(experiment, LoggedWorkload(log, waiting_since(log)), clock)
        if best is None or len(clock.contradictions) < len(best.contradictions):
            best = clock
        better = clock.gaps.counts(log, engine)
        if not clock.contradictions or _equal(counts, better):
            break
        counts = better
    assert best is not None
    return best


def _equal(first: Any, second: Any) -> bool:
    return first is not None and bool(np.array_equal(first, second))
