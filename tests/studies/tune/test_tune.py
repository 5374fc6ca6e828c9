"""Tunes: what is found, the same by seed and workers, resumed after a kill; mistakes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("optuna")

import cbsim
from cbsim.base.errors import CbsimError, ConfigError
from cbsim.show.tune_text import tune_table
from cbsim.studies.experiment import Experiment
from cbsim.studies.probe import ProbeStore
from cbsim.studies.run import run_experiment
from cbsim.studies.tune import TuneAnswer, TuneInterrupted, TuneProgress, tune
from cbsim.studies.tune.best_settings import load_tune, to_json
from tests.studies.tune.small import CONFIG, with_tune

KILLED = f"""
import os, sys
from cbsim.studies.tune import tune
probe = sys.modules["cbsim.studies.probe"]
calls = []
def die(experiment, run=probe.run_experiment, **settings):
    calls.append(1)
    return run(experiment, **settings) if len(calls) < 10 else os._exit(9)
probe.run_experiment = die
tune({CONFIG!r}, "{{out}}")
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tune")


@pytest.fixture(scope="module")
def answer(folder: Path) -> TuneAnswer:
    return tune(CONFIG, folder)


def check_best(answer: TuneAnswer) -> None:
    """The best of a tune is the best of its table, by nothing but the table."""
    table, aim = answer.table, answer.aim
    ran = table[table["state"] == "ran"]
    assert ran["is_best"].sum() == (len(ran) > 0)
    assert not table[table["state"] != "ran"][["is_best", "on_front"]].any(axis=None)
    if ran.empty:
        return
    best = ran[ran["is_best"]].iloc[0]
    met = ran[ran["is_met"].astype(bool)]
    if met.empty:
        worst_miss = [max(miss.by for miss in aim.misses(row)) for row in ran.to_dict("records")]
        assert max(miss.by for miss in aim.misses(best)) == min(worst_miss)
        assert not ran["on_front"].any()
        return
    sign = 1 if aim.objective == "goodput" else -1
    reached = sign * met[aim.figure].astype(float)
    assert best["is_met"]
    assert sign * best[aim.figure] >= reached.max() - 0.0051 * abs(reached.max())
    front = met[met["on_front"].astype(bool)]
    assert len(front) >= 1
    for _, row in met.iterrows():
        beaten = (front[aim.gain] >= row[aim.gain] * 0.99) & (front[aim.cost] <= row[aim.cost] * 1.0101)
        assert beaten.any()


def test_a_tune_finds_what_a_server_can_take(answer: TuneAnswer) -> None:
    table = answer.table
    assert list(table)[:2] == ["workload.rate_scale", "scheduler.max_num_seqs"]
    assert list(table)[-7:] == ["trial", "state", "window", "is_met", "is_best", "on_front", "error"]
    assert table["trial"].tolist() == list(range(16))
    assert set(table["state"]) <= {"ran", "given up"}
    # What is written is the first row, and more seats are used than it has.
    assert table["scheduler.max_num_seqs"][0] == 4
    assert table["workload.rate_scale"][0] == 1.0
    assert answer.is_met
    assert answer.best is not None
    assert answer.best["goodput_per_s"] > 15
    check_best(answer)


def test_windows_hold_fewer_requests_and_rule_settings_out(answer: TuneAnswer) -> None:
    given_up = answer.table[answer.table["state"] == "given up"]
    assert len(given_up)
    assert set(given_up["window"]) == {0.3}
    assert given_up["goodput_per_s"].isna().all()
    assert set(answer.table.loc[answer.table["state"] == "ran", "window"]) == {1.0}


def test_the_folder_holds_the_answer_and_a_yaml_to_run(answer: TuneAnswer, folder: Path) -> None:
    read = load_tune(folder)
    files = read.manifest["files"]
    assert to_json(read) == to_json(replace(answer, manifest={**answer.manifest, "files": files}))
    pd.testing.assert_frame_equal(read.table, answer.table, check_dtype=False)
    result = cbsim.run(folder / "best.yaml")
    assert answer.best is not None
    assert result.summary["goodput_per_s"] == answer.best["goodput_per_s"]
    written = yaml.safe_load((folder / "best.yaml").read_text())
    # As short as it was written, with the values found in their places.
    assert written["scheduler"] == {
        "type": "continuous",
        "max_num_seqs": answer.best["scheduler.max_num_seqs"],
    }
    assert "tune" not in written
    assert written.keys() == CONFIG.keys() - {"tune"} | {"gpu", "model"} & written.keys()


