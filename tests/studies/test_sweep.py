import math
import os
import subprocess
import sys

import pandas as pd
import pytest

from cbsim.base.errors import CbsimError, ConfigError
from cbsim.base.garbage import MADE_BETWEEN
from cbsim.results.result import load_run
from cbsim.studies.run import run_experiment
from cbsim.studies.sweep import GONE, SweepInterrupted, sweep
from cbsim.studies.worker_pool import open_pool
from tests.sweep_parts import EVEN, garbage_threshold, process_id

CONFIG = EVEN | {
    "sweep": {
        "scheduler": [{"type": "static", "max_num_seqs": 2}, {"type": "continuous", "max_num_seqs": 4}],
        "workload.interval_s": [0.1, 1.0],
    },
}
BREAKING = CONFIG | {"sweep": {"workload.breaks": ["", "error"], "workload.interval_s": [0.1, 1.0]}}


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "summary.json"
    }


def test_a_row_a_point(tmp_path):
    table = sweep(CONFIG, out=tmp_path)
    assert table["scheduler"].tolist() == ["static", "static", "continuous", "continuous"]
    assert table["workload.interval_s"].tolist() == [0.1, 1.0, 0.1, 1.0]
    assert list(table)[:4] == ["scheduler", "workload.interval_s", "num_requests", "num_finished"]
    assert list(table)[-2:] == ["point", "error"]
    assert not any(name.startswith("simulation") for name in table)
    assert table["num_finished"].tolist() == [20] * 4
    assert table["error"].isna().all()
    # Alone on the engine a request takes a step for each of its 4 tokens.
    assert table["e2e_s.max"].iloc[3] == pytest.approx(0.4)
    for row in table.to_dict("records"):
        run = load_run(tmp_path / "points" / row["point"])
        assert run.summary["ttft_s"]["p99"] == row["ttft_s.p99"]
        assert run.config["workload"]["interval_s"] == row["workload.interval_s"]
    # Texts come back from either file as they went in, numbers to the last bit.
    stored = pd.read_parquet(tmp_path / "table.parquet")
    pd.testing.assert_frame_equal(stored, table, check_dtype=False)
    text = pd.read_csv(tmp_path / "table.csv")
    assert text["ttft_s.p99"].tolist() == table["ttft_s.p99"].tolist()


def test_without_a_sweep_there_is_one_point(tmp_path):
    table = sweep({key: value for key, value in CONFIG.items() if key != "sweep"}, out=tmp_path)
    assert len(table) == 1
    assert next(iter(table)) == "num_requests"


def test_a_second_sweep_runs_only_what_is_missing(tmp_path, monkeypatch):
    first = sweep(CONFIG, out=tmp_path)
    before = files(tmp_path)
    folders = sorted((tmp_path / "points").iterdir())
    folders[1].rename(tmp_path / "lost")
    ran = []
    module = sys.modules[sweep.__module__]
    monkeypatch.setattr(module, "run_experiment", lambda e: ran.append(e) or run_experiment(e))
    states = []
    second = sweep(CONFIG, out=tmp_path, progress=states.append)
    assert len(ran) == 1
    assert [(state.num_reused, state.num_done) for state in states] == [(3, 0), (3, 1)]
    pd.testing.assert_frame_equal(first, second)
    assert {name: data for name, data in files(tmp_path).items() if name.parts[0] != "lost"} == before


def test_other_settings_are_other_points(tmp_path):
    first = sweep(CONFIG, out=tmp_path)
    second = sweep(CONFIG, out=tmp_path, overrides={"cost_model.step_s": 0.2})
    assert set(first["point"]).isdisjoint(second["point"])
    assert len(list((tmp_path / "points").iterdir())) == 8


def test_a_changed_input_file_is_another_point(tmp_path):
    trace = tmp_path / "trace.csv"
    config = CONFIG | {"workload": {"type": "trace", "path": str(trace)}, "sweep": {}}
    points = []
    for num_output_tokens in (3, 4):
        trace.write_text(
            f"request_id,arrival_s,num_prompt_tokens,num_output_tokens\nr0,0.0,8,{num_output_tokens}\n"
        )
        points.append(sweep(config, out=tmp_path / "out"))
    assert points[0]["point"][0] != points[1]["point"][0]
    assert [table["num_steps"][0] for table in points] == [3, 4]


