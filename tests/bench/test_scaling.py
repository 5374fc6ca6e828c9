"""A scaling study: the right experiments, each measured once; its tables, its picture, its folder."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from cbsim.bench import study as studying
from cbsim.bench.ledger import Entry, Ledger
from cbsim.bench.machine import Machine
from cbsim.bench.measure import Measured, measure_scaled
from cbsim.bench.process import in_fresh_process
from cbsim.bench.scaling import Axis, Scales, Study, parse_values
from cbsim.bench.scaling_tables import scaling_frame, scaling_tables
from cbsim.bench.study import Row, StudyInterrupted, StudyProgress, measure_study, time_left_s
from cbsim.cli import main
from cbsim.errors import CbsimError, ConfigError, WorkloadError
from cbsim.experiment import Experiment
from cbsim.pool import WorkerLost
from cbsim.report.scaling_plot import scaling_picture
from cbsim.request import Request
from cbsim.run import make_workload, simulate
from cbsim.units import MEGA
from cbsim.workload import Workload, WorkloadConfig

GENERATOR = {
    "type": "synthetic",
    "num_requests": 7,
    "arrivals": {"type": "poisson", "rate_per_s": 2.0},
    "prompt_tokens": {"type": "fixed", "value": 100},
    "output_tokens": {"type": "fixed", "value": 20},
}
TIMED = {key: value for key, value in GENERATOR.items() if key != "num_requests"} | {"duration_s": 5.0}
TRACE = "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(f"{i},100,5\n" for i in range(9))
SMALL = Scales(requests=(5, 30, 50), running=(2, 4), replicas=(1, 3))
MEASURED = Measured(
    num_requests=1000,
    num_steps=5000,
    cpu_s=0.05,
    peak_bytes=120 * MEGA,
    mean_running=6.5,
    bare_simpy_s=0.01,
)


def experiment(workload: dict[str, Any], **sections: Any) -> Experiment:
    return Experiment.from_mapping(
        {
            "name": "mine",
            "workload": workload,
            "scheduler": {"type": "vllm"},
            "cost_model": {"type": "constant", "step_s": 0.01},
            "kv_cache": {"num_blocks": 10_000},
            **sections,
        }
    )


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    (tmp_path / "t.csv").write_text(TRACE)
    return tmp_path / "t.csv"


@pytest.mark.parametrize("kind", ["generator", "timed", "window", "closed loop", "trace", "resampled"])
def test_every_point_has_the_requests_and_the_arrivals_it_should(kind: str, trace: Path) -> None:
    workload: dict[str, Any] = {
        "generator": GENERATOR,
        "timed": TIMED,
        "window": GENERATOR | {"start_s": 1.0, "end_s": 2.0, "limit": 3},
        "closed loop": GENERATOR | {"concurrency": 4, "think_time_s": 1.0},
        "trace": {"type": "trace", "path": str(trace), "limit": 8},
        "resampled": {"type": "resampled", "path": str(trace), "block_requests": 2},
    }[kind]
    points = Study(experiment(workload, replicas={"count": 2}, stop_at_s=3.0), SMALL).points
    assert [(point.axis, point.value) for point in points] == [
        *((Axis.REQUESTS, value) for value in SMALL.requests),
        *((Axis.RUNNING, value) for value in SMALL.running),
        *((Axis.REPLICAS, value) for value in SMALL.replicas),
    ]
    assert [point.num_requests for point in points] == [5, 30, 50, 60, 60, 30, 90]
    spans = {}
    for point in points:
        scaled = Experiment.from_mapping(point.settings)
        arrivals = [request.arrival_s for request in make_workload(scaled).requests()]
        assert len(arrivals) == make_workload(scaled).num_requests() == point.num_requests
        assert sum(1 for _ in make_workload(Experiment.from_mapping(point.small)).requests()) == 20
        spans[point.axis, point.value] = arrivals[-1] - arrivals[0]
        assert scaled.stop_at_s is None
        assert scaled.replicas.count == (point.value if point.axis is Axis.REPLICAS else 2)
        if point.axis is Axis.RUNNING:
            assert scaled.scheduler.max_num_seqs == point.value  # type: ignore[attr-defined]
    if kind == "closed loop":
        clients = [point.settings["workload"]["concurrency"] for point in points]
        assert clients == [4, 4, 4, 8, 16, 2, 6]
    else:
        # As long as before with three times the requests; with one replica of two, half the pace.
        assert spans[Axis.REPLICAS, 1] == pytest.approx(2 * spans[Axis.REQUESTS, 30])
        assert spans[Axis.REPLICAS, 3] == pytest.approx(spans[Axis.REPLICAS, 1], rel=0.35)
        assert spans[Axis.RUNNING, 2] < 0.01


@pytest.mark.parametrize("scheduler", ["static", "continuous", "chunked_prefill", "preemptive", "vllm"])
@pytest.mark.parametrize("concurrency", [None, 1])
def test_slots_are_full_along_the_axis_of_running_requests(scheduler: str, concurrency: int | None) -> None:
    config = experiment(GENERATOR | {"concurrency": concurrency}, scheduler={"type": scheduler})
    for point in Study(config, Scales((200,), (2, 8), ())).points[1:]:
        scaled = Experiment.from_mapping(point.settings)
        log, _ = simulate(scaled, make_workload(scaled))
        assert 0.9 * point.value < log.steps["num_running"].mean() <= point.value


def test_what_is_told_of_a_study(trace: Path) -> None:
    config = experiment({"type": "trace", "path": str(trace)}, stop_at_s=9.0, sweep={"seed": [3, 4]})
    study = Study(config, SMALL)
    assert study.notes == [
        "the first point of the sweep is scaled",
        "stop_at_s is left out: every request is simulated to its end",
        "the trace has 9 requests: for more it is repeated, each time later by its length",
        "running: 30 requests a replica, all there from the start, so that some always wait for a slot",
        "replicas: 30 requests and as many arrivals a second for each of them",
    ]
    assert study.config["seed"] == 3
    assert Study(experiment(GENERATOR), Scales((5,), (), ())).notes == []


def test_points_that_are_no_experiment_are_told_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Study(experiment(GENERATOR), Scales((5, 6, 2 * 10**9), (), (1, 10**9)))
    assert caught.value.problems == (
        "--requests 2000000000: workload.num_requests: got 2000000000; expected an integer >= 1 and "
        "<= 1,000,000,000 or null",
        "--replicas 1000000000: workload.num_requests: got 6000000000; expected an integer >= 1 and "
        "<= 1,000,000,000 or null",
    )


class Dozen(Workload):
    """A plug-in's workload: its twelve requests, and a limit."""

    Config = WorkloadConfig

    def requests(self) -> Iterator[Request]:
        return (Request(f"r{i}", float(i), 10, 2) for i in range(self.num_requests()))

    def num_requests(self) -> int:
        return min(12, self.config.limit or 12)


