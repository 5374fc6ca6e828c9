"""`cbsim validate` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import cbsim
from cbsim.base.paths import data_folder
from cbsim.cli import main
from cbsim.cli.commands.validate_command import _warnings_of
from cbsim.lab.calibrate.pointsfile import read_meta, save_meta
from tests.lab.validate.logs import SETTINGS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment, and a run of it in place of a server's log."""
    folder = tmp_path_factory.mktemp("validate")
    (folder / "experiment.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    cbsim.run({**SETTINGS, "output": {"batches": True}}, out=folder / "run")
    return folder


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(main, ["validate", *map(str, arguments)])


def test_a_run_is_its_own_simulation(folder):
    answer = call(folder / "experiment.yaml", "--log", folder / "run", "--replay", "--json")
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.output)
    assert all(abs(figure["error_pct"]) < 1e-6 for figure in told["figures"])
    assert told["replay"]["num_contradictions"] == 0
    assert told["replay"]["recorded_over_predicted"]["all"]["ratio"] == pytest.approx(1.0)


def test_tables_for_readers(folder, tmp_path):
    answer = call(folder / "experiment.yaml", "--log", folder / "run", "--replay", "--out", tmp_path / "out")
    assert answer.exit_code == 0, answer.output
    for text in ("TTFT mean", "E2E p99", "ITL p50", "request throughput", "replay: 0 of"):
        assert text in answer.output
    assert "verdict: means are right within 0.0%" in answer.output
    assert answer.output.endswith(f"picture: {tmp_path / 'out' / 'recorded-and-simulated.png'}\n")
    assert (tmp_path / "out" / "recorded-and-simulated.png").is_file()


def test_a_replay_without_token_times(folder, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text(
        "prompt_tokens,output_tokens,arrival_s,first_token_s,last_token_s\n10,2,0,1,2\n20,3,0.5,1,3\n"
    )
    answer = call(folder / "experiment.yaml", "--log", log, "--replay")
    assert answer.exit_code == 2
    assert answer.output.startswith(
        f"{log}: a replay needs token times: a column token_times_s or token_times"
    )


def test_prompts_of_a_log_are_found_in_the_prefix_cache(folder, tmp_path):
    """Every prompt begins with the same 48 tokens, whether a file of prompts or the log itself says so."""
    requests = cbsim.load_run(folder / "run").requests
    shared = [{"request_id": name, "hash_ids": [1, 2, 3]} for name in requests["request_id"]]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in shared))
    log = tmp_path / "log.jsonl"
    columns = {"input_tokens": "num_prompt_tokens", "output_tokens": "num_output_tokens"}
    rows = [
        row
        | {"arrival_s": one["arrival_s"], "first_token_s": one["arrival_s"] + one["ttft_s"]}
        | {name: one[column] for name, column in columns.items()}
        | {"last_token_s": one["finished_at_s"]}
        for row, one in zip(shared, requests.to_dict("records"), strict=True)
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = (folder / "experiment.yaml", "--json", "--set", "kv_cache.prefix_caching=true")
    common += ("--set", "workload={type: trace, path: azure-like.csv, hash_block_tokens: 16}")
    alone = call(*common, "--log", folder / "run")
    apart = call(*common, "--log", folder / "run", "--prompts", prompts)
    inside = call(*common, "--log", log)
    assert ttft_mean_s(apart) < ttft_mean_s(alone)
    assert ttft_mean_s(inside) == pytest.approx(ttft_mean_s(apart), rel=1e-9)
    assert "nothing is found in the prefix cache (--prompts says it)" in alone.output
    off = call(*common, "--set", "kv_cache.prefix_caching=false", "--log", log)
    assert "prefix_caching is false: what prompts share is computed again" in off.output


def test_another_cost_is_seen(folder):
    answer = call(
        folder / "experiment.yaml",
        *("--log", folder / "run", "--json", "--set", "cost_model.host=sync"),
    )
    told = json.loads(answer.output)
    figures = {figure["name"]: figure for figure in told["figures"]}
    assert figures["tpot_s.mean"]["error_pct"] > 5
    assert told["verdict"]["error_pct"]["tpot_s"] == figures["tpot_s.mean"]["error_pct"]
    assert told["verdict"]["remedies"][0].startswith("--set cost_model.host=async would give TTFT")


def ttft_mean_s(answer: Any) -> float:
    assert answer.exit_code == 0, answer.output
    (mean,) = [each for each in json.loads(answer.output)["figures"] if each["name"] == "ttft_s.mean"]
    return float(mean["simulated"])


@pytest.mark.parametrize("priced_by", ["constant", "profile"])
def test_settings_beside_a_profile_are_the_profiles(folder, tmp_path, priced_by):
    """Whatever the experiment's own cost model is."""
    profile = data_folder("calibration") / "profiles" / "h200" / "llama-3-8b"
    own = {"constant": {"step_s": 0.1}, "profile": {"profile": "h200/llama-3-8b"}}[priced_by]
    settings = {**SETTINGS, "cost_model": {"type": priced_by, **own}}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(settings))
    common = (tmp_path / "e.yaml", "--log", folder / "run", "--json", "--profile", profile)
    sync, none = (ttft_mean_s(call(*common, "--set", f"cost_model.host={host}")) for host in ("sync", "none"))
    assert sync > none
    whole = "cost_model={type: profile, profile: h200/llama-3-8b, host: sync}"
    assert sync == ttft_mean_s(call(*common[:-2], "--set", whole))
    wrong = call(*common, "--set", "cost_model.hots=sync")
    assert wrong.output == "--set: cost_model.hots: unknown key; did you mean 'host'?\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replay"], "--replay: needs --log"),
        (["--column", "arrival=x"], "--column: needs --log"),
        (["--prompts", "x"], "--prompts: needs --log"),
        (["--log", "nowhere.jsonl"], "nowhere.jsonl: can't be read"),
        (["--log", "x", "--column", "arrival"], "--column: got 'arrival'; expected WHAT=NAME"),
        (["--log", "x", "--set", "replicas.count=2"], "a log is one replica's"),
    ],
)
def test_mistakes(folder, arguments, message):
    answer = call(folder / "experiment.yaml", *arguments)
    assert answer.exit_code == 2
    assert message in answer.output
    assert "Traceback" not in answer.output


def test_what_is_to_be_known_about_the_timings_is_told(tmp_path: Path) -> None:
    meta = read_meta(data_folder("calibration") / "profiles" / "h200" / "llama-3-8b" / "meta.json")
    save_meta(meta.model_copy(update={"warnings": ["3 of 5 timings are unstable"]}), tmp_path / "meta.json")
    assert _warnings_of(tmp_path) == ["the profile's timings: 3 of 5 timings are unstable"]
    assert _warnings_of(tmp_path / "nowhere") == []
