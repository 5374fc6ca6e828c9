"""Profiles from a framework's own kernels, and what they say of a run, simulated and not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from calibration.served_runs.sample import ROLES, ServedRun
from calibration.served_runs.servers import (
    REQUESTS_PER_CLIENT,
    Settings,
    experts_framework,
    experts_kernel,
    gpu_of,
    mean_length,
    reduces_with_norms,
    release_of,
    set_up,
    worker,
)
from cbsim.base.errors import CbsimError
from cbsim.cost import StepShape
from cbsim.lab.calibrate.fit import fit_unreported
from cbsim.lab.calibrate.nvidia import DISTRIBUTION, Wanted, import_meta, import_points
from cbsim.lab.calibrate.nvidia_tables import NvidiaTables, Release
from cbsim.lab.calibrate.point import Point
from cbsim.lab.calibrate.pointsfile import Meta, read_points
from cbsim.lab.calibrate.profile_folder import COST, POINTS, written_points
from cbsim.results.result import Result
from cbsim.specs import ModelSpec, ParallelSpec
from cbsim.studies.cluster_config import SECTIONS
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_cost_model, run_experiment


class ProfileOrder(NamedTuple):
    """A profile to be imported, and where to."""

    model: ModelSpec
    system: str
    framework: str
    experts_framework: str | None
    experts_kernel: str | None
    reduces_with_norms: bool | None
    release: Release | None
    distribution: str
    parallel: ParallelSpec
    wheel: Path | None
    older: Path | None
    folder: Path


class RunOrder(NamedTuple):
    """A run to be predicted: plain values, which go to another process."""

    run: ServedRun
    config: dict[str, Any]
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        """The run and what it is predicted with, the profile apart."""
        settings = _without_profiles(self.config) | self.settings
        text = json.dumps(settings, sort_keys=True, default=str)
        return f"{self.run.id} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _without_profiles(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a prediction depends on, those of pools too."""
    found = {key: value for key, value in config.items() if key not in ("cost_model", "engine")}
    if "cluster" in found:
        found["cluster"] = [_without_profiles(pool) for pool in found["cluster"]["pools"]]
    return found


class Prediction(NamedTuple):
    """Means of a run as predicted, seconds."""

    ttft_s: float
    tpot_s: float
    formula_tpot_s: float


def profile_order(run: ServedRun, wheel: Path | None, older: Path | None, out: Path) -> ProfileOrder:
    """The profile that a run is predicted with."""
    model, parallel = run.checkpoint.load(run.framework, run.system), run.parallel
    split, experts = f"tp{parallel.tensor}-ep{parallel.expert}-dp{parallel.data}", experts_framework(run)
    name = f"{run.system}-{model.name}-{run.checkpoint.dtype}-{run.framework}-{split}"
    kernel, fused = experts_kernel(run), reduces_with_norms(run)
    release = release_of(run)
    numbers = ".".join(map(str, release.version)) if release else None
    name += "".join(f"-{part}" for part in (experts, kernel, "fused" if fused else None, numbers) if part)
    folder = out / "profiles" / name
    return ProfileOrder(
        model,
        run.system,
        run.framework,
        experts,
        kernel,
        fused,
        release,
        run.checkpoint.distribution,
        parallel,
        wheel,
        older,
        folder,
    )


def import_profile(order: ProfileOrder) -> str | None:
    """Import a profile; what is there already is kept where the tables say the same.

    Where no experts were timed with their tokens spread as wanted the usual spread counts. Returns what the
    tables lack, None for nothing.
    """
    lacking = None
    for distribution in dict.fromkeys((order.distribution, DISTRIBUTION)):
        try:
            _import(order, distribution)
        except CbsimError as error:
            lacking = lacking or str(error)
        else:
            return None
    return lacking


def _import(order: ProfileOrder, distribution: str) -> None:
    tables = NvidiaTables(order.system, order.wheel, order.older, order.release)
    wanted = Wanted(
        order.model,
        order.parallel,
        order.framework,
        order.framework,
        experts_framework=order.experts_framework,
        experts_kernel=order.experts_kernel,
        distribution=distribution,
        reduces_with_norms=order.reduces_with_norms,
    )
    points = import_points(tables, wanted)
    meta = import_meta(tables, wanted, datetime.now(UTC).date().isoformat())
    write_quick_profile(order.folder, points, meta)


def write_quick_profile(folder: Path, points: Sequence[Point], meta: Meta) -> None:
    """Fit points and write them, without the report on how wrong the form is, which takes most of the time.

    Nothing is fitted where the folder's `cost.json` was fitted to the same points. Raises as `write_profile`.
    """
    with written_points(folder, points, meta) as scratch:
        new, old = scratch / POINTS, folder / POINTS
        if (folder / COST).exists() and old.exists() and old.read_bytes() == new.read_bytes():
            (folder / COST).replace(scratch / COST)
        else:
            fit_unreported(read_points(new), meta, new).save(scratch / COST)


