"""Files of observers in run folders, sweeps and capacities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

import cbsim
from cbsim.cli import main
from cbsim.observers.csv_observer import CsvObserver
from cbsim.results.slo import Slo
from cbsim.studies.capacity.search import Plan, SearchTask
from cbsim.studies.experiment import Experiment
from tests.observers.test_errors import EXPERIMENT
from tests.observers.watched import setting

SWEEP: dict[str, Any] = {
    **EXPERIMENT,
    "observers": [{"type": "csv", "steps": True}],
    "sweep": {"cost_model.step_s": [0.1, 0.2]},
}


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = cbsim.run(EXPERIMENT | {"observers": ["csv", "memory", "metrics"]})
    assert list(tmp_path.iterdir()) == []
    csv = result.observers[0]
    assert isinstance(csv, CsvObserver)
    assert set(csv.events["request_id"]) == {f"r{i}" for i in range(5)}
    result.save(tmp_path / "later")
    assert (tmp_path / "later" / "events.csv").is_file()
    assert len(cbsim.load_run(tmp_path / "later").requests) == 5


def test_one_observer_watches_one_run_after_the_other() -> None:
    csv = CsvObserver()
    counts = []
    for limit in (3, 5):
        cbsim.run(EXPERIMENT, overrides={"workload.limit": limit}, observers=[csv])
        counts.append(len(set(csv.events["request_id"])))
    assert counts == [3, 5]


def test_the_configuration_of_the_folder_makes_the_same_files_again(tmp_path: Path) -> None:
    cbsim.run(EXPERIMENT | {"observers": ["csv", "memory"]}, out=tmp_path / "one")
    cbsim.run(tmp_path / "one" / "config.yaml", out=tmp_path / "two")
    for name in ("events.csv", "memory.parquet", "memory_requests.parquet", "config.yaml"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    cbsim.run(EXPERIMENT, out=tmp_path / "three")
    assert "observers" not in (tmp_path / "three" / "config.yaml").read_text()


def test_every_point_of_a_sweep_has_its_own(tmp_path: Path) -> None:
    table = cbsim.sweep(SWEEP, out=tmp_path)
    points = [tmp_path / "points" / key for key in table["point"]]
    for point, step_s in zip(points, (0.1, 0.2), strict=True):
        assert pd.read_csv(point / "steps.csv")["duration_s"].unique().tolist() == [step_s]
        assert (point / "events.csv").is_file()
    states: list[Any] = []
    cbsim.sweep(SWEEP, out=tmp_path, progress=states.append)
    assert states[-1].num_reused == 2
    (points[0] / "steps.csv").unlink()
    cbsim.sweep(SWEEP, out=tmp_path, progress=states.append)
    assert (states[-1].num_reused, states[-1].num_done, states[-1].num_failed) == (1, 1, 0)
    assert (points[0] / "steps.csv").is_file()


def test_a_run_with_another_seed_that_draws_nothing_has_the_files_too(tmp_path: Path) -> None:
    table = cbsim.sweep(SWEEP | {"sweep": {"replicates": 2}}, out=tmp_path)
    files = [(tmp_path / "points" / key / "events.csv").read_bytes() for key in table["point"]]
    assert len(files) == 2
    assert files[0] == files[1]


def test_nobody_watches_the_runs_of_a_search_for_a_capacity() -> None:
    settings = Experiment.from_mapping({**EXPERIMENT, "observers": ["log", "memory"]}).resolved()
    task = SearchTask(settings, ("workload", "rate_scale"), Plan(share=0.9), Slo({}))
    assert len(Experiment.from_mapping(settings).observers) == 2
    assert task.at(2.0).observers == []


@pytest.mark.parametrize("more", [[], ["--timeline"]])
def test_a_folder_with_observers_files_is_replaced_by_a_run(tmp_path: Path, more: list[str]) -> None:
    (tmp_path / "e.yaml").write_text(
        "workload: {type: trace, path: azure-like.csv, limit: 3}\nscheduler: vllm\nobservers: [csv]\n"
    )
    for _ in range(2):
        arguments = ["run", str(tmp_path / "e.yaml"), "--out", str(tmp_path / "run"), "--no-plots", *more]
        ran = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        assert (tmp_path / "run" / "events.csv").is_file()


def test_they_are_listed_with_what_they_do() -> None:
    lines = CliRunner().invoke(main, ["list", "observers"]).output.splitlines()
    assert [line.split()[0] for line in lines] == ["observers:", "log", "metrics", "memory", "csv"]
    assert all(line.endswith(".") for line in lines[1:])


def test_what_is_watched_of_handed_over_requests_is_the_same_interpreted_or_not_watched(
    tmp_path: Path,
) -> None:
    pools = [{"name": "p", "role": "prefill"}, {"name": "d", "role": "decode"}]
    mapping = setting(num_blocks=40, engine="interpreted") | {"cluster": {"pools": pools}}
    mapping["workload"] = {
        "type": "synthetic",
        "num_requests": 6,
        "arrivals": {"type": "constant", "rate_per_s": 1.0},
        "prompt_tokens": {"type": "fixed", "value": 8},
        "output_tokens": {"type": "fixed", "value": 3},
    }
    watched = cbsim.run(mapping | {"observers": ["csv"]}, out=tmp_path / "run")
    told = pd.read_csv(tmp_path / "run" / "events.csv")
    # Each request finishes a visit to both pools.
    assert (told["event"] == "finished").sum() == 2 * watched.summary["num_finished"] == 12
    assert watched.requests.equals(cbsim.run(mapping).requests)