def test_a_second_call_runs_nothing(
    answer: TuneAnswer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "table.csv").read_bytes()
    ran = Counting(monkeypatch)
    states: list[TuneProgress] = []
    tune(CONFIG, folder, progress=states.append)
    assert ran.num_runs == 0
    assert states[-1].num_runs == 0
    assert states[-1].num_reused == len(list((folder / "points").iterdir()))
    assert states[-1].num_done == 16
    assert (folder / "table.csv").read_bytes() == before


def test_two_workers_find_the_same(answer: TuneAnswer, folder: Path, tmp_path: Path) -> None:
    pooled = tune(CONFIG, tmp_path, workers=2)
    assert to_json(pooled) == to_json(answer)
    for name in ("table.csv", "best.yaml", "tune.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_killed_tune_goes_on(
    answer: TuneAnswer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED.replace("{out}", str(out))], check=False)
    assert killed.returncode == 9
    assert len(list((out / "points").glob("*.json"))) == 9
    ran = Counting(monkeypatch)
    assert to_json(tune(CONFIG, out)) == to_json(answer)
    assert ran.num_runs == len(list((folder / "points").iterdir())) - 9


def test_more_trials_begin_with_the_same(answer: TuneAnswer, tmp_path: Path, folder: Path) -> None:
    more = tune(with_tune(trials=20), tmp_path)
    columns = ["workload.rate_scale", "scheduler.max_num_seqs", "state", "goodput_per_s"]
    pd.testing.assert_frame_equal(more.table[columns][:16], answer.table[columns])


def test_an_interrupted_tune_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Counting(monkeypatch, stop_at=4)
    with pytest.raises(TuneInterrupted) as caught:
        tune(CONFIG, tmp_path / "out")
    assert str(caught.value) == f"3 runs kept in {tmp_path / 'out'}; the same call goes on"


def test_where_none_meets_the_slo_the_nearest_is_named(tmp_path: Path) -> None:
    answer = tune(with_tune() | {"slo": {"ttft_s": {"p95": 0.05}}}, tmp_path)
    assert not answer.is_met
    assert answer.best is not None
    assert answer.best["ttft_s.p95"] == answer.table["ttft_s.p95"].min()
    assert (
        (tmp_path / "best.yaml").read_text().startswith("# The nearest to the SLO, which none meets, of 16")
    )
    check_best(answer)


def apart(**cluster: Any) -> dict[str, Any]:
    """The small question with a pool that computes prompts, two GPUs a replica, and one that decodes."""
    pools = [
        {"name": "prefill", "role": "prefill", "parallel": {"tensor": 2}},
        {"name": "decode", "role": "decode"},
    ]
    scheduler = {"scheduler": {"type": "vllm", "max_num_seqs": 8}}
    return CONFIG | scheduler | {"cluster": {"pools": pools} | cluster}


def test_costs_of_a_cluster_are_those_of_all_its_pools(tmp_path: Path) -> None:
    keys = {"cluster.pools.prefill.count": [1, 2], "cluster.pools.1.count": [1, 3]}
    priced = {"gpu": {"name": "h200", "price_per_hour": 3.0}, "seed": 1}
    plan = {"trials": 9, "windows": [], "objective": "cost"}
    states: list[TuneProgress] = []
    answer = tune(apart() | priced | {"tune": keys | plan}, tmp_path, progress=states.append)
    assert {state.num_trials for state in states} == {6}, "there are no more settings"
    table = answer.table
    assert len(table) == 6
    assert (table["state"] == "ran").all()
    num_gpus = 2 * table["cluster.pools.prefill.count"] + table["cluster.pools.1.count"]
    hours = num_gpus / table["output_token_throughput_per_s"] * 1e6 / 3600
    assert table["gpu_hours_per_million_tokens"].tolist() == pytest.approx(hours.tolist())
    assert table["cost_per_million_tokens"].tolist() == pytest.approx((3.0 * hours).tolist())
    assert answer.best_settings == {"cluster.pools.prefill.count": 1, "cluster.pools.1.count": 1}


def test_costs_of_pools_that_change_are_those_of_who_was_there(tmp_path: Path) -> None:
    scaling = {"type": "outstanding", "max": 4, "interval_s": 5, "provision_s": 2, "stabilization_s": 5}
    config = apart(autoscale=scaling) | {
        "workload": CONFIG["workload"] | {"arrivals": {"type": "poisson", "rate_per_s": 12.0}},
        "tune": {"cluster.autoscale.target": [0.5, 2.0], "trials": 3, "windows": []},
    }
    table = tune(config, tmp_path).table
    num_gpus = 2 * table["mean_replicas.prefill"] + table["mean_replicas.decode"]
    assert num_gpus.max() > 4
    hours = num_gpus / table["output_token_throughput_per_s"] * 1e6 / 3600
    assert table["gpu_hours_per_million_tokens"].tolist() == pytest.approx(hours.tolist())