def test_a_failing_point_is_told_and_the_others_go_on(tmp_path):
    states = []
    table = sweep(BREAKING, out=tmp_path, progress=states.append)
    assert table["error"].isna().tolist() == [True, True, False, False]
    told = "ZeroDivisionError: a bug in a plug-in (sweep_parts.py:29)"
    assert table["error"][2] == f"workload Even failed at 0 s: {told}"
    assert math.isnan(table["ttft_s.p99"][2])
    assert table["num_finished"].tolist() == [20, 20, pd.NA, pd.NA]
    assert states[-1].num_failed == 2
    assert states[-1].time_left_s == 0
    throughput = "output_token_throughput_per_s"
    assert states[-1].best[1][throughput] == table[throughput].max()
    assert len(list((tmp_path / "points").iterdir())) == 2


def test_every_point_fails(tmp_path):
    table = sweep(BREAKING, out=tmp_path, overrides={"workload.breaks": "error"})
    assert list(table) == ["workload.interval_s", "point", "error"]
    assert table["error"].notna().all()


def test_a_failing_first_point_keeps_the_order_of_columns(tmp_path):
    swept = {"workload.breaks": ["error", ""]}
    table = sweep(CONFIG | {"sweep": swept}, out=tmp_path)
    assert list(table)[:2] == ["workload.breaks", "num_requests"]
    assert list(table)[-2:] == ["point", "error"]


def test_mistakes_in_the_configuration_stop_the_sweep(tmp_path):
    with pytest.raises(ConfigError):
        sweep(CONFIG | {"sweep": {"scheduler.max_num_seq": [1]}}, out=tmp_path)
    with pytest.raises(CbsimError, match="workers: got 0; expected an integer >= 1"):
        sweep(CONFIG, out=tmp_path, workers=0)
    assert list(tmp_path.iterdir()) == []


def test_a_spawned_pool_gives_the_same_bytes_and_outlives_killed_workers(tmp_path):
    # The healthy point starts beside one that takes its worker, and so the pool, down.
    whole = CONFIG | {"sweep": {"workload.breaks": ["", "killed"]}}
    healthy = CONFIG | {"sweep": {"workload.breaks": [""]}}
    serial = sweep(healthy, out=tmp_path / "serial")
    pooled = sweep(whole, out=tmp_path / "pooled", workers=2)
    assert pooled["error"].isna().tolist() == [True, False]
    assert set(pooled["error"].dropna()) == {"its worker process ended without an answer (out of memory?)"}
    assert pooled["point"][:1].tolist() == serial["point"].tolist()
    assert files(tmp_path / "pooled" / "points") == files(tmp_path / "serial" / "points")
    sweep(healthy, out=tmp_path / "pooled", workers=2)
    for name in ("table.csv", "table.parquet"):
        assert (tmp_path / "pooled" / name).read_bytes() == (tmp_path / "serial" / name).read_bytes()


