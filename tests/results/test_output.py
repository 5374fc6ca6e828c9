"""Where a run, a sweep, a capacity or a report may be written: never over somebody's own files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import cbsim
from cbsim.base.errors import CbsimError
from cbsim.cli import main
from cbsim.results.output import check_report_target, check_run_target, holds, is_report
from cbsim.show.report_file import write_report
from cbsim.studies.capacity import Plan, capacity
from cbsim.studies.capacity.answer import save_capacity
from tests.run_logs import make_result, paper_log

EXPERIMENT = """\
workload:
  type: synthetic
  num_requests: 20
  arrivals: {type: poisson, rate_per_s: 1.0}
  prompt_tokens: {type: fixed, value: 8}
  output_tokens: {type: fixed, value: 2}
scheduler: {type: continuous}
cost_model: {type: constant, step_s: 0.1}
slo: {ttft_s: 5}
"""
SWEEP = ("sweep", "e.yaml", "--set", "sweep.seed=[0, 1]", "--no-plots", "--quiet", "--out")
CAPACITY = ("capacity", "e.yaml", "--replicates", "2", "--tolerance", "0.5", "--no-plots", "--quiet", "--out")
RUN = ("run", "e.yaml", "--quiet", "--out")


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.yaml").write_text(EXPERIMENT)
    return tmp_path


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def save_run(folder: str | Path = "run") -> Path:
    return make_result(paper_log()).save(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_file_managers_leave_is_in_nobodys_way() -> None:
    def leave(folder: Path) -> None:
        for name in (".DS_Store", "._e.yaml", "Thumbs.db", "desktop.ini"):
            (folder / name).write_text("seen")

    for folder in map(Path, ("runs", "sweep", "sweep/points", "capacity")):
        folder.mkdir()
        leave(folder)
    for arguments in ((*RUN, "runs"), (*SWEEP, "sweep"), (*CAPACITY, "capacity")):
        assert command(*arguments).exit_code == 0
    points = [path for path in Path("sweep/points").iterdir() if path.is_dir()]
    for folder in (*points, Path("runs"), Path("capacity/points")):
        leave(folder)
    (points[0] / "manifest.json").write_text("")
    for arguments in ((*RUN, "runs"), (*SWEEP, "sweep"), (*CAPACITY, "capacity")):
        assert command(*arguments).exit_code == 0


def test_a_web_project_is_not_replaced() -> None:
    site = Path("site")
    site.mkdir()
    (site / "manifest.json").write_text(json.dumps({"name": "my app", "versions": "1"}))
    (site / "index.html").write_text("months of work")
    before = contents(site)
    ran = command(*RUN, "site")
    told = "site: a folder that is no run stands there; name another folder, or remove it\n"
    assert (ran.exit_code, ran.stderr) == (2, told)
    with pytest.raises(CbsimError, match="no run stands there"):
        save_run(site)
    assert contents(site) == before


def test_a_run_with_somebodys_notes_is_not_replaced() -> None:
    folder = save_run()
    (folder / "notes.md").write_text("what I saw")
    (folder / "summary.json.bak").write_text("{}")
    before = contents(folder)
    with pytest.raises(CbsimError) as caught:
        save_run(folder)
    assert caught.value.problems == (
        "run: holds 'notes.md' and 1 more, which no run has written; name another folder, or move it",
    )
    assert contents(folder) == before


def test_a_run_with_pictures_a_timeline_and_its_report_is_replaced() -> None:
    assert command(*RUN, "run", "--plots", "--timeline").exit_code == 0
    assert command("report", "run").exit_code == 0
    assert {"report.html", "timeline.json.gz", "utilization.svg"} <= set(contents(Path("run")))
    assert command(*RUN, "run").exit_code == 0
    assert not {"report.html", "timeline.json.gz", "utilization.svg"} & set(contents(Path("run")))


@pytest.mark.parametrize("name", ["report.html", "points", "latency_cdfs.pdf"])
def test_names_alone_do_not_make_a_file_a_runs(name: str) -> None:
    folder = save_run()
    (folder / name).mkdir() if name == "points" else (folder / name).write_text("<html>")
    with pytest.raises(CbsimError, match=f"holds '{name}', which no run has written"):
        check_run_target(folder)


def test_a_link_stays_and_its_target_is_written(working_folder: Path) -> None:
    link = Path("latest")
    link.symlink_to("elsewhere/run")
    for name in ("first", "second"):
        make_result(paper_log(), name).save(link)
        assert link.is_symlink()
        assert cbsim.load_run(working_folder / "elsewhere" / "run").name == name
    assert [path.name for path in Path("elsewhere").iterdir()] == ["run"]


def save_sweep(folder: str) -> None:
    assert command(*SWEEP, folder).exit_code == 0


def save_a_capacity(folder: str) -> None:
    save_capacity(
        capacity("e.yaml", Plan(share=0.9, num_replicates=2, tolerance=0.5, num_requests=None)), Path(folder)
    )


def save_thesis(folder: str) -> None:
    Path(folder, "points").mkdir(parents=True)
    Path(folder, "points", "of-my-own.txt").write_text("a point")
    Path(folder, "table.csv").write_text("years of work")
    Path(folder, "capacity.json").write_text('{"litres": 3}')


@pytest.mark.parametrize(
    ("arguments", "save", "told"),
    [
        (SWEEP, save_run, "holds a run; name another folder for the sweep"),
        (SWEEP, save_a_capacity, "holds a capacity; name another folder for the sweep"),
        (SWEEP, save_thesis, "a folder that is no sweep stands there; name another folder, or remove it"),
        (CAPACITY, save_run, "holds a run; name another folder for the capacity"),
        (CAPACITY, save_sweep, "holds a sweep; name another folder for the capacity"),
        (
            CAPACITY,
            save_thesis,
            "a folder that is no capacity stands there; name another folder, or remove it",
        ),
        (RUN, save_sweep, "a folder that is no run stands there; name another folder, or remove it"),
    ],
)
def test_folders_of_another_kind_are_left_alone(
    arguments: tuple[str, ...], save: Callable[[str], object], told: str
) -> None:
    save("out")
    before = contents(Path("out"))
    ran = command(*arguments, "out")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (2, "", f"out: {told}\n")
    assert contents(Path("out")) == before


@pytest.mark.parametrize("arguments", [SWEEP, CAPACITY])
def test_the_same_kind_may_be_written_again(arguments: tuple[str, ...]) -> None:
    Path("out").mkdir()
    for _ in range(2):
        assert command(*arguments, "out").exit_code == 0


def test_a_sweep_that_has_only_begun_is_one() -> None:
    Path("out/points").mkdir(parents=True)
    assert holds(Path("out"), "sweep")
    Path("out/thesis.tex").write_text("years of work")
    assert not holds(Path("out"), "sweep")


def test_a_report_replaces_reports_alone() -> None:
    folder = save_run()
    write_report([folder], Path("r.html"))
    assert is_report(Path("r.html"))
    check_report_target(Path("r.html"))
    Path("index.html").write_text("<!doctype html><title>mine</title>")
    ran = command("report", "run", "--out", "index.html")
    told = "index.html: a file that is no report stands there; name another file, or remove it\n"
    assert (ran.exit_code, ran.stderr) == (2, told)
    assert Path("index.html").read_text() == "<!doctype html><title>mine</title>"


@pytest.mark.parametrize("arguments", [RUN, SWEEP, CAPACITY, ("report", "run", "--out")])
@pytest.mark.parametrize(
    ("name", "reason"), [("x" * 300, "File name too long"), ("e.yaml/out", "Not a directory")]
)
def test_impossible_paths_are_told_in_a_line(arguments: tuple[str, ...], name: str, reason: str) -> None:
    save_run()
    ran = command(*arguments, name)
    assert (ran.exit_code, ran.stdout, ran.stderr) == (2, "", f"{name}: can't be written: {reason}\n")


def test_impossible_paths_hold_no_run() -> None:
    name = "x" * 300
    assert command("compare", name, name).stderr == f"{name}: no such folder; allowed: a run folder\n"
    assert command("report", name, "--out", "r.html").stderr == (
        f"{name}: no run, sweep, capacity or tune was written there\n"
    )
