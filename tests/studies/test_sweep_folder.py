"""A sweep into the folder of another: nothing there looks like the other, and nobody's file is lost."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from cbsim.cli import main
from cbsim.results.output import REPORT_MARK, drawn_from_sweep, other_points
from cbsim.show.style import drawing, save_figure
from cbsim.studies.sweep import save_table, sweep

EXPERIMENT = """\
workload: {type: "tests.sweep_parts:Even"}
scheduler: {type: continuous}
cost_model: {type: constant, step_s: 0.1}
kv_cache: {num_blocks: 100}
"""
FEW = "sweep.scheduler.max_num_seqs=[1, 2]"
MORE = "sweep.scheduler.max_num_seqs=[2, 3, 4]"
KEPT = {"points", "table.csv", "table.parquet"}


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.yaml").write_text(EXPERIMENT)
    return tmp_path


def run_sweep(*arguments: str) -> Result:
    ran = CliRunner().invoke(main, ["sweep", "e.yaml", "--out", "out", *arguments], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran


def names() -> set[str]:
    return {path.name for path in Path("out").iterdir()}


def test_what_was_drawn_of_another_sweep_goes() -> None:
    run_sweep("--set", MORE, "--no-plots")
    drawn = ("latency_cdfs", "timeline", "utilization", "settings", "pareto")
    for name in drawn:
        with drawing(1, 1) as figure:
            save_figure(figure, Path("out") / name)
    save_table(pd.DataFrame({"num_replicates": [2], "num_requests.low": [1.0]}), Path("out"), "intervals")
    (Path("out") / "report.html").write_text(f"<html><head>{REPORT_MARK}</head></html>")
    pictures = {f"{name}{suffix}" for name in drawn for suffix in (".png", ".svg")}
    assert names() == KEPT | pictures | {"intervals.csv", "intervals.parquet", "report.html"}
    run_sweep("--set", FEW, "--no-plots")
    assert names() == KEPT


def test_the_same_sweep_again_keeps_what_was_drawn_of_it() -> None:
    run_sweep("--set", "sweep.seed=[0, 1]", "--workers", "2")
    before = names()
    by_workers = {name: (Path("out") / name).read_bytes() for name in before - {"points"}}
    run_sweep("--set", "sweep.seed=[0, 1]")
    assert {name: (Path("out") / name).read_bytes() for name in names() - {"points"}} == by_workers
    assert {path.name for path in drawn_from_sweep(Path("out"))} == before - KEPT
    assert {"timeline.png", "timeline.svg", "intervals.csv"} <= before
    run_sweep("--set", "sweep.seed=[0, 1]", "--no-plots")
    assert names() == before


def test_files_of_somebody_else_stay_whatever_their_names() -> None:
    run_sweep("--set", FEW, "--no-plots")
    mine = {"pareto.png": b"\x89PNG mine", "settings.svg": b"<svg/>", "intervals.csv": b"a,b\n", "n.md": b"n"}
    for name, content in mine.items():
        (Path("out") / name).write_bytes(content)
    (Path("out") / "report.html").write_text("<html>mine</html>")
    run_sweep("--set", "sweep.scheduler.max_num_seqs=[3]", "--no-plots")
    assert names() == KEPT | mine.keys() | {"report.html"}
    assert all((Path("out") / name).read_bytes() == content for name, content in mine.items())


def test_the_runs_of_another_sweep_stay_and_are_told() -> None:
    assert "former" not in run_sweep("--set", FEW, "--no-plots").output
    ran = run_sweep("--set", MORE, "--no-plots")
    told = "out/points also keeps a run of a former sweep, which no table or picture here shows\n"
    assert ran.stderr.endswith(told)
    assert "former" not in ran.stdout
    assert "former" not in run_sweep("--set", MORE, "--no-plots", "--quiet").output
    assert len(list(Path("out/points").iterdir())) == 4
    ran = run_sweep("--set", FEW, "--no-plots")
    assert ran.stderr.startswith("2 of 2 points, 2 there already")
    assert "keeps 2 runs of former sweeps" in ran.stderr


def test_other_points_are_runs_that_no_point_has() -> None:
    table = sweep("e.yaml", "out", overrides={"sweep.scheduler.max_num_seqs": [1, 2]})
    first, second = table["point"]
    Path("out/points/0123456789abcdef").mkdir()
    assert other_points(Path("out"), [first, second]) == []
    assert other_points(Path("out"), [second]) == [Path("out/points") / first]
    assert other_points(Path("nowhere"), []) == []
