"""Serve commands as people write them, and the experiments they become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from cbsim.cli import main
from cbsim.config.engine_flags import FLAGS
from cbsim.config.yaml_text import parse_yaml
from cbsim.specs.model_names import find_model
from cbsim.studies.experiment import Experiment
from cbsim.studies.serve_command import read_source
from cbsim.studies.served_experiment import ServedExperiment

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
K8S = """\
apiVersion: apps/v1
kind: Deployment
spec:
  template:
    spec:
      nodeSelector: {cloud.google.com/gke-accelerator: nvidia-h100-80gb}
      containers:
      - name: vllm
        image: vllm/vllm-openai:v0.11.0
        command: ["python3", "-m", "vllm.entrypoints.openai.api_server"]
        args:
        - --model=$(MODEL_ID)
        - --tensor-parallel-size=2
        - --gpu-memory-utilization=0.95
        env:
        - {name: MODEL_ID, value: meta-llama/Llama-3.3-70B-Instruct}
        - name: HF_TOKEN
          valueFrom: {secretKeyRef: {name: hf, key: token}}
"""
K8S_SHELL = """\
kind: Pod
spec:
  containers:
  - image: vllm/vllm-openai:v0.20.1
    command: ["/bin/sh", "-c"]
    args: ["vllm serve Qwen/Qwen3-32B --trust-remote-code --max-num-batched-tokens 4096"]
"""
COMPOSE = """\
services:
  web: {image: nginx}
  vllm:
    image: vllm/vllm-openai:latest
    command: >
      --model mistralai/Mistral-7B-Instruct-v0.3
      --max-model-len 16384 --enforce-eager
"""
SCRIPT = """\
#!/bin/bash
# on 8x H200
export VLLM_USE_V1=1
pip install vllm==0.15.1
vllm serve openai/gpt-oss-120b \\
  --tensor-parallel-size 4 \\
  --async-scheduling --speculative-config '{
    "method": "ngram", "num_speculative_tokens": 2
  }' --served-model-name "a
