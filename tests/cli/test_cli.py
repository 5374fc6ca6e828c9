"""The command line as a user meets it: what is printed where, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import cbsim
from cbsim.cli import main

TRACE = "arrived_at,num_prefill_tokens,num_decode_tokens\n0,100,3\n0.5,50,2\n0.7,20,1\n"
EXPERIMENT = """\
workload: {type: trace, path: t.csv}
scheduler: {type: continuous}
cost_model: {type: constant, step_s: 0.25}
"""


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(TRACE)
    (tmp_path / "e.yaml").write_text(EXPERIMENT)
    return tmp_path


def cbsim_command(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def test_run_prints_figures_and_writes_the_folder() -> None:
    ran = cbsim_command("run", "e.yaml", "--out", "out")
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert "requests" in ran.stdout
    assert "\x1b" not in ran.stdout
    assert ran.stdout.endswith("written to out\n")
    assert cbsim.load_run("out").summary["num_finished"] == 3


def test_run_as_json_is_the_summary() -> None:
    ran = cbsim_command("run", "e.yaml", "--json", "--set", "name=mine")
    assert json.loads(ran.stdout)["num_finished"] == 3
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("mine-")
    summary = json.loads((folder / "summary.json").read_text())
    assert {**json.loads(ran.stdout), "simulation": None} == {**summary, "simulation": None}


def test_the_default_folder_depends_on_the_configuration_alone() -> None:
    for _ in range(2):
        cbsim_command("run", "e.yaml", "--json")
    cbsim_command("run", "e.yaml", "--json", "--set", "seed=1")
    assert len(list(Path("runs").iterdir())) == 2


def test_the_command_line_and_python_go_the_same_way() -> None:
    cbsim_command("run", "e.yaml", "--out", "out", "--json")
    result = cbsim.run("e.yaml")
    assert cbsim.load_run("out").config == result.config
    assert cbsim.load_run("out").requests.equals(result.requests)


def test_run_refuses_to_replace_what_is_no_run_before_it_starts(working_folder: Path) -> None:
    ran = cbsim_command("run", "e.yaml", "--out", str(working_folder))
    assert ran.exit_code == 2
    assert ran.stdout == ""
    assert "no run stands there" in ran.stderr


def test_a_configuration_with_a_sweep_is_swept() -> None:
    arguments = ("e.yaml", "--set", "sweep.scheduler.max_num_seqs=[1, 2]", "--out", "out", "--no-plots")
    ran = cbsim_command("run", *arguments)
    assert ran.exit_code == 0
    assert ran.stderr.startswith("e has a sweep: running all its points\n")
    assert {path.name for path in Path("out").iterdir()} == {"points", "table.csv", "table.parquet"}
    rows = json.loads(cbsim_command("sweep", *arguments, "--json", "--quiet").stdout)
    assert [row["scheduler.max_num_seqs"] for row in rows] == [1, 2]
    assert [row["num_finished"] for row in rows] == [3, 3]


def test_a_sweep_of_few_points_is_drawn() -> None:
    ran = cbsim_command("sweep", "e.yaml", "--set", "sweep.seed=[0, 1]", "--out", "out", "--quiet")
    assert ran.exit_code == 0
    pictures = {path.name for path in Path("out").iterdir() if path.suffix in (".png", ".svg")}
    stems = ("latency_cdfs", "timeline", "utilization")
    assert pictures == {f"{stem}{suffix}" for stem in stems for suffix in (".png", ".svg")}


def test_a_sweep_of_which_every_point_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(experiment: object, progress: object = None) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(import_module("cbsim.studies.sweep"), "run_experiment", fail)
    ran = cbsim_command("sweep", "e.yaml", "--set", "sweep.seed=[0, 1]", "--out", "out")
    assert ran.exit_code == 2
    assert "failed: seed=1: RuntimeError: no luck" in ran.stderr
    assert ran.stderr.endswith("RuntimeError: no luck\nnone of the 2 points could run\n")
    assert ran.stdout == ""


def test_an_interrupted_sweep_ends_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(experiment: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("cbsim.studies.sweep"), "run_experiment", interrupt)
    ran = cbsim_command("sweep", "e.yaml", "--set", "sweep.seed=[0, 1]", "--out", "out", "--quiet")
    told = "\n0 of 2 points kept in out; the same call goes on\n"
    assert (ran.exit_code, ran.stdout, ran.stderr) == (130, "", told)


def test_an_interrupted_run_ends_in_a_line_and_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch, working_folder: Path
) -> None:
    def interrupt(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("cbsim.studies.run"), "simulate_core", interrupt)
    ran = cbsim_command("run", "e.yaml", "--out", "out", "--quiet")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (130, "", "\ninterrupted\n")
    assert not (working_folder / "out").exists()


def test_too_little_memory_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_: object) -> None:
        raise MemoryError("Unable to allocate 7 GiB")

    monkeypatch.setattr("cbsim.cli.commands.run_command.run_experiment", allocate)
    ran = cbsim_command("run", "e.yaml", "--out", "out")
    assert (ran.exit_code, ran.stderr) == (2, "out of memory: Unable to allocate 7 GiB\n")


def test_a_pinned_axis_is_noted() -> None:
    axis = "sweep.seed=[0, 1]"
    ran = cbsim_command("run", "e.yaml", "--set", axis, "--set", "seed=7", "--out", "out", "--json")
    assert ran.stderr == "sweep.seed: dropped, since seed is set\n"
    assert cbsim.load_run("out").config["seed"] == 7


def test_mistakes_exit_2_with_a_line_each_and_no_traceback(working_folder: Path) -> None:
    (working_folder / "e.yaml").write_text(EXPERIMENT.replace("step_s: 0.25", "step: 1") + "modl: tiny\n")
    ran = cbsim_command("run", "e.yaml")
    assert ran.exit_code == 2
    assert ran.stdout == ""
    assert ran.stderr.splitlines() == [
        "e.yaml:3: cost_model.step_s: missing; expected a number > 0",
        "e.yaml:3: cost_model.step: unknown key; did you mean 'step_s'?",
        "e.yaml:4: modl: unknown key; did you mean 'model'?",
    ]
    assert not (working_folder / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("run", "quickstrat"),
            "quickstrat: no such file, and no experiment of that name; did you mean 'quickstart'?",
        ),
        (("run", "f.yaml"), "f.yaml: no such file; did you mean 'e.yaml'?"),
        (("run", "gone/f.yaml"), "gone/f.yaml: no such file"),
        (("run", "."), ".: is a folder; expected an experiment file"),
        (("list", "scheduler"), "no list of 'scheduler'; did you mean 'schedulers'?"),
        (
            ("run", "e.yaml", "--set", "seed"),
            "--set: got 'seed'; expected KEY=VALUE, as in --set scheduler.max_num_seqs=64",
        ),
    ],
)
def test_mistakes_in_arguments(arguments: tuple[str, ...], message: str) -> None:
    ran = cbsim_command(*arguments)
    assert (ran.exit_code, ran.stderr) == (2, message + "\n")


def test_a_wrong_command_is_told_with_the_nearest() -> None:
    ran = cbsim_command("rnu", "e.yaml")
    assert ran.exit_code == 2
    assert ran.stderr.endswith("Error: no command 'rnu'; did you mean 'run'?\n")


def test_check_tells_what_would_run_and_all_mistakes_of_all_files(working_folder: Path) -> None:
    (working_folder / "bad.yaml").write_text(EXPERIMENT + "seed: x\n")
    (working_folder / "lost.yaml").write_text(EXPERIMENT.replace("t.csv", "lost.csv"))
    ran = cbsim_command("check", "e.yaml", "bad.yaml", "lost.yaml")
    assert ran.exit_code == 2
    assert ran.stdout == (
        "ok  e.yaml: 3 requests, continuous, llama-3-8b on h200, constant costs, "
        "KV cache of 891,072 tokens for a longest context of 8,192 "
        "(prompt and answer reserved at admission)\n"
    )
    first, second = ran.stderr.splitlines()
    assert first == "bad.yaml:4: seed: got 'x' (str); expected an integer >= 0"
    assert second.startswith("lost.yaml:1: workload.path: lost.csv: no such file")
    assert not (working_folder / "runs").exists()


def test_check_reads_the_trace(working_folder: Path) -> None:
    (working_folder / "t.csv").write_text(TRACE + "0.9,-3,1\n")
    ran = cbsim_command("check", "e.yaml")
    assert ran.exit_code == 2
    assert "t.csv:5" in ran.stderr


def test_check_tells_a_live_file_that_would_be_lost() -> None:
    ran = cbsim_command("check", "e.yaml", "--set", "observers=[{type: metrics, live_file: t.csv}]")
    told = "observer MetricsObserver: t.csv: holds no metrics of cbsim; name another file, or remove it"
    assert (ran.exit_code, ran.stderr) == (2, f"--set: observers: {told}\n")


def test_check_counts_points() -> None:
    sweep = "sweep={scheduler: [static, continuous], replicates: 2, replicas.count: [4]}"
    ran = cbsim_command("check", "e.yaml", "--set", sweep)
    assert ran.stdout == (
        "ok  e.yaml: 4 points over scheduler, replicas.count, seed; 3 requests, static and continuous, "
        "llama-3-8b on 4 x h200, constant costs, "
        "KV cache of 891,072 to 897,984 tokens for a longest context of 8,192 (the longest "
        "request reserved for every slot or prompt and answer reserved at admission)\n"
    )


def test_check_counts_the_gpus_of_all_pools() -> None:
    pools = "[{name: a, count: 2}, {name: b, count: 3, parallel: {tensor: 2}}, {name: c, gpu: h100}]"
    ran = cbsim_command("check", "e.yaml", "--set", f"cluster={{pools: {pools}}}")
    assert ", llama-3-8b on 8 x h200 and h100, constant costs, " in ran.stdout


def test_check_tells_what_vllm_would_not_start_with() -> None:
    """0.72 of an RTX 4090 leave Llama-3-8B less than one context of 8,192 tokens, for which it was made."""
    cache = ("kv_cache.gpu_memory_utilization=0.72", "kv_cache.prefix_caching=true")
    settings = ("gpu=rtx4090", "scheduler.type=vllm", *cache)
    ran = cbsim_command("check", "e.yaml", *(part for each in settings for part in ("--set", each)))
    first, note = ran.stdout.splitlines()
    assert first.endswith(
        "KV cache of 6,928 tokens for a longest context of 8,192 "
        "(room for a whole prompt needed at admission)"
    )
    assert note == (
        "    note: one request of llama-3-8b's longest context, 8,192 tokens, needs 1.00 GiB of KV cache on "
        "each GPU, and 866 MiB are there: vLLM would not start; up to 6,928 tokens fit (raise "
        "kv_cache.gpu_memory_utilization, or lower model.max_model_len)"
    )
    assert ran.exit_code == 0


def test_check_tells_a_host_that_works_ahead_of_a_scheduler_that_does_not() -> None:
    parts = ("cost_model={type: profile, profile: h200/llama-3-8b}", "scheduler={type: vllm}", "gpu=h200")
    flags = [flag for part in parts for flag in ("--set", part)]
    note = "scheduler.async_scheduling is false, but with cost_model.host: async"
    assert note not in cbsim_command("check", "e.yaml", *flags).stdout
    flags += ["--set", "scheduler.async_scheduling=false"]
    assert note in cbsim_command("check", "e.yaml", *flags).stdout
    assert note not in cbsim_command("check", "e.yaml", *flags, "--set", "cost_model.host=sync").stdout


def test_ctrl_c_before_the_command_line_is_there_prints_no_traceback() -> None:
    code = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from cbsim.__main__ import main
assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
main(["list", "slos"], standalone_mode=False)
assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_list() -> None:
    ran = cbsim_command("list")
    assert ran.exit_code == 0
    for name in ("chunked_prefill", "synthetic", "roofline", "llama-3-8b", "h200", "chat", "quickstart"):
        assert f"  {name} " in ran.stdout
    assert "can't import" not in ran.stdout
    models = json.loads(cbsim_command("list", "models", "--json").stdout)["models"]
    assert (
        models["llama-3-8b"]
        == "15.0 GiB of bfloat16 weights, 128 KiB of KV cache a token, up to 8,192 tokens"
    )
    profiles = json.loads(cbsim_command("list", "profiles", "--json").stdout)["profiles"]
    assert profiles["h200/llama-3-70b"] == "of 4 GPUs, kernels that were held out 1.4 % off at the median"


def test_schema() -> None:
    printed = json.loads(cbsim_command("schema").stdout)
    assert "scheduler" in printed["properties"]
    ran = cbsim_command("schema", "--out", "generated")
    assert ran.stdout == "written to generated/experiment.schema.json\nwritten to generated/reference.md\n"
    assert json.loads(Path("generated/experiment.schema.json").read_text()) == printed
    assert {path.name for path in Path("generated").iterdir()} == {"experiment.schema.json", "reference.md"}


def test_workload_stats() -> None:
    ran = cbsim_command("workload", "stats", "t.csv")
    assert ran.exit_code == 0
    assert "requests" in ran.stdout
    limited = cbsim_command("workload", "stats", "e.yaml", "--set", "workload.limit=2", "--json")
    assert json.loads(limited.stdout)["num_requests"] == 2


def test_workload_stats_plots() -> None:
    ran = cbsim_command("workload", "stats", "t.csv", "--plot", "p.png", "--json")
    assert json.loads(ran.stdout)["num_requests"] == 3
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")


def test_workload_convert_from_a_generators_file(working_folder: Path) -> None:
    (working_folder / "g.yaml").write_text(
        "type: synthetic\nnum_requests: 5\narrivals: {type: poisson, rate_per_s: 2}\n"
        "prompt_tokens: {type: fixed, value: 10}\noutput_tokens: {type: fixed, value: 3}\n"
    )
    assert cbsim_command("workload", "convert", "g.yaml", "o.csv").stdout == "written to o.csv\n"
    assert len(Path("o.csv").read_text().splitlines()) == 6
    ran = cbsim_command("workload", "convert", "g.yaml", "o.csv", "--set", "workload.num_requests=none")
    assert ran.stderr == (
        "--set: workload.num_requests: got 'none' (str); expected an integer >= 1 and <= 1,000,000,000 or "
        "null\n"
    )


def test_version() -> None:
    assert cbsim_command("--version").stdout == f"cbsim, version {cbsim.__version__}\n"


def test_a_model_is_told_as_text_and_as_json() -> None:
    config = {"model_type": "mixtral", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "num_local_experts": 8}
    config |= {"num_experts_per_tok": 2, "max_position_embeddings": 256, "vision_config": {"depth": 2}}
    Path("mixtral.json").write_text(json.dumps(config))
    told = cbsim_command("model", "mixtral.json", "--set", "parallel.tensor=2", "--json")
    figures = json.loads(told.stdout)
    assert figures["num_parameters"] - figures["num_active_parameters"] == 2 * 6 * 3 * 64 * 128
    assert (figures["kv_bytes_per_token"], figures["kv_bytes_per_token_of_gpu"]) == (256, 128)
    assert figures["weight_bytes"] == 2 * figures["num_parameters"]
    assert figures["not_modelled"] == ["vision_config: the encoder of images, with its weights"]
    ran = cbsim_command("run", "e.yaml", "--set", "model=mixtral.json", "--set", "name=mine", "--json")
    note = "mixtral: not modelled: vision_config: the encoder of images, with its weights"
    assert [each for each in json.loads(ran.stdout)["notes"] if "not modelled" in each] == [note]
    text = cbsim_command("model", "mixtral.json", "--set", "parallel.tensor=2").stdout
    assert "2       8 experts, 2 a token, each 128 wide\n" in text
    assert "on each of 2 GPUs" in text
    assert text.endswith("- not modelled: vision_config: the encoder of images, with its weights\n")


def test_a_model_that_cannot_be_told_is_one_line() -> None:
    Path("config.json").write_text(json.dumps({"model_type": "bert"}))
    for file, line in (
        ("config.json", "config.json: bert can't be modelled: an encoder\n"),
        ("llama-3-8", "FILE: model: unknown model 'llama-3-8'; did you mean 'llama-3-8b'?\n"),
    ):
        told = cbsim_command("model", file)
        assert (told.exit_code, told.stdout, told.stderr) == (2, "", line)