def test_a_workload_that_cannot_be_made_longer_says_so() -> None:
    name = f"{Dozen.__module__}:{Dozen.__name__}"
    points = Study(experiment({"type": name}), Scales((5, 12), (), (2,))).points
    assert [point.num_requests for point in points] == [5, 12, 10]
    with pytest.raises(ConfigError) as caught:
        Study(experiment({"type": name}), Scales((5, 7, 13), (), (2,)))
    assert caught.value.problems == (
        f"--requests 13: workload '{name}' has no more than 12 requests",
        f"--replicas 2: workload '{name}' has no more than 12 requests",
    )


def test_a_scheduler_without_slots_has_no_such_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    config = experiment(GENERATOR)
    settings = config.resolved()
    del settings["scheduler"]["max_num_seqs"]
    monkeypatch.setattr(Experiment, "resolved", lambda self: copy.deepcopy(settings))
    study = Study(config, SMALL)
    assert study.notes[0] == "running is left out: scheduler 'vllm' has no max_num_seqs"
    assert Axis.RUNNING not in {point.axis for point in study.points}


def test_values_after_an_option() -> None:
    assert parse_values("--requests", "100, 10,100") == (10, 100)
    for text in ("", "1,,2", "0", "1e3", "-1", "1000000001"):
        with pytest.raises(ConfigError, match=r"--running: got .*; expected whole numbers from 1 to"):
            parse_values("--running", text)


