"""Runs in which nothing is drawn: which they are, and that a sweep computes them once for all seeds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cbsim.schedulers.continuous import ContinuousScheduler
from cbsim.studies.experiment import Experiment
from cbsim.studies.intervals import across_replicates
from cbsim.studies.run import is_determined, make_cost_model, make_workload, run_experiment
from cbsim.studies.sweep import SweepProgress, sweep
from cbsim.workload.request import Request
from cbsim.workload.trace import TraceWorkload

TRACE = "request_id,arrival_s,num_prompt_tokens,num_output_tokens\n" + "".join(
    f"r{n},{0.05 * n},{8 + 3 * n % 40},{1 + 7 * n % 9}\n" for n in range(40)
)
FIXED: dict[str, Any] = {
    "type": "synthetic",
    "num_requests": 20,
    "arrivals": {"type": "constant", "rate_per_s": 10.0},
    "prompt_tokens": {"type": "fixed", "value": 16},
    "output_tokens": {"type": "fixed", "value": 4},
}


class Careless(ContinuousScheduler):
    """A third party's scheduler that says nothing of seeds."""


class Careful(ContinuousScheduler):
    """One that says it draws nothing."""

    uses_seed = False


class Shuffled(TraceWorkload):
    """A third party's workload that makes requests of its own from a trace."""

    def requests(self) -> Iterator[Request]:
        """Whatever."""
        return super().requests()


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "t.csv").write_text(TRACE)
    return {
        "name": "fixed",
        "workload": {"type": "trace", "path": str(tmp_path / "t.csv")},
        "scheduler": {"type": "continuous", "max_num_seqs": 4},
        "cost_model": {"type": "constant", "step_s": 0.1},
        "kv_cache": {"num_blocks": 100},
        "slo": {"ttft_s": 2.0},
    }


def experiment(config: dict[str, Any], **changes: Any) -> Experiment:
    return Experiment.from_mapping(config, {key.replace("__", "."): value for key, value in changes.items()})


DETERMINED: list[dict[str, Any]] = [
    {},
    {"workload": FIXED},
    {"workload": FIXED | {"arrivals": {"type": "all_at_once"}}},
    {"workload": FIXED | {"concurrency": 2, "think_time_s": 0.5}},
    {"replicas__router": "random"},
    {"replicas__count": 2, "replicas__router": "least_kv"},
    {"scheduler": {"type": "preemptive", "policy": "sjf"}},
    {"scheduler": {"type": "preemptive", "policy": "sjf", "length_knowledge": "prompt_only"}},
    {"scheduler": {"type": "tests.studies.test_deterministic_runs:Careful", "max_num_seqs": 4}},
    {"cost_model": {"type": "profile", "profile": "h200/llama-3-8b"}},
]
DRAWN: list[dict[str, Any]] = [
    {"workload__type": "resampled"},
    {"workload__type": "tests.studies.test_deterministic_runs:Shuffled"},
    {"workload": FIXED | {"arrivals": {"type": "poisson", "rate_per_s": 10.0}}},
    {"workload": FIXED | {"output_tokens": {"type": "uniform", "min": 1, "max": 9}}},
    {"workload": FIXED | {"sessions": {"think_time_s": 1.0}}},
    {"workload": FIXED | {"concurrency": 2, "think_time_s": 0.5, "think_time_cv": 1.0}},
    {"replicas__count": 2, "replicas__router": "random"},
    {
        "scheduler": {
            "type": "preemptive",
            "policy": "sjf",
            "length_knowledge": "predicted",
            "prediction_error": 0.5,
        }
    },
    {"scheduler": {"type": "tests.studies.test_deterministic_runs:Careless", "max_num_seqs": 4}},
]


def told(config: dict[str, Any], changes: dict[str, Any]) -> bool:
    made = experiment(config, **changes)
    return is_determined(made, make_workload(made), make_cost_model(made))


