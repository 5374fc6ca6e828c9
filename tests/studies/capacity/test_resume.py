"""Searches that were killed go on, and nothing is run twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cbsim.base.errors import CbsimError
from cbsim.cli import main
from cbsim.results.output import check_target
from cbsim.show.capacity_text import method
from cbsim.studies.capacity import CapacityInterrupted, CapacityProgress, Plan, capacity
from cbsim.studies.capacity.answer import save_capacity, to_json
from cbsim.studies.experiment import Experiment
from cbsim.studies.probe import ProbeStore
from cbsim.studies.run import run_experiment

CONFIG: dict[str, Any] = {
    "name": "small",
    "workload": {
        "type": "synthetic",
        "num_requests": 120,
        "arrivals": {"type": "poisson", "rate_per_s": 0.3},
        "prompt_tokens": {"type": "fixed", "value": 8},
        "output_tokens": {"type": "fixed", "value": 1},
    },
    "scheduler": {"type": "continuous", "max_num_seqs": 1},
    "cost_model": {"type": "constant", "step_s": 1.0},
    "kv_cache": {"num_blocks": 100},
    "slo": {"ttft_s": 5.0},
}
FIXED = CONFIG["workload"] | {"arrivals": {"type": "constant", "rate_per_s": 0.3}}
PLAN = Plan(share=0.9, num_replicates=2, tolerance=0.3)
KILLED = f"""
import os, sys
from cbsim.studies.capacity import Plan, capacity
probe = sys.modules["cbsim.studies.probe"]
calls = []
def die(experiment, run=probe.run_experiment, **settings):
    calls.append(1)
    return run(experiment, **settings) if len(calls) < 5 else os._exit(9)
probe.run_experiment = die
capacity({CONFIG!r}, {PLAN!r}, out="{{out}}")
"""


class Counting:
    """Counts runs; breaks off at one of them if told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_at: int = 0) -> None:
        self.num_runs = 0
        self.stop_at = stop_at
        monkeypatch.setattr(sys.modules[ProbeStore.__module__], "run_experiment", self)

    def __call__(self, experiment: Experiment, **settings: Any) -> Any:
        self.num_runs += 1
        if self.num_runs == self.stop_at:
            raise KeyboardInterrupt
        return run_experiment(experiment, **settings)


def test_a_killed_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = Counting(monkeypatch)
    whole = capacity(CONFIG, PLAN)
    num_runs, ran.num_runs = ran.num_runs, 0
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED.replace("{out}", str(out))], check=False)
    assert killed.returncode == 9
    assert len(list((out / "points").glob("*.json"))) == 4
    resumed = capacity(CONFIG, PLAN, out=out)
    assert ran.num_runs == num_runs - 4
    assert to_json(resumed) == to_json(whole)
    assert resumed.curve.equals(whole.curve)
    save_capacity(resumed, out)
    assert capacity(CONFIG, PLAN, out=out).curve.equals(whole.curve)
    assert ran.num_runs == num_runs - 4


def test_a_plan_with_more_replicates_runs_only_those(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = Counting(monkeypatch)
    capacity(CONFIG, PLAN, out=tmp_path)
    first, ran.num_runs = ran.num_runs, 0
    capacity(CONFIG, Plan(share=0.9, num_replicates=3, tolerance=0.3), out=tmp_path)
    assert 0 < ran.num_runs < first


def test_a_damaged_file_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = capacity(CONFIG, PLAN, out=tmp_path)
    path = next((tmp_path / "points").iterdir())
    text = path.read_text()
    ran = Counting(monkeypatch)
    altered = text.replace('"span_s": ', '"span_s": 1')
    assert altered != text
    for damaged in ("", "[]", "{}", text[:100], altered):
        path.write_text(damaged)
        ran.num_runs = 0
        assert capacity(CONFIG, PLAN, out=tmp_path).curve.equals(before.curve)
        assert ran.num_runs == 1
        assert path.stat().st_size > 100


def test_replicates_that_draw_nothing_are_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = CONFIG | {"workload": FIXED}
    ran = Counting(monkeypatch)
    answer = capacity(fixed, PLAN)
    once, ran.num_runs = ran.num_runs, 0
    monkeypatch.setattr("cbsim.studies.run.is_determined", lambda *_: False)
    each = capacity(fixed, PLAN)
    assert ran.num_runs == 2 * once
    assert to_json(each) == to_json(answer)
    assert each.curve.equals(answer.curve)
    assert answer.curve["seed"].nunique() == 2
    assert method(answer) == "nothing in these runs is drawn: replicates are identical and give no intervals"


def test_equal_contenders_are_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = Counting(monkeypatch)
    capacity(CONFIG, PLAN)
    alone, ran.num_runs = ran.num_runs, 0
    twice = {"sweep": {"scheduler": [{"type": "continuous", "max_num_seqs": 1}] * 2}}
    progress: list[CapacityProgress] = []
    answer = capacity(CONFIG | twice, PLAN, progress=progress.append)
    assert ran.num_runs == alone
    searches = [(state.num_done, state.num_tasks) for state in progress if state.phase == "searches"]
    assert searches == [(0, 2), (1, 2), (2, 2)]
    assert progress[0].time_left_s is None
    assert progress[1].time_left_s == progress[1].elapsed_s > 0
    assert progress[-1].time_left_s == 0
    assert len(answer.contenders) == 2


def test_an_interrupted_search_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Counting(monkeypatch, stop_at=4)
    with pytest.raises(CapacityInterrupted) as caught:
        capacity(CONFIG, PLAN, out=tmp_path / "out")
    assert str(caught.value) == f"3 runs kept in {tmp_path / 'out'}; the same call goes on"
    Counting(monkeypatch, stop_at=1)
    (tmp_path / "c.yaml").write_text(repr(CONFIG))
    command = ["capacity", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "again")]
    stopped = CliRunner().invoke(main, command)
    assert stopped.exit_code == 130
    assert stopped.stderr.endswith(f"0 runs kept in {tmp_path / 'again'}; the same call goes on\n")


def test_what_a_search_has_begun_is_no_place_for_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Counting(monkeypatch, stop_at=3)
    with pytest.raises(CapacityInterrupted):
        capacity(CONFIG, PLAN, out=tmp_path / "out")
    with pytest.raises(CbsimError, match="a folder that is no sweep stands there"):
        check_target(tmp_path / "out", "sweep")
    for name in ("curve.parquet", "curve.csv", ".curve.csv.1500015000.partial", ".capacity.json.77.partial"):
        (tmp_path / "out" / name).touch()  # killed as it wrote its answer
        check_target(tmp_path / "out", "capacity")
    (tmp_path / "out" / "notes.md").write_text("mine")
    with pytest.raises(CbsimError, match="a folder that is no capacity stands there"):
        capacity(CONFIG, PLAN, out=tmp_path / "out")