class Bench:
    """Stands in for processes: knows what was measured, and may fail or be stopped."""

    def __init__(self, stop_after: int = 99, fails: tuple[int, ...] = ()) -> None:
        self.measured: list[int] = []
        self.stop_after = stop_after
        self.fails = fails

    def __call__(self, function: Any, settings: dict[str, Any], small: dict[str, Any]) -> Measured:
        assert function is measure_scaled
        num_requests = settings["workload"]["num_requests"]
        if len(self.measured) == self.stop_after:
            raise KeyboardInterrupt
        self.measured.append(num_requests)
        if num_requests in self.fails[1:]:
            raise MemoryError("no more")
        if num_requests in self.fails:
            raise WorkerLost("its process ended without an answer (out of memory?)")
        return replace(MEASURED, num_requests=num_requests)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    stand_in = Bench()
    monkeypatch.setattr(studying, "in_fresh_process", stand_in)
    return stand_in


def open_ledger(folder: Path) -> Ledger:
    return Ledger(folder, replace(Machine.here(), load=0.0))


def test_equal_points_are_measured_once_and_the_cheapest_first(bench: Bench, tmp_path: Path) -> None:
    told: list[StudyProgress] = []
    points = Study(experiment(GENERATOR), SMALL).points
    rows = measure_study(points, open_ledger(tmp_path), told.append)
    assert bench.measured == [5, 30, 30, 30, 50, 90]
    assert [row.point for row in rows] == points
    assert [row.measured.num_requests for row in rows if row.measured] == [5, 30, 50, 30, 30, 30, 90]
    assert [(state.num_done, state.num_points, state.num_reused) for state in told] == [
        (number, 6, 0) for number in range(7)
    ]
    assert told[0].time_left_s is None
    assert told[-1].current is None


def test_a_second_call_goes_on_where_the_first_was_stopped(bench: Bench, tmp_path: Path) -> None:
    points = Study(experiment(GENERATOR), SMALL).points
    bench.stop_after = 2
    with pytest.raises(StudyInterrupted, match=r"2 of 6 points kept in .*; the same call goes on") as caught:
        measure_study(points, open_ledger(tmp_path))
    # The point of 30 requests stands on two axes.
    assert [row.point.label for row in caught.value.rows] == ["5 requests", "30 requests", "1 replica"]
    bench.stop_after = 99
    rows = measure_study(points, open_ledger(tmp_path))
    assert bench.measured == [5, 30, 30, 30, 50, 90]
    assert all(row.measured for row in rows)


