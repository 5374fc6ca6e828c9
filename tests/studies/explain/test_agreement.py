"""A run whose trace has changed since is not explained by another, and its reader is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbsim.base.errors import CbsimError
from cbsim.studies.explain.batch_step import BatchStep
from cbsim.studies.explain.source import Source, Window
from cbsim.studies.run import run_experiment
from tests.studies.explain.cases import PREEMPTED, Row, experiment


def steps_of(run: Source, first: int = 0, last: int | None = None) -> list[BatchStep]:
    shown: list[BatchStep] = []
    run.batch_steps(Window(0, first, last), shown.append)
    return shown


def test_a_folder_whose_trace_has_changed_is_not_explained_by_another_run(tmp_path: Path) -> None:
    run_experiment(experiment(tmp_path, PREEMPTED)).save(tmp_path / "run")
    experiment(tmp_path, PREEMPTED | {"d": (2.0, 1, 1)})
    shown: list[BatchStep] = []
    with pytest.raises(CbsimError) as caught:
        Source("run", folder=tmp_path / "run").batch_steps(Window(0, 0), shown.append)
    first, reason, allowed = caught.value.problems
    assert first == (
        f"{tmp_path}/run: can't be explained step by step: it has no batches.parquet, and simulating it "
        "again differs from step 2 on: num_waiting 2, was 1"
    )
    assert allowed == (
        f"{tmp_path}/run: allowed: cbsim run {tmp_path}/run/config.yaml --out DIR, then cbsim explain DIR"
    )
    assert reason == f"{tmp_path}/run: its input {tmp_path}/trace.jsonl has changed since"
    assert [step.step for step in shown] == [0, 1]


@pytest.mark.parametrize(
    ("changed", "how"),
    [
        (
            {f"x{name}": row for name, row in PREEMPTED.items()},
            "has in step 0 a request 'xa', which the folder has not",
        ),
        (
            {"a": (0.0, 2, 5), "b": (0.0, 2, 3), "c": (0.0, 2, 3)},
            "differs from step 0 on: request 'a' has num_output_tokens 5, was 3",
        ),
        (
            {"b": (0.0, 2, 3), "a": (0.5, 2, 3), "c": (0.5, 2, 3)},
            "differs from step 0 on: num_running 1, was 3",
        ),
    ],
    ids=["names", "counts", "times"],
)
def test_nor_by_other_requests(changed: dict[str, Row], how: str, tmp_path: Path) -> None:
    run_experiment(experiment(tmp_path, PREEMPTED)).save(tmp_path / "run")
    experiment(tmp_path, changed)
    shown: list[BatchStep] = []
    with pytest.raises(CbsimError) as caught:
        Source("run", folder=tmp_path / "run").batch_steps(Window(0, 0, 0), shown.append)
    assert caught.value.problems[0].endswith(f"simulating it again {how}")
    assert caught.value.problems[1].endswith("trace.jsonl has changed since")
    assert shown == []


def test_requests_that_come_at_the_same_steps_at_other_times_are_others(tmp_path: Path) -> None:
    """The second arrives while the first step runs, earlier or later: the steps are the same."""
    was = {"a": (0.0, 2, 2), "b": (0.25, 2, 1)}
    run_experiment(experiment(tmp_path, was)).save(tmp_path / "run")
    experiment(tmp_path, was | {"b": (0.75, 2, 1)})
    run = Source("run", folder=tmp_path / "run")
    assert len(steps_of(run, 0, 0)) == 1
    with pytest.raises(CbsimError, match=r"from step 1 on: request 'b' has arrival_s 0.75, was 0.25"):
        steps_of(run)


@pytest.mark.parametrize("is_recorded", [False, True])
def test_a_trace_that_has_changed_further_on_is_remarked(is_recorded: bool, tmp_path: Path) -> None:
    run_experiment(experiment(tmp_path, PREEMPTED, output={"batches": is_recorded})).save(tmp_path / "run")
    run = Source("run", folder=tmp_path / "run")
    assert len(steps_of(run)) == 5
    assert run.remarks == []
    experiment(tmp_path, PREEMPTED | {"d": (9.0, 1, 1)})
    assert len(steps_of(run, 0, 4)) == 5
    remark = (
        f"{tmp_path}/run: its input {tmp_path}/trace.jsonl has changed since; the steps up to here are "
        "simulated again from it, and go as they went"
    )
    assert run.remarks == ([] if is_recorded else [remark])


def test_a_trace_that_is_gone_is_named(tmp_path: Path) -> None:
    run_experiment(experiment(tmp_path, PREEMPTED)).save(tmp_path / "run")
    (tmp_path / "trace.jsonl").unlink()
    with pytest.raises(CbsimError, match="no such file"):
        steps_of(Source("run", folder=tmp_path / "run"))