@pytest.mark.parametrize("changes", DETERMINED)
def test_a_run_that_draws_nothing_is_the_same_under_any_seed(
    config: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert told(config, changes)
    first, second = (run_experiment(experiment(config, **changes, seed=seed)) for seed in (0, 1))
    for name in ("requests", "steps", "events"):
        assert getattr(first, name).equals(getattr(second, name))


@pytest.mark.parametrize("changes", DRAWN)
def test_a_run_that_may_draw_is_not_taken_for_another(
    config: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert not told(config, changes)


def contents(folder: Path) -> dict[str, Any]:
    """Every file's bytes, without the time that the computation took."""
    read: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "summary.json":
            read[str(path.relative_to(folder))] = json.loads(path.read_text()) | {"simulation": None}
        elif path.is_file():
            read[str(path.relative_to(folder))] = path.read_bytes()
    return read


class Counting:
    """Counts the runs of a sweep."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seeds: list[int] = []
        monkeypatch.setattr(sys.modules[sweep.__module__], "run_experiment", self)

    def __call__(self, experiment: Experiment) -> Any:
        self.seeds.append(experiment.seed)
        return run_experiment(experiment)


def replicated(config: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
    return config | {"sweep": {"scheduler.max_num_seqs": [2, 4], "seed": seeds}}


def test_replicates_of_a_determined_run_are_computed_once_with_the_same_bytes(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = Counting(monkeypatch)
    table = sweep(replicated(config, [0, 1, 2]), tmp_path / "shared")
    assert ran.seeds == [0, 0]
    assert table["seed"].tolist() == [0, 1, 2] * 2
    assert table["point"].nunique() == 6
    monkeypatch.setattr("cbsim.studies.run.is_determined", lambda *_: False)
    sweep(replicated(config, [0, 1, 2]), tmp_path / "each")
    assert len(ran.seeds) == 6 + 2
    assert contents(tmp_path / "shared") == contents(tmp_path / "each")


def test_what_observers_wrote_is_copied_too(config: dict[str, Any], tmp_path: Path) -> None:
    table = sweep(replicated(config, [0, 1]) | {"observers": [{"type": "csv"}]}, tmp_path / "out")
    written = [
        {path.name for path in (tmp_path / "out" / "points" / point).iterdir()} for point in table["point"]
    ]
    assert written[0] == written[1]
    assert any(name.endswith(".csv") for name in written[0])


def test_seeds_added_later_run_nothing(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = Counting(monkeypatch)
    sweep(replicated(config, [5]), tmp_path / "out")
    states: list[SweepProgress] = []
    table = sweep(replicated(config, [4, 5, 6]), tmp_path / "out", progress=states.append)
    assert ran.seeds == [5, 5]
    assert [(state.num_reused, state.num_done) for state in states] == [(2, n) for n in range(5)]
    widths = across_replicates(table)
    assert (widths["ttft_s.p99.high"] == widths["ttft_s.p99.low"]).all()


def test_a_folder_that_cannot_be_written_harms_no_other_seed(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = config | {"sweep": {"seed": [0, 1, 2]}}
    keys = sweep(alone, tmp_path / "out")["point"].tolist()
    points = [tmp_path / "out" / "points" / key for key in keys]
    for point in points:
        for path in point.iterdir():
            path.unlink()
    for point in (points[0], points[2]):
        (point / "notes.md").write_text("mine")
    ran = Counting(monkeypatch)
    table = sweep(alone, tmp_path / "out")
    assert table["error"].notna().tolist() == [True, False, True]
    assert ran.seeds == [0, 1]
    assert (points[2] / "notes.md").read_text() == "mine"


def test_a_changed_profile_is_another_point(config: dict[str, Any], tmp_path: Path) -> None:
    shipped = Path(__file__).resolve().parents[2] / "calibration/profiles/h200/llama-3-8b/cost.json"
    copied = tmp_path / "cost.json"
    points = []
    for device in ("h200_sxm", "another"):
        copied.write_text(json.dumps(json.loads(shipped.read_text()) | {"device": device}))
        settings = config | {"cost_model": {"type": "profile", "profile": str(tmp_path)}}
        points.append(sweep(settings, tmp_path / "out")["point"][0])
    assert points[0] != points[1]
