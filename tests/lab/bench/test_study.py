"""A study measures each different point once, keeps it, goes on where it stopped, and shows what it has."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cbsim.base.errors import CbsimError, WorkloadError
from cbsim.base.units import MEGA
from cbsim.lab.bench.bench_tables import scaling_frame, scaling_tables
from cbsim.lab.bench.scaling import Axis, Scales, Study
from cbsim.lab.bench.study import Entry, StudyInterrupted, StudyProgress, measure_study, time_left_s
from cbsim.lab.bench.work_timing import Machine, in_fresh_process
from cbsim.show.lab_plot import scaling_picture
from cbsim.studies.worker_pool import WorkerLost
from tests.lab.bench.small import GENERATOR, MEASURED, SMALL, TRACE, Bench, experiment, open_ledger, row


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
    monkeypatch.setattr("cbsim.lab.bench.study._code_hashes", lambda: ["another"])
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


def test_errors_are_cbsims_own(tmp_path: Path) -> None:
    (tmp_path / "bench.json").mkdir()
    with pytest.raises(CbsimError):
        open_ledger(tmp_path)


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
    assert in_fresh_process(signal.pthread_sigmask, signal.SIG_BLOCK, ()) == {signal.SIGINT}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    with pytest.raises(WorkloadError, match="no trace"):
        in_fresh_process(fail, "no trace")
    with pytest.raises(WorkerLost, match="without an answer"):
        in_fresh_process(os._exit, 9)