b" &
vllm bench serve --model openai/gpt-oss-120b --request-rate 4
python -m sglang.launch_server --model-path Qwen/Qwen3-8B --tp 2
"""

COMMANDS: list[tuple[str, dict[str, Any]]] = [
    (
        f"vllm serve {LLAMA}",
        {"model.name": "llama-3.1-8b", "scheduler.max_num_seqs": 1024, "gpu.name": "h200"},
    ),
    (
        f"vllm serve {LLAMA} --max-num-seqs 256 -tp 4 --max_num_batched_tokens=4k --port 8000",
        {"scheduler.max_num_seqs": 256, "parallel.tensor": 4, "scheduler.max_tokens_per_step": 4000},
    ),
    (
        f"CUDA_VISIBLE_DEVICES=0,1 vllm serve {LLAMA} --no-enable-prefix-caching --max-model-len 32K -pp 2",
        {"kv_cache.prefix_caching": False, "model.max_model_len": 32768, "parallel.pipeline": 2},
    ),
    (
        "vllm serve deepseek-ai/DeepSeek-R1-0528 -dp 8 --enable-expert-parallel --kv-cache-dtype fp8_e4m3",
        {"parallel.data": 8, "parallel.expert": 8, "parallel.tensor": 1, "kv_cache.dtype": "fp8"},
    ),
    ("vllm serve Qwen/Qwen3-8B --data-parallel-size 4", {"replicas.count": 4, "parallel.data": 1}),
    (
        "vllm serve RedHatAI/Meta-Llama-3.1-70B-Instruct-FP8 -tp2 --num-gpu-blocks-override 5001",
        {"model.weight_dtype": "fp8", "parallel.tensor": 2, "kv_cache.num_blocks": 5000},
    ),
    (
        f"vllm serve {LLAMA} --speculative-config "
        """'{"method": "eagle3", "model": "yuhuili/EAGLE3", "num_speculative_tokens": 4}'""",
        {"scheduler.speculative.method": "eagle", "scheduler.speculative.num_tokens": 4},
    ),
    (
        f"vllm serve {LLAMA} --speculative-config.method ngram "
        "--speculative-config.num_speculative_tokens 5 -O3",
        {"scheduler.speculative.method": "ngram", "scheduler.speculative.num_tokens": 5},
    ),
    (
        f"vllm serve {LLAMA} --kv-transfer-config "
        """'{"kv_connector":"NixlConnector","kv_role":"kv_consumer","kv_load_failure_policy":"recompute"}'""",
        {"scheduler.connector.kind": "remote", "scheduler.connector.role": "consumer"},
    ),
    (
        f"docker run --gpus all -v ~/.cache/vllm:/root/.cache/vllm -p 8000:8000 --env HF_TOKEN=hf_x "
        f"--ipc=host vllm/vllm-openai:v0.11.0 --model {LLAMA} --long-prefill-token-threshold 512",
        {"scheduler.version": "0.15", "scheduler.async_scheduling": False, "scheduler.chunk_size": 512},
    ),
    (
        f"vllm serve {LLAMA} --no-enable-chunked-prefill --max-model-len 16384",
        {"scheduler.enable_chunked_prefill": False, "scheduler.max_tokens_per_step": 16384},
    ),
    (
        f"vllm serve {LLAMA} --max-num-batched-tokens 512 --performance-mode throughput",
        {"scheduler.max_num_seqs": 2048, "scheduler.max_tokens_per_step": 512},
    ),
    (
        "vllm serve meta-llama/Meta-Llama-3-8B-Instruct # on an H200",
        {"cost_model.profile": "h200/llama-3-8b", "cost_model.host": "async"},
    ),
    (
        "vllm serve meta-llama/Meta-Llama-3-8B-Instruct --no-async-scheduling # on an H200",
        {"cost_model.profile": "h200/llama-3-8b", "cost_model.host": "sync"},
    ),
    (f"vllm serve {LLAMA} --max-num-batched-tokens 512", {"scheduler.max_num_seqs": 512}),
    (
        f"vllm serve {LLAMA} --kv-cache-memory-bytes 20G",
        {"kv_cache.num_blocks": 20 * 2**30 // (2**17 * 16) - 1},
    ),
    (
        "python3 -m sglang.launch_server --model-path Qwen/Qwen3-32B --tp 2 --chunked-prefill-size 4096 "
        "--mem-fraction-static 0.9 --schedule-policy lpm --disable-overlap-schedule",
        {
            "scheduler.type": "continuous",
            "scheduler.prefill_first": True,
            "scheduler.async_scheduling": False,
            "scheduler.max_tokens_per_step": 4096,
            "kv_cache.gpu_memory_utilization": 0.9,
            "parallel.tensor": 2,
        },
    ),
    (
        "python -m sglang.launch_server --model deepseek-ai/DeepSeek-V3 --tp 8 --dp 8 --ep 8 "
        "--enable-dp-attention --enable-mixed-chunk --trust-remote-code",
        {"parallel.tensor": 1, "parallel.data": 8, "parallel.expert": 8, "scheduler.type": "preemptive"},
    ),
    (
        f"trtllm-serve {LLAMA} --tp_size 2 --max_batch_size 64 --max_num_tokens 8192 "
        "--max_seq_len 16k --backend pytorch",
        {
            "scheduler.max_num_seqs": 64,
            "scheduler.enable_chunked_prefill": False,
            "model.max_model_len": 16000,
        },
    ),
    (
        K8S,
        {
            "gpu.name": "h100",
            "model.name": "llama-3.3-70b",
            "parallel.tensor": 2,
            "kv_cache.gpu_memory_utilization": 0.95,
            "scheduler.version": "0.15",
        },
    ),
    (
        K8S_SHELL,
        {"model.name": "qwen3-32b", "scheduler.version": "0.20", "scheduler.max_tokens_per_step": 4096},
    ),
    (
        COMPOSE,
        {"model.name": "mistral-7b", "model.max_model_len": 16384, "kv_cache.cuda_graphs": False},
    ),
    (
        SCRIPT,
        {"model.name": "gpt-oss-120b", "gpu.name": "h200", "scheduler.version": "0.15", "parallel.tensor": 4},
    ),
]


def from_vllm(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["from-vllm", *arguments], catch_exceptions=False)


def as_argument(text: str, folder: Path) -> str:
    """The command, or a file with it if it has several lines."""
    if "\n" not in text:
        return text
    path = folder / ("serve.sh" if text.startswith("#!") else "serve.yaml")
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(("text", "expected"), COMMANDS)
def test_a_command_becomes_an_experiment(text: str, expected: dict[str, Any], tmp_path: Path) -> None:
    ran = from_vllm(as_argument(text, tmp_path), "--out", str(tmp_path / "e.yaml"))
    assert ran.exit_code == 0, ran.output
    assert CliRunner().invoke(main, ["check", str(tmp_path / "e.yaml")]).exit_code == 0
    experiment = Experiment.load(tmp_path / "e.yaml")
    found = {key: setting(experiment, key) for key in expected}
    assert found == expected


def setting(experiment: Experiment, key: str) -> Any:
    value: Any = experiment
    for part in key.split("."):
        value = getattr(value, part)
    return value


def test_each_line_tells_its_flag_and_the_lists_stand_below() -> None:
    ran = from_vllm(
        f"HF_TOKEN=hf_abc vllm serve {LLAMA} --max-num-seqs 64 --api-key sk-1 --max-num-seq 2 --foo 1"
    )
    text = ran.stdout
    assert "  max_num_seqs: 64  # --max-num-seqs 64\n" in text
    assert "hf_abc" not in text
    assert "sk-1" not in text
    granted, left_out = text.partition("# Taken for granted:\n")[2].split("# Without a counterpart:\n")
    assert "# - scheduler.max_tokens_per_step: 8192, default of vllm serve 0.33 on h200\n" in granted
    assert "# - gpu: h200, as nothing names one" in granted
    assert "# - --max-num-seq: not known here; did you mean 'max-num-seqs'?\n" in left_out
    assert "# - --foo: not known here\n" in left_out
    assert "# - environment (HF_TOKEN): variables are not read\n" in left_out


def test_several_commands_are_told_and_one_is_chosen(tmp_path: Path) -> None:
    script = as_argument(SCRIPT, tmp_path)
    ran = from_vllm(script)
    assert ran.stderr.startswith("2 serve commands found, the first is taken; --which N takes another:\n")
    second = from_vllm(script, "--which", "2")
    assert (second.stderr, "qwen3-8b" in second.stdout) == ("", True)
    assert (
        from_vllm(script, "--which", "3").stderr
        == "--which: got 3; expected up to 2, the serve commands found\n"
    )


def test_gpu_model_and_release_may_be_given(tmp_path: Path) -> None:
    config = parse_yaml(
        from_vllm("vllm serve /m --max-num-seqs 8", "--model", "qwen3-8b", "--gpu", "l4").stdout, ""
    )
    assert (config.value["model"], config.value["gpu"]) == ("qwen3-8b", "l4")
    old = from_vllm(f"vllm serve {LLAMA}", "--release", "0.24").stdout
    assert "version: '0.20'" in old
    assert "cuda_graphs: true  # as vLLM from 0.21 on" in old


def test_a_folder_with_a_config_json_is_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "qwen3", "num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, '
        '"head_dim": 64, "intermediate_size": 512, "vocab_size": 1000, "max_position_embeddings": 4096}'
    )
    for more, longest in (("", 4096), (" --max-model-len 1024", 1024)):
        text = from_vllm(f"vllm serve {tmp_path}{more}").stdout
        experiment = Experiment.from_mapping(parse_yaml(text, "").value)
        assert (experiment.model.num_layers, experiment.model.max_model_len) == (4, longest)


def test_flags_in_a_config_file_count_and_those_of_the_command_go_first(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "tensor-parallel-size: 2\nmax-num-seqs: 9\nenable-prefix-caching: false\n"
    )
    text = from_vllm(f"vllm serve {LLAMA} --max-num-seqs 7 --config {tmp_path}/c.yaml").stdout
    experiment = Experiment.from_mapping(parse_yaml(text, "").value)
    assert (experiment.tensor_parallel, setting(experiment, "scheduler.max_num_seqs")) == (2, 7)
    assert not experiment.kv_cache.prefix_caching
    assert (
        "# - --config: gone.yaml: no such file here"
        in from_vllm(f"vllm serve {LLAMA} --config gone.yaml").stdout
    )


SERVE = f"vllm serve {LLAMA} "
MISTAKES = {
    SERVE + "--max-num-seqs many": "--max-num-seqs: got 'many'; expected a whole number, as 8192, 8k or 8K",
    SERVE + "--max-num-seqs --port 1": "--max-num-seqs: has no value",
    SERVE + "-tp 3": "parallel.tensor: got 3; expected a divisor of the model's 32 query heads: "
    "1, 2, 4, 8, 16, 32 (from -tp 3)",
    SERVE + "--gpu-memory-utilization 90": "kv_cache.gpu_memory_utilization: got 90.0; expected a number > 0 "
    "and <= 1 (from --gpu-memory-utilization 90)",
    SERVE + "--speculative-config eagle": "--speculative-config: got 'eagle'; expected a JSON object in "
    'quotes, as \'{"method": "ngram"}\'',
    SERVE + "--scheduling-policy lifo": "--scheduling-policy: got 'lifo'; expected one of fcfs, priority",
    "vllm serve --port 1": "model: missing; expected a name, or --model NAME",
    "vllm serve Qwen/Qwen3-9B": "model: 'Qwen/Qwen3-9B' is no shipped model; did you mean 'qwen3-8b'?; "
    "--model NAME takes a shipped one (cbsim list models), or the folder of its config.json",
    "vllm bench serve --model x": "COMMAND: no serve command; expected vllm serve, python -m "
    "vllm.entrypoints.openai.api_server, python -m sglang.launch_server or trtllm-serve, or an image of vLLM "
    "with its arguments",
    "gone.yaml": "gone.yaml: no such file",
    "vllm serve 'x": "COMMAND: can't be split into words: no closing quotation",
}


@pytest.mark.parametrize(("command", "expected"), MISTAKES.items())
def test_mistakes_are_told_by_flag(command: str, expected: str) -> None:
    ran = from_vllm(command)
    assert (ran.exit_code, ran.stdout, ran.stderr) == (2, "", f"{expected}\n")


def test_a_yaml_that_is_none_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "chart.yaml").write_text("image: {{ .Values.image }}\nargs: [\n")
    assert from_vllm(str(tmp_path / "chart.yaml")).stderr.startswith(f"{tmp_path}/chart.yaml:")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 5000, "nested too deeply"),
        (
            "a: &a [x, x, x, x, x, x, x, x]\n"
            + "".join(
                f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n"
                for before, name in zip("abcdef", "bcdefg", strict=True)
            ),
            "more than 100,000 values",
        ),
        (f"a: {'9' * 5000}\nimage: x", "no serve command"),
        ("a: 2024-13-45\nimage: x", "no serve command"),
    ],
)
def test_a_yaml_that_would_break_a_reader_is_told_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pod.yaml").write_text(text)
    ran = from_vllm(str(tmp_path / "pod.yaml"))
    assert (ran.exit_code, ran.stdout, len(ran.stderr.splitlines())) == (2, "", 1)
    assert message in ran.stderr


def test_every_shipped_model_is_found_by_its_published_name() -> None:
    for path in (Path(__file__).parents[2] / "configs" / "models").glob("*.yaml"):
        published = path.read_text().split("\n")[0].removeprefix("# ").split(":")[0]
        if "/" in published:
            assert find_model(published) == (path.stem, None, True)


STARTS = {
    "vLLM": "vllm serve",
    "SGLang": "python -m sglang.launch_server --model",
    "TensorRT-LLM": "trtllm-serve",
}


@pytest.mark.parametrize("engine", STARTS)
def test_odd_values_are_mistakes_told_in_a_line(engine: str) -> None:
    for name in (name for name, flag in FLAGS[engine].items() if flag.key):
        for value in ("0", "{}", "[x"):
            ran = from_vllm(f"{STARTS[engine]} qwen3-30b-a3b --{name} '{value}' --data-parallel-size 2")
            assert ran.exit_code in (0, 2), name


BENCH = (
    "vllm bench serve --model m --dataset-name random --random-input-len 2000 --random-output-len 200 "
    "--random-range-ratio 0.2 --num-prompts 500 --request-rate 4 --burstiness 0.5"
)


@pytest.mark.parametrize(
    ("bench", "workload"),
    [
        (
            BENCH,
            {
                "num_requests": 500,
                "arrivals": {"type": "gamma", "burstiness": 0.5, "rate_per_s": 4.0},
                "prompt_tokens": {"type": "uniform", "min": 1600, "max": 2400},
                "output_tokens": {"type": "uniform", "min": 160, "max": 240},
            },
        ),
        (
            "python -m sglang.bench_serving --random-input-len=1000 --random-output-len=10 "
            "--random-range-ratio 0.5 --num-prompts 80 --max-concurrency 8",
            {
                "num_requests": 80,
                "arrivals": {"type": "all_at_once"},
                "concurrency": 8,
                "prompt_tokens": {"type": "uniform", "min": 500, "max": 1000},
                "output_tokens": {"type": "uniform", "min": 5, "max": 10},
            },
        ),
        (
            "vllm bench serve --dataset-name sharegpt --request-rate 2",
            {
                "num_requests": 1000,
                "arrivals": {"type": "poisson", "rate_per_s": 2.0},
                "prompt_tokens": {"type": "empirical", "path": "azure-like.csv"},
                "output_tokens": {"type": "empirical", "path": "azure-like.csv"},
            },
        ),
    ],
)
def test_traffic_of_a_benchmark_beside_the_server(
    tmp_path: Path, bench: str, workload: dict[str, Any]
) -> None:
    script = tmp_path / "run.sh"
    script.write_text(f"vllm serve meta-llama/Llama-3.1-8B-Instruct -tp 2 &\n{bench}\n")
    source = read_source(str(script))
    assert len(source.commands) == 1
    served = ServedExperiment(source.commands[0], source)
    assert yaml.safe_load(served.yaml_text())["workload"] == {"type": "synthetic", **workload}
    assert served.experiment.parallel.tensor == 2


def test_replicas_of_a_deployment(tmp_path: Path) -> None:
    container = {"image": "vllm/vllm-openai:v0.11.0", "args": ["--model", "meta-llama/Llama-3.1-8B-Instruct"]}
    spec = {"replicas": 3, "template": {"spec": {"containers": [container]}}}
    path = tmp_path / "d.yaml"
    path.write_text(yaml.safe_dump({"kind": "Deployment", "spec": spec}))
    source = read_source(str(path))
    assert ServedExperiment(source.commands[0], source).experiment.replicas.count == 3
