"""What a tune says: met or not first, the best, the nearest and what it misses; its table and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("optuna")

from cbsim.base.paths import find_experiment
from cbsim.cli import main
from cbsim.config.yaml_text import dump_yaml
from cbsim.show.tune_plot import tune_pictures
from cbsim.show.tune_text import tune_sentence, tune_table
from cbsim.studies.tune import TuneAnswer, tune
from tests.studies.tune.small import CONFIG, with_tune


def told(config: dict[str, Any], folder: Path) -> tuple[TuneAnswer, str]:
    answer = tune(config, folder)
    return answer, tune_sentence(answer).replace("`", "")


def test_met_is_the_first_word_and_the_gain_is_told(tmp_path: Path) -> None:
    answer, text = told(CONFIG, tmp_path)
    best = answer.best
    assert best is not None
    num_met, num_ran = int(answer.table["is_met"].sum()), int((answer.table["state"] == "ran").sum())
    assert text.startswith(
        f"Met by {num_met} of the {num_ran} settings that ran in full, of 16 settings tried, "
        "TTFT \u2264 1 s for 99% of requests: rate_scale "
    )
    assert (
        f"give the highest goodput, {best['goodput_per_s']:.3g} requests/s; what is written has 0.9" in text
    )
    table = tune_table(answer).to_text()
    assert "best, front" in table
    assert "0 as written" in table
    assert {"front", "keys"} == set(tune_pictures(answer))


def test_not_met_names_the_nearest_and_what_it_misses(tmp_path: Path) -> None:
    answer, text = told(CONFIG | {"slo": {"ttft_s": {"p95": 0.05}}}, tmp_path)
    assert answer.best is not None
    assert text.startswith(
        "Not met: none of 16 settings tried meets TTFT p95 \u2264 50 ms: the nearest is rate_scale "
    )
    misses = answer.aim.misses(answer.best)
    assert [miss.key for miss in misses] == ["ttft_s.p95"]
    assert text.endswith(f", which {answer.aim.slo.all_misses(misses)}.")
    assert "front" not in tune_table(answer).to_text().splitlines()[2]
    assert {"front", "keys"} == set(tune_pictures(answer))


def test_without_an_slo_the_throughput_decides(tmp_path: Path) -> None:
    config = with_tune(trials=6) | {"slo": {}}
    answer, text = told(config, tmp_path)
    assert text.startswith("No SLO is given. Of 6 settings tried, rate_scale ")
    assert "give the highest throughput, " in text
    assert "SLO" not in tune_table(answer).header


def test_settings_that_reach_the_same_are_told(tmp_path: Path) -> None:
    # At a twentieth of what one seat can serve, seats make no difference.
    few = CONFIG["workload"] | {"rate_scale": 0.25}
    config = CONFIG | {"workload": few, "tune": {"scheduler.max_num_seqs": [1, 2, 3, 4]}}
    answer, text = told(config, tmp_path)
    assert text.endswith(
        "3 others come within 0.5% of the highest; of these it has the shortest p99 E2E. That is at this "
        "workload's rate; a tune of workload.rate_scale too finds the most they can take."
    )
    assert answer.table["is_best"].sum() == 1


def test_nobody_was_served(tmp_path: Path) -> None:
    idle = CONFIG | {"stop_at_s": 1e-9, "tune": {"scheduler.max_num_seqs": [1, 2, 3]}}
    _, text = told(idle, tmp_path)
    assert text == "No request was served by any of 4 settings tried."


def test_nothing_could_run(tmp_path: Path) -> None:
    config = CONFIG | {"workload": {"type": "tests.sweep_parts:Even", "breaks": "error"}}
    tuned = config | {"tune": {"scheduler.max_num_seqs": [1, 2]}}
    answer, text = told(tuned, tmp_path)
    why = "workload Even failed at 0 s: ZeroDivisionError: a bug in a plug-in (sweep_parts.py:"
    assert text.startswith(f"None of the 3 settings could run: {why}")
    assert answer.best is None
    assert tune_pictures(answer) == {}


def test_the_command_prints_the_answer_and_writes_the_folder(tmp_path: Path) -> None:
    path, out = tmp_path / "small.yaml", tmp_path / "out"
    path.write_text(dump_yaml(CONFIG))
    ran = CliRunner().invoke(main, ["tune", str(path), "--out", str(out), "--trials", "6"])
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.startswith("Met by ")
    assert f"run the best: cbsim run {out / 'best.yaml'}" in ran.stdout
    assert "6 of 6 settings, " in ran.stderr
    names = {"table.csv", "table.parquet", "tune.json", "best.yaml", "points"}
    pictures = {f"{stem}{suffix}" for stem in ("front", "keys") for suffix in (".png", ".svg")}
    assert {each.name for each in out.iterdir()} == names | pictures
    reported = CliRunner().invoke(main, ["report", str(out)])
    assert reported.exit_code == 0, reported.output
    page = (out / "report.html").read_text()
    assert (
        "Which <code>workload.rate_scale</code> and <code>scheduler.max_num_seqs</code> serves the most"
        in page
    )
    assert page.count("<svg") == 2
    told = out / "tune.json"
    told.write_text(told.read_text().replace('"is_met": true', '"is_met": false'))
    altered = CliRunner().invoke(main, ["report", str(out)])
    assert altered.stderr == f"{told}: was altered since it was written; the same command writes it anew\n"
    checked = CliRunner().invoke(main, ["check", str(out / "best.yaml")])
    assert checked.exit_code == 0, checked.output


def test_the_command_tells_mistakes_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(dump_yaml(CONFIG).replace("max_num_seqs:\n", "max_num_seq:\n"))
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "max_num_seq:" in text)
    ran = CliRunner().invoke(main, ["tune", str(path), "--out", str(tmp_path / "out")])
    assert ran.exit_code == 2
    problem = "scheduler.max_num_seq: unknown key; did you mean 'max_num_seqs'?"
    assert ran.stderr == f"{path}:{line}: {problem}\n"


def test_the_shipped_tune_names_keys_that_exist() -> None:
    ran = CliRunner().invoke(main, ["check", str(find_experiment("tuning"))])
    assert ran.exit_code == 0, ran.output
    assert "a tune over " in ran.output
