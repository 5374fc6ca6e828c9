"""The benchmark measures what it says, on small works; how long they take is nobody's assertion."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cbsim.base.processor import cpu_name
from cbsim.base.units import MEGA
from cbsim.cli import main
from cbsim.lab.bench import work_timing as measuring
from cbsim.lab.bench.bench_tables import FIGURES, bench_tables, describe_goal, to_json, to_markdown, verdict
from cbsim.lab.bench.work_timing import (
    Machine,
    Measured,
    bare_simpy_s,
    measure,
    measure_command,
    measure_simulation,
    peak_memory_bytes,
)
from cbsim.lab.bench.works import SCALES, Work, all_works, experiment, poisson
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_workload, simulate

SMALL = experiment(poisson(40), "vllm")
MEASURED = Measured(
    num_requests=100,
    num_steps=1000,
    cpu_s=0.5,
    peak_bytes=200 * MEGA,
    num_decodes=4000,
    metrics_cpu_s=0.05,
    bare_simpy_s=0.25,
)


def small_works(azure: Path | None = None) -> list[Work]:
    trace = experiment({"type": "trace", "path": str(azure)}, "vllm") if azure else SMALL
    return [
        Work("small", trace, {"cpu_s": (1e6, 0.0)}, is_quick=True, scale=40),
        Work("small, interpreted", {**SMALL, "engine": "interpreted"}),
    ]


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure small works in this process."""
    monkeypatch.setattr("cbsim.lab.bench.works.all_works", small_works)
    monkeypatch.setattr(
        "cbsim.lab.bench.work_timing.measure", lambda work: measuring.MEASURES[work.how](work.settings)
    )


@pytest.mark.parametrize("work", all_works(), ids=lambda work: work.name)
def test_every_work_is_a_right_experiment(work: Work) -> None:
    parsed = Experiment.from_mapping(work.settings)
    if work.scale is not None:
        assert make_workload(parsed).num_requests() == work.scale


def test_works_are_told_apart_by_name_and_the_quick_ones_are_few() -> None:
    works = all_works()
    assert len({work.name for work in works}) == len(works)
    assert 3 <= sum(work.is_quick for work in works) < len(works) / 2 + 1
    assert [work.scale for work in works if work.scale] == list(SCALES)


@pytest.mark.parametrize("measure_it", [measure_simulation, measure_command])
def test_every_way_of_measuring_counts_the_same_run(measure_it: Any) -> None:
    log, _ = simulate(Experiment.from_mapping(SMALL), make_workload(Experiment.from_mapping(SMALL)))
    found = measure_it(SMALL)
    assert (found.num_requests, found.num_steps) == (40, len(log.steps["step"]))
    assert found.cpu_s > 0
    assert found.peak_bytes > 20 * MEGA
    if measure_it is not measure_command:
        assert found.num_decodes == log.steps["num_decode_tokens"].sum()
        assert found.bare_simpy_s > 0


def test_a_work_has_a_process_of_its_own() -> None:
    """This one holds more than the work may be charged for."""
    ballast = bytearray(400 * MEGA)
    ballast[::4096] = b"x" * len(ballast[::4096])
    assert peak_memory_bytes() > 400 * MEGA
    found = measure(Work("small", SMALL))
    assert found.num_requests == 40
    assert found.peak_bytes < 400 * MEGA


def test_the_bare_loop_is_scaled_beyond_its_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbsim.lab.bench.work_timing.MAX_BARE_EVENTS", 10)
    ticks = iter([1.0, 3.0])
    monkeypatch.setattr("time.process_time", lambda: next(ticks))
    assert bare_simpy_s(50) == 10.0


def test_ratios() -> None:
    assert MEASURED.s_per_step == 0.0005
    assert MEASURED.s_per_request == 0.005
    assert FIGURES["metrics"](MEASURED) == "10.0%"
    assert FIGURES["times"](MEASURED) == "2.00"
    assert FIGURES["steps/s"](MEASURED) == "2,000"