@pytest.mark.parametrize(
    ("varied", "problem"),
    [
        (
            {"cluster.pools.prefil.count": [1, 2]},
            "config: cluster.pools.prefil.count: 'cluster.pools' has no 'prefil'; did you mean 'prefill'?",
        ),
        (
            {"cluster.pools.decode.count": [0, 2]},
            "config: cluster.pools[1].count: got 0; expected an integer >= 1 and <= 100000",
        ),
        (
            {"cluster.pools.1.cuont": [1, 2]},
            "config: cluster.pools[1].cuont: unknown key; did you mean 'count'?",
        ),
        (
            {
                "cluster.pools.decode.gpu": [{"name": "h100", "price_per_hour": 2.0}, "h200"],
                "objective": "cost",
            },
            "tune.objective: cost: h200 lacks gpu.price_per_hour, which others have; "
            "expected one for every GPU, or none, for which GPU hours stand in",
        ),
    ],
)
def test_mistakes_below_pools(varied: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        tune(apart() | {"tune": varied}, tmp_path)
    assert caught.value.problems == (problem,)


def test_prices_turn_hours_into_money(tmp_path: Path) -> None:
    priced = with_tune(objective="cost", trials=6) | {"gpu": {"name": "h200", "price_per_hour": 3.0}}
    answer = tune(priced, tmp_path)
    assert answer.aim.cost == "cost_per_million_tokens"
    ran = answer.table[answer.table["state"] == "ran"]
    # Dollars an hour over million tokens an hour.
    tokens_per_hour = ran["output_token_throughput_per_s"].astype(float) * 3600 / 1e6
    assert ran["cost_per_million_tokens"].tolist() == pytest.approx((3.0 / tokens_per_hour).tolist())
    assert ran["gpu_hours_per_million_tokens"].tolist() == pytest.approx((1 / tokens_per_hour).tolist())
    check_best(answer)


def test_a_space_that_is_small_is_tried_whole(tmp_path: Path) -> None:
    config = CONFIG | {"tune": {"scheduler.type": ["continuous", "chunked_prefill"], "seed": [0, 1, 2]}}
    answer = tune(config, tmp_path)
    tried = answer.table[["scheduler.type", "seed"]].to_dict("split")["data"]
    assert sorted(tried) == [[kind, seed] for kind in ("chunked_prefill", "continuous") for seed in (0, 1, 2)]
    check_best(answer)


def test_conditions_leave_settings_out(tmp_path: Path) -> None:
    keys = {"scheduler.max_tokens_per_step": [16, 64], "scheduler.chunk_size": [8, 64]}
    where = "scheduler.chunk_size <= scheduler.max_tokens_per_step"
    vllm = {"type": "vllm", "max_num_seqs": 4, "max_tokens_per_step": 64}
    config = CONFIG | {"scheduler": vllm, "tune": {**keys, "trials": 8, "where": where}}
    table = tune(config, tmp_path).table[1:]
    assert len(table) == 7
    assert (table["scheduler.chunk_size"] <= table["scheduler.max_tokens_per_step"]).all()


def test_values_that_can_not_run_are_told_in_their_rows(tmp_path: Path) -> None:
    keys = {"kv_cache.num_blocks": [None, 100], "gpu.memory_gib": [10.0, 40.0, 141.0]}
    config = CONFIG | {"tune": keys}
    answer = tune(config, tmp_path)
    failed = answer.table[answer.table["state"] == "failed"]
    assert failed["gpu.memory_gib"].tolist() == [10.0]
    assert failed["kv_cache.num_blocks"].isna().all()
    assert "kv_cache" in failed["error"].iloc[0]
    assert "; the first: " in tune_table(answer).to_text()
    check_best(answer)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (
            {key: value for key, value in CONFIG.items() if key != "tune"},
            "tune: missing; expected keys to vary, as in --set 'tune={scheduler.max_num_seqs: [16, 512]}'",
        ),
        (
            with_tune(scheduler__max_num_seq=[1, 4]),
            "config: scheduler.max_num_seq: unknown key; did you mean 'max_num_seqs'?",
        ),
        (
            with_tune(scheduler__max_num_seqs=[0, 4]),
            "config: scheduler.max_num_seqs: got 0; expected an integer >= 1",
        ),
        (
            with_tune(scheduler__max_num_seqs=[0.5, 4]),
            "config: scheduler.max_num_seqs: got 0.5; expected an integer >= 1",
        ),
        (
            with_tune(where="scheduler.max_num_seq < 3"),
            "config: tune.where: 'scheduler.max_num_seq < 3': no setting 'scheduler.max_num_seq'; "
            "did you mean 'scheduler.max_num_seqs'?",
        ),
        (
            with_tune(slo__ttft_s=[1.0, 2.0]),
            "tune.slo.ttft_s: is what settings are judged by; expected other keys",
        ),
        (
            with_tune(objective="cost", gpu=[{"name": "h100", "price_per_hour": 2.0}, "h200"]),
            "tune.objective: cost: h200 lacks gpu.price_per_hour, which others have; "
            "expected one for every GPU, or none, for which GPU hours stand in",
        ),
    ],
)
def test_mistakes(config: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        tune(config, tmp_path)
    assert problem in caught.value.problems
    assert list(tmp_path.iterdir()) == []


def test_a_tune_beside_a_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tune: has a sweep over seed; allowed: one run, as with --set"):
        tune(CONFIG | {"sweep": {"seed": [0, 1]}}, tmp_path)


def test_keys_that_are_set_do_not_vary(tmp_path: Path) -> None:
    experiment = Experiment.of(CONFIG, {"scheduler.max_num_seqs": 8})
    assert experiment.notes == ("tune.scheduler.max_num_seqs: dropped, since scheduler.max_num_seqs is set",)
    with pytest.raises(ConfigError, match="nothing is left to vary"):
        tune(CONFIG, tmp_path, overrides={"scheduler.max_num_seqs": 8, "workload.rate_scale": 2.0})


def test_a_folder_of_something_else_is_kept(tmp_path: Path) -> None:
    cbsim.sweep(CONFIG | {"sweep": {"seed": [0]}, "tune": {}}, out=tmp_path)
    with pytest.raises(CbsimError, match="holds a sweep; name another folder for the tune"):
        tune(CONFIG, tmp_path)


def test_runs_and_sweeps_leave_a_tune_alone(tmp_path: Path) -> None:
    plain = {key: value for key, value in CONFIG.items() if key != "tune"}
    assert cbsim.run(CONFIG).summary["e2e_s"] == cbsim.run(plain).summary["e2e_s"]
    assert len(cbsim.sweep(CONFIG | {"sweep": {"seed": [0, 1]}}, out=tmp_path)) == 2


def test_a_dask_cluster_finds_the_same(answer: TuneAnswer, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        clustered = tune(CONFIG, tmp_path, cluster=cluster.scheduler_address)
    assert to_json(clustered) == to_json(answer)


DRAWN_KEYS = {
    "scheduler.max_num_seqs": st.sampled_from([[1, 16], [1, 2, 4], {"from": 2, "to": 12, "step": 5}]),
    "workload.rate_scale": st.sampled_from([[0.5, 40], {"from": 1, "to": 9}, [1.0, 3.0, 9.0]]),
    "cost_model.step_s": st.sampled_from([[0.01, 0.2], {"choices": [0.1, 0.05]}]),
    "scheduler": st.just([{"type": "static", "max_num_seqs": 4}, {"type": "continuous", "max_num_seqs": 4}]),
    "seed": st.just([0, 1, 5]),
}


@st.composite
def drawn_tunes(draw: st.DrawFn) -> dict[str, Any]:
    """Small tunes: any of some keys, any objective, SLOs of either kind that hold or do not."""
    names = draw(st.lists(st.sampled_from(list(DRAWN_KEYS)), min_size=1, max_size=3, unique=True))
    # A whole section before keys in it.
    keys = {name: draw(DRAWN_KEYS[name]) for name in sorted(names, key=lambda name: name.count("."))}
    limit_s = draw(st.sampled_from([0.05, 0.25, 1.0, 100.0]))
    slo = draw(st.sampled_from([{}, {"ttft_s": limit_s}, {"ttft_s": {"p95": limit_s}, "e2e_s": limit_s}]))
    words = {
        "trials": draw(st.integers(1, 9)),
        "batch": draw(st.integers(1, 5)),
        "windows": draw(st.sampled_from([[], [0.5]])),
        "objective": draw(st.sampled_from(["goodput", "cost", "latency"])),
    }
    workload = CONFIG["workload"] | {"num_requests": 220}
    return CONFIG | {"workload": workload, "slo": slo, "tune": keys | words, "seed": draw(st.integers(0, 3))}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn_tunes())
def test_of_any_tune_the_best_is_the_best_of_its_table(
    tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any]
) -> None:
    out = tmp_path_factory.mktemp("drawn")
    answer = tune(config, out)
    check_best(answer)
    keys = list(answer.keys)
    distinct = answer.table[keys].astype(str).drop_duplicates()
    assert len(distinct) == len(answer.table) <= config["tune"]["trials"]
    if answer.best is not None:
        again = cbsim.run(out / "best.yaml").summary
        assert again["output_token_throughput_per_s"] == answer.best["output_token_throughput_per_s"]
        assert (again["slo_met"] is not False) == answer.is_met