def test_figures_hold_for_settings_files_and_code_alone(
    bench: Bench, tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales = Scales((5,), (), ())

    def measured_anew(**sections: Any) -> bool:
        before = len(bench.measured)
        study = Study(experiment({"type": "trace", "path": str(trace)}, **sections), scales)
        measure_study(study.points, open_ledger(tmp_path / "out"))
        return len(bench.measured) > before

    assert measured_anew()
    assert not measured_anew()
    assert measured_anew(seed=1)
    assert not measured_anew(seed=1)
    trace.write_text(TRACE.replace("100", "101"))
    assert measured_anew()
    monkeypatch.setattr("cbsim.bench.ledger._code_hashes", lambda: [("fast.py", "another")])
    assert measured_anew()
    monkeypatch.setattr(Machine, "here", lambda: Machine("Zen", 1, "3", "2", "4", 0.0))
    assert measured_anew()
    (tmp_path / "out" / "bench.json").write_text('{"machine": {}, "measured": {"a": {}}}')
    assert measured_anew()


def test_a_point_that_fails_leaves_its_error(bench: Bench, tmp_path: Path) -> None:
    bench.fails = (50, 5)
    rows = measure_study(Study(experiment(GENERATOR), SMALL).points, open_ledger(tmp_path))
    assert [row.error is None for row in rows] == [False, True, False, True, True, True, True]
    table = scaling_tables(rows)[0]
    assert table.rows[2] == ("50", *"-" * 8)
    assert table.notes[:2] == (
        "5 requests: MemoryError: no more",
        "50 requests: its process ended without an answer (out of memory?)",
    )
    frame = scaling_frame(rows)
    assert frame["error"].notna().sum() == 2
    assert len(scaling_picture(frame, "mine").axes) == 6


def test_time_left_is_what_processes_cost_anyway_and_requests_at_the_mean_pace() -> None:
    points = Study(experiment(GENERATOR), Scales((1000, 10**6), (), ())).points
    assert time_left_s(points, []) is None
    # 50 us a request; beside its three runs of 0.05 s the process took 0.85 s. Of 50 s there is one run.
    left_s = time_left_s(points, [Entry(MEASURED, 1.0)])
    assert left_s == pytest.approx((0.85 + 3 * 0.05) + (0.85 + 50.0))


def row(value: int, axis: Axis = Axis.REQUESTS, **figures: Any) -> Row:
    point = Study(experiment(GENERATOR), Scales((value,), (), ())).points[0]
    return Row(replace(point, axis=axis, value=value), replace(MEASURED, **figures))


def test_tables_by_hand() -> None:
    rows = [
        row(1000),
        row(5000, num_requests=5000, num_steps=20_000, cpu_s=0.2, bare_simpy_s=0.1, peak_bytes=140 * MEGA),
        row(8, Axis.RUNNING),
        row(6, Axis.RUNNING),
        row(1, Axis.REPLICAS),
    ]
    requests, running, replicas = scaling_tables(rows)
    header = ["requests", "steps", "running", "CPU s", "us a request", "steps/s", "bare SimPy s", "times"]
    assert requests.header == (*header, "peak MB")
    assert requests.rows[1] == (
        *("5,000", "20,000", "6.50", "0.200", "40.0", "100,000", "0.100", "2.00"),
        "140",
    )
    assert requests.notes == (
        "a request costs 0.800 times as much with 5,000 requests as with 1,000 requests",
        "memory grows by 5.00 kB a request: a million of them would take 5.12 GB",
    )
    assert running.header[:2] == ("max_num_seqs", "requests")
    assert [cells[0] for cells in running.rows] == ["8", "6"]
    # 6.5 of 6 slots are no fewer than 80%; 6.5 of 8 are.
    assert [note for note in running.notes if "on average" in note] == []
    crowded = scaling_tables([row(9, Axis.RUNNING)])[0].notes[0]
    assert crowded.startswith("9 running: 6.50 ran on average: ")
    assert replicas.rows[0][:2] == ("1", "1,000")
    assert replicas.notes[0].startswith("CPU s: of one core")


def test_the_picture_has_a_column_an_axis_and_logarithms_all_over() -> None:
    rows = [row(10), row(1000, cpu_s=0.06), row(16, Axis.REPLICAS)]
    figure = scaling_picture(scaling_frame(rows), "mine", "here")
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "requests", "replicas"]
    assert {(axes.get_xscale(), axes.get_yscale()) for axes in figure.axes} == {("log", "log")}
    (cost, bare) = figure.axes[0].lines
    assert list(cost.get_ydata()) == pytest.approx([50.0, 60.0])
    assert list(bare.get_ydata()) == pytest.approx([10.0, 10.0])
    assert figure.axes[0].get_ylim() == pytest.approx((1.0, 100.0))
    assert list(figure.axes[2].lines[0].get_ydata()) == pytest.approx([120.0, 120.0])


def fail(message: str) -> None:
    raise WorkloadError(message)