def run_order(
    run: ServedRun,
    profiles: Sequence[Path],
    changes: Settings | None = None,
    requests_per_client: int = REQUESTS_PER_CLIENT,
    engine: str = "auto",
) -> RunOrder:
    """The closed loop that repeats a run, with a profile for each of its `servers`."""
    config: dict[str, Any] = {
        "name": "served-run",
        "model": run.checkpoint.load(run.framework, run.system).model_dump(mode="json", exclude_none=True),
        "gpu": gpu_of(run.system).name,
        "engine": engine,
        "parallel": run.parallel.model_dump(),
        "workload": {
            "type": "synthetic",
            "num_requests": requests_per_client * run.clients,
            "concurrency": run.clients,
            "arrivals": {"type": "all_at_once"},
        },
        "kv_cache": {"prefix_caching": False},
        "cost_model": {"type": "profile", "profile": str(profiles[-1])},
    }
    if run.prefill is not None:
        config["cluster"] = {
            "pools": [
                {"name": role, "role": role, **pool(server, profile, changes or {})}
                for role, server, profile in zip(ROLES, run.servers, profiles, strict=True)
            ]
        }
    return RunOrder(run, config, {**set_up(run), **(changes or {})})


def pool(server: ServedRun, profile: Path, changes: Settings) -> dict[str, Any]:
    """Servers of one kind as a pool of a cluster."""
    sections: dict[str, Any] = {
        "count": server.num_workers,
        "parallel": server.parallel.model_dump(),
        "cost_model": {"type": "profile", "profile": str(profile)},
    }
    for key, value in {**worker(server), **changes}.items():
        section, _, name = key.partition(".")
        if name and section in SECTIONS:
            sections.setdefault(section, {})[name] = value
        elif section in SECTIONS:
            sections[section] = value
    return sections


def predict(order: RunOrder) -> Prediction | str:
    """Simulate a run; the formula stands beside it. Returns what speaks against it instead."""
    try:
        experiment = Experiment.of(order.config, order.settings)
        result = run_experiment(experiment)
        summary = result.summary
    except CbsimError as error:
        return str(error)
    if order.run.seats is not None:
        return Prediction(*_from_taking_over(result), formula_tpot_s(order.run, experiment))
    means: Mapping[str, Any] = {key: summary[key] for key in ("ttft_s", "tpot_s")}
    if any(value is None for value in means.values()):
        return "no request was served"
    return Prediction(means["ttft_s"]["mean"], means["tpot_s"]["mean"], formula_tpot_s(order.run, experiment))


def _from_taking_over(result: Result) -> tuple[float, float]:
    """Mean TTFT and TPOT, seconds, where those who decode have fewer seats than clients: they bring the first
    token as well, when they take a request over.
    """
    visits, requests = result.visits, result.requests
    assert visits is not None
    taken_over = visits[visits["role"] == "decode"].set_index("request_id")["admitted_at_s"]
    requests = requests.set_index("request_id").loc[taken_over.index]
    ttft_s = taken_over - requests["arrival_s"]
    tpot_s = (requests["finished_at_s"] - taken_over) / (requests["num_output_tokens"] - 1)
    return float(ttft_s.mean()), float(tpot_s.mean())


def formula_tpot_s(run: ServedRun, experiment: Experiment) -> float:
    """TPOT with the same step costs and nothing simulated.

    All clients decode, half of the answer behind them, and while one gets its answer each of the others sends
    one prompt: decode(B, isl + osl / 2) + (B - 1) / osl x prefill(isl). With ranks of data parallelism B is
    one rank's, and all of them do the same at once. Servers that decode alone have no prompts in between.
    """
    cost = make_cost_model(experiment)
    prompt, answer = (mean_length(run, tokens) for tokens in (run.num_prompt_tokens, run.num_output_tokens))
    clients, context = run.seats or run.clients_of_rank, prompt + answer // 2
    num_others, window = run.parallel.data - 1, experiment.model.window
    in_window = clients * min(context, window) if window else 0
    decodes = StepShape((), 0, clients, clients * context, context, in_window, num_others * clients)
    decode_s = cost.step_s(decodes)
    if run.prefill is not None:
        return decode_s
    prefill_s = cost.step_s(StepShape(((prompt, 0),), 1, 0, 0, 0, num_other_tokens=num_others * prompt))
    return decode_s + (clients - 1) / answer * prefill_s
