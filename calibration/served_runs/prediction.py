"""Profiles from a framework's own kernels, and what they say of a run, simulated and not."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from calibration.served_runs.assumptions import Assumption
from calibration.served_runs.sample import ServedRun
from calibration.served_runs.servers import SYSTEM, Series, Settings
from cbsim.cost import StepShape
from cbsim.lab.calibrate.named_spec import load_model
from cbsim.lab.calibrate.nvidia import SYSTEMS, Wanted, import_meta, import_points
from cbsim.lab.calibrate.nvidia_tables import NvidiaTables
from cbsim.lab.calibrate.profile_folder import write_profile
from cbsim.specs import ParallelSpec
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_cost_model, run_experiment


class ProfileOrder(NamedTuple):
    """A profile to be imported, and where to."""

    model: str
    framework: str
    tensor_parallel: int
    wheel: Path | None
    folder: Path


class RunOrder(NamedTuple):
    """A run to be predicted: plain values, which go to another process."""

    run: ServedRun
    config: dict[str, Any]
    settings: dict[str, Any]


class Prediction(NamedTuple):
    """Means of a run as predicted, seconds."""

    ttft_s: float
    tpot_s: float
    formula_tpot_s: float


def import_profile(order: ProfileOrder) -> None:
    """Import a profile; raises `CalibrationError` if the tables lack something."""
    tables = NvidiaTables(SYSTEM, order.wheel)
    model = load_model(order.model)
    wanted = Wanted(model, ParallelSpec(tensor=order.tensor_parallel), order.framework, order.framework)
    points = import_points(tables, wanted)
    meta = import_meta(tables, wanted, datetime.now(UTC).date().isoformat())
    write_profile(order.folder, points, meta)


def run_order(run: ServedRun, series: Series, assumption: Assumption, profile: Path) -> RunOrder:
    """The closed loop that repeats a run under an assumption."""
    config = {
        "name": "served-run",
        "model": series.model,
        "gpu": SYSTEMS[SYSTEM].gpu,
        "workload": {
            "type": "synthetic",
            "num_requests": assumption.requests_per_client * run.concurrency,
            "concurrency": run.concurrency,
            "arrivals": {"type": "all_at_once"},
            "prompt_tokens": {"type": "fixed", "value": run.num_prompt_tokens},
            "output_tokens": {"type": "fixed", "value": run.num_output_tokens},
        },
        "kv_cache": {"prefix_caching": False},
        "cost_model": {"type": "profile", "profile": str(profile)},
        "replicas": {"tensor_parallel": run.tensor_parallel},
    }
    settings: Settings = {**series.setup(run), **assumption.changes[series.framework](run)}
    return RunOrder(run, config, dict(settings))


def predict(order: RunOrder) -> Prediction:
    """Simulate a run; the formula stands beside it."""
    experiment = Experiment.of(order.config, order.settings)
    summary = run_experiment(experiment).summary
    return Prediction(
        summary["ttft_s"]["mean"], summary["tpot_s"]["mean"], formula_tpot_s(order.run, experiment)
    )


def formula_tpot_s(run: ServedRun, experiment: Experiment) -> float:
    """TPOT with the same step costs and nothing simulated.

    All clients decode, half of the answer behind them, and while one gets its answer each of the others sends
    one prompt: decode(B, isl + osl / 2) + (B - 1) / osl x prefill(isl).
    """
    cost = make_cost_model(experiment)
    context = run.num_prompt_tokens + run.num_output_tokens // 2
    decode_s = cost.step_s(StepShape((), 0, run.concurrency, run.concurrency * context, context))
    prefill_s = cost.step_s(StepShape(((run.num_prompt_tokens, 0),), 1, 0, 0, 0))
    return decode_s + (run.concurrency - 1) / run.num_output_tokens * prefill_s