def test_a_process_of_its_own_answers_raises_or_is_lost() -> None:
    assert in_fresh_process(os.getpid) != os.getpid()
    # Its parent ends it, so that it leaves no traceback of its own.
    assert in_fresh_process(signal.getsignal, signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    with pytest.raises(WorkloadError, match="no trace"):
        in_fresh_process(fail, "no trace")
    with pytest.raises(WorkerLost, match="without an answer"):
        in_fresh_process(os._exit, 9)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    settings = experiment(GENERATOR).resolved()
    (tmp_path / "mine.yaml").write_text(json.dumps(settings))
    return tmp_path


def cbsim_bench(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", *arguments], catch_exceptions=False)


@pytest.mark.usefixtures("bench")
def test_the_command_prints_tables_and_leaves_a_folder(folder: Path) -> None:
    arguments = ("mine.yaml", "--requests", "5,30", "--running", "none", "--replicas", "1,2")
    ran = cbsim_bench(*arguments)
    assert ran.exit_code == 0
    assert "By number of requests" in ran.stdout
    assert "running at once" not in ran.stdout
    assert "0 of 3 points, measuring 5 requests" in ran.stderr
    out = folder / "runs" / "mine-bench"
    names = {"bench.json", "table.csv", "table.parquet", "scaling.png", "scaling.svg"}
    assert {path.name for path in out.iterdir()} == names
    table = pd.read_csv(out / "table.csv")
    assert table["varied"].tolist() == ["requests", "requests", "replicas", "replicas"]
    assert table["value"].tolist() == [5, 30, 1, 2]
    told = json.loads(cbsim_bench(*arguments, "--json", "--quiet").stdout)
    assert [point["num_requests"] for point in told["points"]] == [5, 30, 5, 10]
    assert told["config"]["scheduler"]["type"] == "vllm"


@pytest.mark.usefixtures("folder")
def test_what_is_there_is_measured_again_on_demand(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbsim.bench.folder.save_study", lambda *study: [])
    arguments = ("mine.yaml", "--requests", "5", "--running", "none", "--replicas", "none", "--quiet")
    for _ in range(2):
        assert cbsim_bench(*arguments).exit_code == 0
    assert bench.measured == [5]
    cbsim_bench(*arguments, "--again")
    assert bench.measured == [5, 5]


def test_a_stopped_command_shows_what_it_has(folder: Path, bench: Bench) -> None:
    bench.stop_after = 1
    ran = cbsim_bench("mine.yaml", "--requests", "5,30", "--out", "out", "--quiet")
    assert ran.exit_code == 130
    assert "By number of replicas" in ran.stdout
    assert ran.stderr == "\n1 of 7 points kept in out; the same call goes on\n"
    assert len(pd.read_csv(folder / "out" / "table.csv")) == 2


@pytest.mark.usefixtures("bench")
def test_nothing_else_is_written_over(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "mine.txt").write_text("mine")
    ran = cbsim_bench("mine.yaml", "--requests", "5", "--out", "out")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr == (
        "out: a folder that is no scaling study stands there; name another folder, or remove it\n"
    )


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ("mine.yaml", "--requests", "5,x", "--running", "0"),
            [
                "--requests: got 'x'; expected whole numbers from 1 to 1,000,000,000, as in 1,10,100",
                "--running: got '0'; expected whole numbers from 1 to 1,000,000,000, as in 1,10,100",
            ],
        ),
        (("mine.yaml", "--quick"), ["--quick: is for cbsim's own works, without a CONFIG"]),
        (
            ("--running", "8", "--set", "seed=1"),
            ["--running: needs a CONFIG to scale", "--set: needs a CONFIG to scale"],
        ),
        (("mime.yaml",), ["mime.yaml: no such file; did you mean 'mine.yaml'?"]),
    ],
)
def test_mistakes(arguments: tuple[str, ...], lines: list[str]) -> None:
    ran = cbsim_bench(*arguments)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.splitlines() == lines


def test_control_c_ends_all_in_a_line_and_keeps_the_points(folder: Path) -> None:
    """As a terminal does it: every process of the group gets the signal."""
    command = [sys.executable, "-m", "cbsim", "bench", "mine.yaml", "--requests", "20,5000000"]
    ran = subprocess.Popen(
        [*command, "--running", "none", "--replicas", "none", "--out", "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert ran.stderr is not None
    for line in ran.stderr:
        if line.startswith("1 of 2 points"):
            break
    time.sleep(0.3)
    os.killpg(ran.pid, signal.SIGINT)
    stdout, stderr = ran.communicate(timeout=20)
    assert ran.returncode == 130
    assert stderr == "\n1 of 2 points kept in out; the same call goes on\n"
    assert "By number of requests" in stdout
    assert has_ended(ran.pid)


def has_ended(group: int) -> bool:
    """Whether every process of a group ends within seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_a_wrong_configuration_is_told_by_its_lines(folder: Path) -> None:
    (folder / "mine.yaml").write_text("workload: {type: trace, path: gone.csv}\nscheduler: vllm\n")
    ran = cbsim_bench("mine.yaml")
    assert ran.exit_code == 2
    assert ran.stderr.startswith("mine.yaml:1: workload.path: gone.csv: no such file")


def test_errors_are_cbsims_own(tmp_path: Path) -> None:
    (tmp_path / "bench.json").mkdir()
    with pytest.raises(CbsimError):
        open_ledger(tmp_path)