def test_a_killed_sweep_resumes(tmp_path):
    """The process itself ends without warning in its second point."""
    config = CONFIG | {"sweep": {"workload.num_output_tokens": [1, 4], "workload.breaks": ["", "killed"]}}
    script = f"import cbsim; cbsim.sweep({config!r}, out={str(tmp_path / 'out')!r})"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert len(list((tmp_path / "out" / "points").iterdir())) == 1
    healthy = config | {"sweep": config["sweep"] | {"workload.breaks": [""]}}
    states = []
    sweep(healthy, out=tmp_path / "out", progress=states.append)
    assert (states[-1].num_reused, states[-1].num_done) == (1, 1)
    sweep(healthy, out=tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("after", [1, 2])
def test_a_folder_moved_away_while_a_sweep_goes_on_is_told_and_nothing_is_lost(tmp_path, after):
    config = CONFIG | {"sweep": {"workload.num_output_tokens": [1, 4], "seed": [0, 1]}}

    def move(state):
        if state.num_done == after:
            (tmp_path / "out").rename(tmp_path / "moved")

    table = sweep(config, out=tmp_path / "out", progress=move)
    gone = table["error"].notna()
    assert set(table["error"][gone]) == {GONE}
    assert {path.name for path in (tmp_path / "moved" / "points").iterdir()} == {
        *table["point"][gone][:after]
    }
    assert load_run(tmp_path / "out" / "points" / table["point"].iloc[3]).summary["num_finished"] == 20
    assert sweep(config, out=tmp_path / "out")["error"].isna().all()


def test_a_pool_of_one_runs_here_and_goes_on_after_an_error():
    outcomes = list(open_pool(1).run_all(abs, [-1, "no number", -3]))
    assert [outcome.answer for outcome in outcomes] == [1, None, 3]
    assert isinstance(outcomes[1].error, TypeError)


def test_a_pool_kept_open_keeps_its_processes_until_one_is_lost():
    with open_pool(2).kept_open() as pool:
        (threshold,) = pool.run_all(garbage_threshold, [0])
        assert threshold.answer == MADE_BETWEEN
        first = {outcome.answer for outcome in pool.run_all(process_id, [0.1] * 4)}
        assert {outcome.answer for outcome in pool.run_all(process_id, [0.1] * 4)} <= first
        (lost,) = pool.run_all(os._exit, [9])
        assert str(lost.error) == "its worker process ended without an answer (out of memory?)"
        assert first.isdisjoint(outcome.answer for outcome in pool.run_all(process_id, [0.1] * 4))


def test_a_dask_cluster_gives_the_same_bytes(tmp_path):
    distributed = pytest.importorskip("distributed")
    config = CONFIG | {"sweep": {"workload.interval_s": [0.1, 1.0]}}
    sweep(config, out=tmp_path / "serial")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        sweep(config, out=tmp_path / "dask", cluster=cluster.scheduler_address)
    assert files(tmp_path / "dask") == files(tmp_path / "serial")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("summary.json", b'{"num_requests": '),
        ("summary.json", b"{}"),
        ("manifest.json", b""),
        ("config.yaml", b"{"),
        ("steps.parquet", b"PAR1"),
        ("requests.parquet", None),
    ],
)
def test_a_damaged_point_is_run_again(tmp_path, name, data):
    config = CONFIG | {"sweep": {"workload.interval_s": [0.1, 1.0]}}
    first = sweep(config, out=tmp_path)
    before = files(tmp_path)
    damaged = tmp_path / "points" / first["point"][1] / name
    if data is None:
        damaged.unlink()
    else:
        damaged.write_bytes(data)
    states = []
    second = sweep(config, out=tmp_path, progress=states.append)
    assert [(state.num_reused, state.num_done) for state in states] == [(1, 0), (1, 1)]
    pd.testing.assert_frame_equal(first, second)
    assert files(tmp_path) == before


def test_a_damaged_point_with_files_of_somebody_is_left_alone(tmp_path):
    config = CONFIG | {"sweep": {"workload.interval_s": [0.1, 1.0]}}
    folder = tmp_path / "points" / sweep(config, out=tmp_path)["point"][1]
    (folder / "manifest.json").write_text("")
    (folder / "notes.md").write_text("what I saw")
    table = sweep(config, out=tmp_path)
    assert "no run stands there" in table["error"][1]
    assert (folder / "notes.md").read_text() == "what I saw"


def test_the_best_so_far_may_have_been_there_already(tmp_path):
    config = CONFIG | {"sweep": {"workload.interval_s": [0.1, 1.0]}}
    table = sweep(config, out=tmp_path)
    best = table["output_token_throughput_per_s"].idxmax()
    worse = tmp_path / "points" / table["point"][1 - best]
    worse.rename(tmp_path / "lost")
    states = []
    sweep(config, out=tmp_path, progress=states.append)
    assert [state.best[0].key for state in states] == [table["point"][best]] * 2


def test_an_interrupted_sweep_says_what_is_kept(tmp_path, monkeypatch):
    num_run = 0

    def interrupt_the_second(experiment):
        nonlocal num_run
        num_run += 1
        if num_run == 2:
            raise KeyboardInterrupt
        return run_experiment(experiment)

    monkeypatch.setattr(sys.modules[sweep.__module__], "run_experiment", interrupt_the_second)
    with pytest.raises(SweepInterrupted) as caught:
        sweep(CONFIG, out=tmp_path)
    assert str(caught.value) == f"1 of 4 points kept in {tmp_path}; the same call goes on"
    assert sweep(CONFIG, out=tmp_path)["error"].isna().all()
    assert num_run == 5


def test_a_table_takes_another_column_without_a_warning(tmp_path):
    """Pandas warns of frames that lie in more than 100 pieces; pytest makes it an error."""
    table = sweep(CONFIG | {"sweep": {"workload.interval_s": [0.1]}}, out=tmp_path)
    assert len(table.columns) > 50
    for number in range(80):
        table[f"more_{number}"] = 0