@pytest.mark.parametrize(
    ("goals", "met"),
    [
        ({"cpu_s": 0.5}, True),
        ({"cpu_s": 0.4}, False),
        ({"s_per_step": 0.0005}, True),
        ({"s_per_step": 0.0004}, False),
        ({"cpu_s": 1.0, "peak_bytes": 100 * MEGA}, False),
        ({"cpu_s": 1.0, "peak_bytes": 200 * MEGA}, True),
    ],
)
def test_a_goal_is_met_in_all_its_parts(goals: dict[str, float], met: bool) -> None:
    work = Work("x", {}, {name: (most, 0.0) for name, most in goals.items()})
    assert verdict(work, MEASURED) == ("target" if met else "missed")


def test_the_best_goal_that_is_reached_is_told() -> None:
    work = Work("x", {}, {"cpu_s": (0.6, 0.5)})
    assert verdict(work, MEASURED) == "stretch"
    assert verdict(work, replace(MEASURED, cpu_s=0.55)) == "target"
    assert verdict(work, replace(MEASURED, cpu_s=0.65)) == "missed"
    assert verdict(Work("x", {}), MEASURED) == "-"
    every = Work("x", {}, {"cpu_s": (25.0, 20.0), "s_per_step": (18e-6, 12e-6), "peak_bytes": (8e8, 4e8)})
    assert describe_goal(every, "target") == "25 s, 18 us a step, 800 MB"
    assert describe_goal(every, "stretch") == "20 s, 12 us a step, 400 MB"


def test_rows_stand_in_the_tables_they_belong_to() -> None:
    rows = [
        (Work("hour", {}, {"cpu_s": (0.5, 0.1)}), MEASURED),
        (Work("short", {}, scale=100), MEASURED),
        (Work("long", {}, {"cpu_s": (1.0, 0.1)}, scale=200), MEASURED),
    ]
    works, scales = bench_tables(rows)
    assert [[row[0] for row in table.rows] for table in (works, scales)] == [
        ["hour", "long"],
        ["short", "long"],
    ]
    figures = dict(zip(works.header, works.rows[0], strict=True))
    assert figures | {"CPU s": "0.500", "us a step": "500", "times": "2.00", "metrics": "10.0%"} == figures
    assert figures["peak MB"] == "200"
    assert dict(zip(scales.header, scales.rows[0], strict=True))["us a request"] == "5,000"
    assert len(bench_tables(rows[:1])) == 1
    lines = to_markdown(scales).splitlines()
    assert lines[:4] == [
        "**Scaling**",
        "",
        "|  | requests | steps | CPU s | us a request | peak MB |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    told = json.loads(json.dumps(to_json(Machine.here(), rows)))
    assert told["works"][0]["target"] == {"cpu_s": 0.5}
    assert told["works"][1]["how"] == "simulate"


def test_the_machine_is_named(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Zen: 4 cores\n", encoding="utf-8")
    assert cpu_name(cpuinfo) == "Zen: 4 cores"
    assert cpu_name(tmp_path / "absent")
    machine = replace(Machine.here(), load=0.1)
    assert f"numpy {machine.numpy}" in machine.describe()
    assert machine.warnings() == []
    assert "load of 0.9" in replace(machine, load=0.9).warnings()[0]


@pytest.mark.usefixtures("no_processes")
def test_the_command_prints_tables_markdown_or_json() -> None:
    ran = CliRunner().invoke(main, ["bench"])
    assert ran.exit_code == 0, ran.output
    assert Machine.here().cpu in ran.output
    assert "Scaling" in ran.output
    assert "small, interpreted" in ran.output
    ran = CliRunner().invoke(main, ["bench", "--quick", "--markdown"])
    assert "| small |" in ran.output
    assert "interpreted" not in ran.output
    ran = CliRunner().invoke(main, ["bench", "--only", "interpreted", "--json"])
    assert [work["name"] for work in json.loads(ran.stdout)["works"]] == ["small, interpreted"]


@pytest.mark.usefixtures("no_processes")
def test_mistakes_in_the_command() -> None:
    ran = CliRunner().invoke(main, ["bench", "--only", "nothing"])
    assert ran.exit_code == 2
    assert "no work has 'nothing' in its name; there are 'small', 'small, interpreted'" in ran.output
    ran = CliRunner().invoke(main, ["bench", "--azure", "absent.csv"])
    assert ran.exit_code == 2
    assert "absent.csv" in ran.output
