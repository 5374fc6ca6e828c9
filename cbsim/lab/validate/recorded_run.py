"""A recorded run against its simulation: figures side by side, and the forced replay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cbsim.lab.validate.replay import replay
from cbsim.lab.validate.server_log import Arrivals, LoggedWorkload, ServerLog
from cbsim.lab.validate.side_by_side import Figure, rates, side_by_side, statistics
from cbsim.lab.validate.step_counts import Engine, waiting_since
from cbsim.lab.validate.token_clock import RecordedTokens
from cbsim.results.metrics import request_latencies
from cbsim.results.run_log import distinct_gaps
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import simulate
from cbsim.workload.request import RequestState

MAX_PASSES = 5


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """What the server measured beside what the simulation says."""

    figures: list[Figure]
    notes: list[str]


def compare_with_log(experiment: Experiment, log: ServerLog, arrivals: Arrivals = "sent") -> RecordedRun:
    """Simulate a log's requests by an experiment's settings; latencies count from `arrivals` in both."""
    simulated, notes = simulate(experiment, log.workload(arrivals))
    makespan_s = float(log.last_token_s.max() - log.arrival_s(arrivals).min())
    real = rates(len(log), int(log.num_output_tokens.sum()), makespan_s)
    for name, values in log.latencies(arrivals).items():
        real |= statistics(name, values)
    requests = simulated.requests
    finished = requests["state"] == RequestState.FINISHED
    served = int(requests["num_output_tokens"][finished].sum())
    told = rates(int(finished.sum()), served, float(simulated.end_s - requests["arrival_s"].min()))
    latencies = request_latencies(simulated)
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        told |= statistics(name, latencies[name])
    told |= statistics("itl_s", *distinct_gaps(simulated.gaps))
    num_lost = int((~finished).sum())
    lost = [f"{num_lost:,} requests did not finish in the simulation"] if num_lost else []
    return RecordedRun(side_by_side(real, told), [*log.notes, *notes, *lost])


def replay_log(experiment: Experiment, log: ServerLog) -> RecordedTokens:
    """Force the simulated clock to a log's recorded tokens, and tell what contradicts them.

    How many steps lie between two recorded instants isn't in a log of first and last tokens: a first pass
    estimates it, further ones take the counts that agree with all requests' tokens. The pass with the fewest
    contradictions is told.
    """
    budget = int(getattr(experiment.scheduler, "max_tokens_per_step", 2**31))
    cap = int(getattr(experiment.scheduler, "chunk_size", 0)) or budget
    engine = Engine(2 if experiment.scheduler.async_scheduling else 1, min(cap, budget))
    passes: list[RecordedTokens] = []
    counts = None
    while len(passes) < MAX_PASSES:
        clock = RecordedTokens(log, budget, counts)
        passes.append(clock)
        replay(experiment, LoggedWorkload(log, waiting_since(log)), clock)
        better = clock.gaps.counts(log, engine)
        if not clock.contradictions or (counts is not None and np.array_equal(counts, better)):
            break
        counts = better
    return min(passes, key=lambda clock: len(clock.contradictions))
