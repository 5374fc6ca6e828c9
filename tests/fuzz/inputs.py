"""Inputs: for each kind of input, files that are right but for what chance does to them, and the commands
that read them."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cbsim.base.paths import data_folder
from cbsim.config.reference_page import make_schema
from cbsim.config.yaml_text import dump_yaml
from cbsim.studies.experiment import Experiment
from tests.fuzz.oddities import TEXTS, Drawing, damaged, mutated, odd, put
from tests.workload import benchmark_files

Command = list[str]
Case = Iterator[Command]
"""The commands of a case, one after the other; the files they read are in the current folder by then."""
QUIET = ["--quiet", "--no-plots", "--json"]

TRAFFIC: dict[str, Any] = {
    "type": "synthetic",
    "num_requests": 6,
    "arrivals": {"type": "poisson", "rate_per_s": 10},
    "prompt_tokens": {"type": "lognormal", "median": 30, "sigma": 0.5, "max": 200},
    "output_tokens": {"type": "fixed", "value": 4},
}
PLAIN: dict[str, Any] = {
    "model": "tiny",
    "gpu": "h200",
    "workload": TRAFFIC,
    "scheduler": {"type": "vllm", "max_num_seqs": 8, "max_tokens_per_step": 64},
    "kv_cache": {"num_blocks": 100, "block_size": 16},
    "cost_model": {"type": "constant", "step_s": 0.01, "per_prefill_token_s": 1e-5},
    "slo": {"ttft_s": 1.0, "tpot_s": {"p99": 0.1}},
}
POOL = {"name": "d", "role": "decode", "count": 1}
EXPERIMENTS: tuple[dict[str, Any], ...] = (
    PLAIN,
    PLAIN | {"scheduler": {"type": "static", "max_num_seqs": 3}, "measure": {"warmup_requests": 1}},
    PLAIN | {"scheduler": {"type": "continuous"}, "cost_model": {"type": "roofline"}, "stop_at_s": 5.0},
    PLAIN | {"scheduler": {"type": "chunked_prefill", "chunk_size": 16}, "replicas": {"count": 2}},
    PLAIN
    | {
        "scheduler": {"type": "preemptive", "policy": "sjf", "preemption": "swap"}
        | {"length_knowledge": "predicted", "prediction_error": 0.3},
        "workload": TRAFFIC | {"users": {"num_users": 3, "skew": 1.0}, "priorities": {"values": [0, 1]}},
    },
    PLAIN
    | {
        "kv_cache": {"num_blocks": 60, "prefix_caching": True},
        "workload": TRAFFIC
        | {
            "sessions": {"num_turns": {"type": "fixed", "value": 2}, "think_time_s": 1.0},
            "shared_prefix": {"num_tokens": 20, "num_groups": 2},
        },
    },
    PLAIN
    | {
        "cluster": {
            "router": "round_robin",
            "pools": [{**POOL, "name": "p", "role": "prefill"}, POOL],
            "link": {"bandwidth_gb_s": 100.0},
        }
    },
    PLAIN | {"workload": {"type": "trace", "path": "trace.csv", "rate_per_s": 3, "limit": 2}},
    PLAIN | {"workload": {"type": "resampled", "path": "trace.csv", "num_requests": 4}},
    PLAIN | {"model": "llama-3-8b", "cost_model": {"type": "profile", "profile": "h200/llama-3-8b"}},
    PLAIN
    | {"observers": [{"type": "csv"}, {"type": "metrics", "every_s": 1.0}], "output": {"batches": True}},
    PLAIN | {"scheduler": {"type": "vllm", "speculative": {"num_tokens": 2, "acceptance": 0.7}}},
    PLAIN
    | {
        "cluster": {
            "pools": [{"name": "a", "count": 2}],
            "autoscale": {"type": "queue", "min": 1, "max": 3, "interval_s": 1.0},
            "faults": [{"pool": "a", "replica": 0, "at_s": 0.2, "repair_s": 1.0}],
            "clients": {"timeout_s": 5.0, "max_retries": 1, "backoff_s": 0.1},
            "max_queue": 4,
        }
    },
    PLAIN
    | {
        "kv_cache": {
            "num_blocks": 30,
            "prefix_caching": True,
            "tiers": [{"name": "host", "size_gib": 0.1, "bandwidth_gb_s": 20.0, "latency_s": 0.001}],
        },
        "workload": TRAFFIC | {"shared_prefix": {"num_tokens": 40, "num_groups": 2}},
    },
    PLAIN
    | {
        "workload": {"type": "trace", "path": "loads.csv"},
        "scheduler": {"type": "vllm", "max_num_seqs": 2, "connector": {"kind": "remote"}},
    },
)
SWEEPS: tuple[dict[str, Any], ...] = (
    {"sweep": {"scheduler.max_num_seqs": [1, 8], "replicates": 2}},
    {
        "sweep": {
            "zip": {"seed": [1, 2], "kv_cache.num_blocks": [50, 90]},
            "where": "seed < 3 and not seed == 7",
        }
    },
    {"sweep": {"scheduler": [{"type": "static"}, "vllm"], "where": ["kv_cache.num_blocks * 2 >= seed"]}},
    {"tune": {"scheduler.max_num_seqs": [1, 64], "trials": 2, "windows": []}},
    {
        "tune": {
            "scheduler.max_num_seqs": {"from": 1, "to": 64, "log": True},
            "objective": "latency",
            "trials": 2,
        }
    },
)
TRACE = (
    "request_id,arrival_s,num_prompt_tokens,num_output_tokens,priority,user,deadline_s,session_id\n"
    + "".join(f"r{n},{n / 4},{10 + n},{2 + n % 3},{n % 2},u{n % 2},{9.5},s{n % 3}\n" for n in range(6))
)
LOADS = (
    "arrival_s,num_prompt_tokens,num_output_tokens,remote_prefill,load_s,fail_from_block,remote_decode,send_s\n"
    + "".join(
        f"{n / 4},{20 + n},{2 + n % 3},{n % 2},{0.1 * (n % 3)},{n % 4 - 1},{n % 3 == 0:d},0.2\n"
        for n in range(6)
    )
)
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,4\n2023-11-16 18:15:50.9,396,9\n"
)
TRACES: dict[str, str] = {
    "trace.csv": TRACE,
    "azure.csv": AZURE,
    "burst.csv": "Timestamp,Model,Request tokens,Response tokens\n5,GPT-4,47,3\n",
    "vidur.csv": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.1,20,3\n0.2,30,4\n",
    "qwen.jsonl": '{"chat_id":1,"timestamp":0.1,"input_length":20,"output_length":3,"hash_ids":[1,2]}\n' * 2,
    "mooncake.jsonl": '{"timestamp":100,"input_length":700,"output_length":3,"hash_ids":[1,2]}\n' * 2,
    "own.jsonl": '{"arrival_s":0.5,"num_prompt_tokens":9,"num_output_tokens":2,"prompt":[["a",4],["b",5]]}\n'
    * 2,
    "lss.jsonl": '{"arrival_time_ns":1000,"input_toks":9,"output_toks":2}\n' * 2,
}
LOGS: dict[str, str] = {
    **{f"log{n}.json": text for n, text in enumerate(benchmark_files.MEASURED.values())},
    "log.csv": "request_id,arrival,prompt_tokens,output_tokens,first_token,last_token\nq,0.0,10,3,0.5,0.8\n",
}
METRICS = "".join(
    f'# TYPE vllm:{name} histogram\nvllm:{name}_bucket{{engine="0",le="0.1"}} 3.0\n'
    f'vllm:{name}_bucket{{engine="0",le="+Inf"}} 6.0\nvllm:{name}_sum{{engine="0"}} 0.6\n'
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds")
) + "".join(
    f'vllm:{name}_total{{engine="0"}} {number} 1700000000000\n'
    for name, number in (("request_success", 6.0), ("prompt_tokens", 180.0), ("generation_tokens", 24.0))
)
"""Of a server's /metrics."""
SERVE = (
    "vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 2 --max-num-seqs 64 --kv-cache-dtype fp8",
    "vllm serve Qwen/Qwen3-8B --speculative-config '{\"num_speculative_tokens\": 3}' --block-size 16",
    "python -m sglang.launch_server --model-path meta-llama/Llama-3.1-8B --tp 1 --mem-fraction-static 0.8",
    "trtllm-serve meta-llama/Llama-3.1-8B --max_batch_size 64 --kv_cache_free_gpu_memory_fraction 0.9",
    "vllm serve m & vllm bench serve --model m --request-rate 4 --num-prompts 20 --random-input-len 128",
)
CONTAINER = {
    "image": "vllm/vllm-openai:v0.11.0",
    "command": ["python3", "-m", "vllm.entrypoints.openai.api_server"],
    "args": ["--model=$(MODEL)", "--tensor-parallel-size=2", "--max-num-seqs", 64],
    "env": [{"name": "MODEL", "value": "meta-llama/Llama-3.3-70B-Instruct"}],
}
CONFIG_JSON: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": 512,
    "quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
}
TABLES: dict[str, str] = {
    "dense.csv": "layer,tokens,time_us\n"
    + "".join(
        f"{op},{n},{n * 0.01 + 3}\n"
        for op in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
        for n in (1, 8, 64, 512)
    ),
    "sequence.csv": "layer,sequences,time_us\n" + "".join(f"lm_head,{n},{n + 9}\n" for n in (1, 8, 64, 256)),
    "attention.csv": "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n"
    + "".join(
        f"{c},{c},{d},{k},{c * 0.01 + d * k * 0.001 + 4}\n"
        for c in (0, 64, 512)
        for d in (0, 1, 8, 32)
        for k in (64, 1024)
        if c or d
    ),
    "collectives.csv": "tokens,time_us\n1,5\n64,9\n512,30\n",
    "skew.csv": "n,nb,pc,kp,kvs,kv_big,t_mean_us,t_skew_us\n"
    "8,1,0,0,64,1024,10,14\n8,2,0,0,64,2048,12,19\n16,1,0,0,64,4096,12,22\n",
}
DRAWING = Drawing(make_schema(Experiment))


def write(name: str, content: str | bytes) -> None:
    """A file in the current folder."""
    Path(name).write_bytes(
        content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    )


def write_traces(random: Random) -> None:
    """The traces that experiments name."""
    write("trace.csv", TRACE)
    write("loads.csv", odd_cell(random, LOADS) if random.random() < 0.2 else LOADS)


def drawn(random: Random, *bases: dict[str, Any]) -> dict[str, Any]:
    """An experiment with a few of its keys drawn from the schema, or odd."""
    data = json.loads(json.dumps(random.choice(bases)))
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        if random.random() < 0.15 and isinstance(data, dict):
            data = mutated(random, data)
        if not isinstance(data, dict):
            break
        path, node = DRAWING.somewhere(random, data)
        put(data, path, DRAWING.value(random, node) if random.random() < 0.4 else odd(random))
    return data if isinstance(data, dict) else {"model": data}


def checked_and_run(random: Random, data: Any, share: float = 0.5) -> Case:
    """Check an experiment, and run some of them."""
    if data.get("engine") == "compiled":
        data["engine"] = "auto"  # Compiling takes its time, and is no matter of the input.
    write_traces(random)
    write("e.yaml", dump_yaml(data))
    yield ["check", "e.yaml"]
    if random.random() < share:
        yield ["run", "e.yaml", "--out", "out", *QUIET]


def experiment(random: Random) -> Case:
    """An experiment's YAML, any section of it."""
    yield from checked_and_run(random, drawn(random, *EXPERIMENTS))


def yaml_text(random: Random) -> Case:
    """The same, damaged as text."""
    base = dump_yaml(random.choice(EXPERIMENTS) | random.choice(({}, *SWEEPS)))
    write_traces(random)
    write("e.yaml", damaged(random, base.encode()))
    yield random.choice(
        (["check", "e.yaml"],) * 3 + (["run", "e.yaml", "--out", "out", *QUIET], ["explain", "e.yaml"])
    )


def override(random: Random) -> Case:
    """`--set` of anything."""
    write("e.yaml", dump_yaml(random.choice(EXPERIMENTS) | random.choice(({}, {}, *SWEEPS))))
    write_traces(random)
    options = []
    for _ in range(random.choice((1, 1, 2))):
        path, node = DRAWING.somewhere(random, PLAIN)
        value = DRAWING.value(random, node) if random.random() < 0.3 else odd(random)
        text = dump_yaml(value, default_flow_style=True, width=10**9).removesuffix("...\n").strip()
        key = (
            ".".join(path)
            if random.random() < 0.9
            else random.choice((*TEXTS, "sweep.seed", "a.b.c", "sweep"))
        )
        options += ["--set", random.choice((f"{key}={text}",) * 9 + (text,))]
    # Compiling takes its time, and is no matter of the input.
    options = [text.replace("\0", "").replace("engine=compiled", "engine=auto") for text in options]
    yield ["check", "e.yaml", *options]
    if random.random() < 0.2:
        yield ["run", "e.yaml", "--out", "out", *QUIET, *options]


def grid(random: Random) -> Case:
    """`sweep:` and `tune:`."""
    sections = random.choice(SWEEPS)
    for _ in range(random.choice((1, 1, 2))):
        sections = mutated(random, sections)
    if random.random() < 0.2 and isinstance(sections, dict) and isinstance(sections.get("sweep"), dict):
        sections["sweep"]["where"] = random.choice(
            ("-" * 990 + "1", "(" * 150, "not " * 200 + "1", "seed < 1e999")
        )
    data = PLAIN | (sections if isinstance(sections, dict) else {"sweep": sections})
    write("e.yaml", dump_yaml(data))
    yield ["check", "e.yaml"]
    if random.random() < 0.1:
        yield ["run", "e.yaml", "--out", "out", *QUIET]
    elif random.random() < 0.05:
        yield ["tune", "e.yaml", "--out", "out", "--trials", "2", *QUIET]


def generator(random: Random) -> Case:
    """A generator's own YAML."""
    base = random.choice([each["workload"] for each in EXPERIMENTS])
    data = (
        drawn(random, PLAIN | {"workload": base}).get("workload")
        if random.random() < 0.5
        else mutated(random, base)
    )
    write_traces(random)
    write("w.yaml", dump_yaml(data))
    yield ["workload", "stats", "w.yaml", "--json"]


def trace(random: Random) -> Case:
    """Traces of every format, and logs and results as traces."""
    name, text = random.choice([*TRACES.items(), *LOGS.items()])
    content = text.encode()
    if name.endswith((".json", ".jsonl")) and random.random() < 0.5:
        content = changed_json(random, text)
    elif name.endswith(".csv") and random.random() < 0.4:
        content = odd_cell(random, text).encode("utf-8", "surrogatepass")
    for _ in range(random.choice((0, 1, 1, 2))):
        content = damaged(random, content)
    write(name, content)
    settings = []
    if random.random() < 0.3:
        key = random.choice(
            (
                "rate_scale",
                "limit",
                "start_s",
                "end_s",
                "rate_per_s",
                "time_unit",
                "format",
                "max_prompt_tokens",
            )
        )
        settings = ["--set", f"workload.{key}={odd(random)}".replace("\0", "")]
    match random.randrange(4):
        case 0:
            yield [
                "workload",
                "convert",
                name,
                random.choice(("o.jsonl", "o.csv", "o.parquet", "o.csv.gz")),
                *settings,
            ]
        case 1:
            write("e.yaml", dump_yaml(PLAIN | {"workload": {"type": "trace", "path": name, "limit": 5}}))
            yield ["check", "e.yaml"]
            if random.random() < 0.3:
                yield ["run", "e.yaml", "--out", "out", *QUIET]
        case _:
            yield ["workload", "stats", name, "--json", *settings]


def changed_json(random: Random, text: str) -> bytes:
    """A JSON document, or lines of JSON, with a value of one changed."""
    try:
        rows = [json.loads(text)]
    except ValueError:
        rows = [json.loads(line) for line in text.splitlines()]
    place = random.randrange(len(rows))
    rows[place] = mutated(random, rows[place])
    return "\n".join(map(json.dumps, rows)).encode()


def odd_cell(random: Random, text: str) -> str:
    """A CSV text with an odd value in one of its cells."""
    rows = list(csv.reader(io.StringIO(text)))
    row = random.choice(rows)
    row[random.randrange(len(row))] = str(odd(random))
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue()


def parquet(random: Random) -> Case:
    """A Parquet trace with a column of another type, with nulls, or damaged."""
    columns: dict[str, Any] = {
        "arrival_s": [0.0, 1.0, 2.0],
        "num_prompt_tokens": [10, 20, 30],
        "num_output_tokens": [2, 3, 4],
        "user": ["a", "b", None],
    }
    key = random.choice(list(columns))
    made = [odd(random) if random.random() < 0.7 else value for value in columns[key]]
    try:
        columns[key] = pa.array(made)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        columns[key] = pa.array([random.choice(([1], {"a": 1}, 2**62, b"x", True, 1e300))] * 3)
    if random.random() < 0.2:
        del columns[random.choice(list(columns))]
    with suppress(pa.ArrowException):
        pq.write_table(pa.table(columns), "t.parquet")
    if random.random() < 0.3 and Path("t.parquet").exists():
        write("t.parquet", damaged(random, Path("t.parquet").read_bytes()))
    yield ["workload", "stats", "t.parquet", "--json"]


def log(random: Random) -> Case:
    """A server's log or a benchmark's results, held against a simulation."""
    name, text = random.choice(list(LOGS.items()))
    content = text.encode()
    if name.endswith(".json") and random.random() < 0.6:
        content = changed_json(random, text)
    elif name.endswith(".csv"):
        content = odd_cell(random, text).encode("utf-8", "surrogatepass")
    if random.random() < 0.4:
        content = damaged(random, content)
    write(name, content)
    write("e.yaml", dump_yaml({key: value for key, value in PLAIN.items() if key != "slo"}))
    options = random.choice(([], [], ["--replay"], ["--column", "arrival=x"], ["--arrivals", "queued"]))
    if random.random() < 0.2:
        rows = [{"request_id": name, "hash_ids": [1, 2]} for name in ("q", "q1", "q2", "0", "1")]
        prompts = "\n".join(json.dumps(mutated(random, row)) for row in rows)
        write("prompts.jsonl", damaged(random, prompts.encode()) if random.random() < 0.3 else prompts)
        options = ["--prompts", "prompts.jsonl"]
    yield ["validate", "e.yaml", "--log", name, "--no-picture", "--json", *options]


def metrics(random: Random) -> Case:
    """A server's /metrics, and what they were before."""
    for name in ("metrics.txt", "before.txt"):
        content = METRICS.replace("6.0", "2.0").replace("3.0", "1.0").replace("0.6", "0.2")
        content = METRICS if name == "metrics.txt" else content
        for _ in range(random.choice((0, 1, 1, 2))):
            lines = content.splitlines(keepends=True)
            place = random.randrange(len(lines))
            words = lines[place].split(" ")
            words[random.randrange(1, len(words))] = f"{odd(random)}\n"
            lines[place] = " ".join(words)
            content = "".join(lines)
        write(name, damaged(random, content.encode()) if random.random() < 0.3 else content)
    write("e.yaml", dump_yaml({key: value for key, value in PLAIN.items() if key != "slo"}))
    since = random.choice(([], ["--since", "before.txt"]))
    yield ["validate", "e.yaml", "--log", "metrics.txt", *since, *random.choice(([], ["--json"]))]


def profile(random: Random) -> Case:
    """A profile's files."""
    folder = data_folder("calibration") / "profiles" / "h200" / "llama-3-8b"
    Path("p").mkdir()
    for name in ("cost.json", "meta.json"):
        shutil.copyfile(folder / name, f"p/{name}")
    name = random.choice(("cost.json", "cost.json", "cost.json", "meta.json"))
    content = Path("p", name).read_bytes()
    if random.random() < 0.7:
        data = json.loads(content)
        for _ in range(random.choice((1, 1, 3))):
            data = mutated(random, data)
        content = json.dumps(data).encode()
    else:
        content = damaged(random, content)
    write(f"p/{name}", content)
    yield from checked_and_run(
        random, PLAIN | {"model": "llama-3-8b", "cost_model": {"type": "profile", "profile": "p"}}
    )


def made_folder(kind: str) -> Path:
    """A folder of results that this process has made once, beside the folders of its cases."""
    return Path.cwd().parent / f"made-{kind}"


MADE: dict[str, Command] = {
    "run": ["run", "e.yaml", *QUIET, "--set", "output.batches=true"],
    "sweep": ["run", "e.yaml", *QUIET, "--set", "sweep.seed=[1, 2]"],
    "capacity": ["capacity", "e.yaml", *QUIET, "--replicates", "2", "--tolerance", "0.5"],
    "tune": [
        "tune",
        "e.yaml",
        *QUIET,
        "--set",
        "tune={scheduler.max_num_seqs: [1, 8], trials: 2, windows: []}",
    ],
}


def damaged_folder(random: Random, kind: str) -> None:
    """A copy of such a folder, called `d`, with one of its files damaged, changed or gone."""
    shutil.copytree(made_folder(kind), "d")
    names = sorted(
        str(path) for path in Path("d").rglob("*") if path.is_file() and path.suffix not in (".png", ".svg")
    )
    for _ in range(random.choice((1, 1, 2))):
        name = random.choice(names)
        content = Path(name).read_bytes() if Path(name).exists() else b""
        if random.random() < 0.05:
            Path(name).unlink(missing_ok=True)
        elif name.endswith(".json") and random.random() < 0.7 and content:
            try:
                write(name, json.dumps(mutated(random, json.loads(content))))
            except ValueError:
                write(name, "{}")
        elif name.endswith(".yaml") and random.random() < 0.7:
            write(
                name,
                dump_yaml(mutated(random, PLAIN)) if random.random() < 0.3 else changed_yaml(random, content),
            )
        elif name.endswith(".parquet") and random.random() < 0.7 and content:
            change_table(random, name)
        else:
            write(name, damaged(random, content))


def changed_yaml(random: Random, content: bytes) -> str:
    """YAML with one value in it changed."""
    import yaml

    try:
        return dump_yaml(mutated(random, yaml.safe_load(content)))
    except yaml.YAMLError:
        return "{}"


def change_table(random: Random, name: str) -> None:
    """Change a column of a Parquet file, or leave one, or some rows, out."""
    try:
        table = pq.read_table(name)
    except (OSError, pa.ArrowException):
        return
    place = random.randrange(table.num_columns)
    column = table.column(place).to_pylist()
    match random.randrange(4):
        case 0:
            table = table.remove_column(place)
        case 1:
            table = table.slice(0, random.randrange(table.num_rows + 1))
        case _:
            row = random.randrange(max(1, len(column)))
            made = [odd(random) if n == row else value for n, value in enumerate(column)]
            try:
                array = pa.array(made)
            except (pa.ArrowException, OverflowError, TypeError, ValueError):
                array = pa.array([random.choice((1e300, -1, 2**62, "x", None))] * len(column))
            table = table.set_column(place, table.column_names[place], array)
    with suppress(pa.ArrowException):  # of an empty mapping
        pq.write_table(table, name)


def run_folder(random: Random) -> Case:
    """A run folder that somebody has changed."""
    damaged_folder(random, "run")
    match random.choice(("explain",) * 8 + ("json",) * 4 + ("compare", "validate", "report")):
        case "explain":
            more = random.choice(
                ([], [], ["--request", "r1"], ["--steps", "0:3"], ["--steps", "1:", "--gantt"])
            )
            yield ["explain", "d", *more]
        case "json":
            yield ["explain", "d", "--json"]
        case "compare":
            yield ["compare", "d", str(made_folder("run"))]
        case "validate":
            write("e.yaml", dump_yaml(PLAIN))
            yield ["validate", "e.yaml", "--log", "d", "--no-picture", "--json"]
        case "report":
            yield ["report", "d", "--out", "page.html"]


def study_folder(random: Random) -> Case:
    """The folder of a sweep, a capacity or a tune that somebody has changed: read, or gone on with."""
    kind = random.choice(("sweep", "capacity", "tune"))
    damaged_folder(random, kind)
    write("e.yaml", dump_yaml(PLAIN))
    if random.random() < 0.4:
        yield ["report", "d", "--out", "page.html"]
    else:
        yield [*MADE[kind], "--out", "d"]


def model(random: Random) -> Case:
    """A model's config.json."""
    data = CONFIG_JSON
    for _ in range(random.choice((1, 2, 4))):
        data = mutated(random, data)
    content = json.dumps(data).encode()
    write("config.json", damaged(random, content) if random.random() < 0.2 else content)
    yield ["model", "config.json", "--json"]
    if random.random() < 0.3:
        write("e.yaml", dump_yaml(PLAIN | {"model": "config.json"}))
        yield ["check", "e.yaml"]


def flags(random: Random) -> Case:
    """Commands of serving engines, in a line, a script or a YAML of containers."""
    if random.random() < 0.3:
        name = random.choice(("pod.yaml", "serve.sh"))
        data = {"kind": "Deployment", "spec": {"replicas": 2, "containers": [dict(CONTAINER)]}}
        text = "\n".join(SERVE) if name == "serve.sh" else dump_yaml(mutated(random, data))
        write(name, damaged(random, text.encode()) if random.random() < 0.6 else text)
        yield ["from-vllm", name]
        return
    words = random.choice(SERVE).split(" ")
    for _ in range(random.choice((1, 1, 3))):
        place = random.randrange(len(words))
        match random.randrange(4):
            case 0:
                del words[place]
            case 1:
                words.insert(
                    place,
                    random.choice((*TEXTS, "--enable-lora", "|", ">", "$(x)", "&&", "\n", "\\", "'", "#")),
                )
            case _:
                words[place] = str(odd(random))
    yield ["from-vllm", " ".join(words).replace("\0", "") or "x"]


def tables(random: Random) -> Case:
    """Timings of another profiler, to be imported."""
    for name, text in TABLES.items():
        write(name, text)
    name = random.choice(list(TABLES))
    text = odd_cell(random, TABLES[name])
    write(name, damaged(random, text.encode("utf-8", "surrogatepass")) if random.random() < 0.3 else text)
    files = [
        f"--{part}={file}"
        for part, file in (
            ("dense", "dense.csv"),
            ("per-sequence", "sequence.csv"),
            ("attention", "attention.csv"),
            ("collectives", "collectives.csv"),
            ("skew", "skew.csv"),
        )
    ]
    yield [
        "calibrate",
        "import",
        "layers",
        *files,
        "--model",
        "llama-3-8b",
        "--gpu",
        "h200",
        "--out",
        "p",
        "--no-picture",
    ]


def points(random: Random) -> Case:
    """Timings that were made or imported before, to be fitted anew."""
    folder = data_folder("calibration") / "profiles" / "h200" / "llama-3-8b"
    header, *rows = (folder / "points.csv").read_text().splitlines()
    texts = {
        "points.csv": "\n".join([header, *rows[::6], ""]),
        "meta.json": (folder / "meta.json").read_text(),
    }
    name = random.choice(("points.csv", "points.csv", "meta.json"))
    if name == "meta.json" and random.random() < 0.7:
        content = changed_json(random, texts[name])
    else:
        content = odd_cell(random, texts[name]).encode("utf-8", "surrogatepass")
    for file, text in texts.items():
        write(file, text if file != name else damaged(random, content) if random.random() < 0.3 else content)
    yield ["calibrate", "fit", "points.csv", "--out", "p", "--no-picture", "--json"]


KINDS: dict[str, tuple[Callable[[Random], Case], int]] = {
    "experiment": (experiment, 30),
    "yaml_text": (yaml_text, 10),
    "override": (override, 12),
    "grid": (grid, 10),
    "generator": (generator, 10),
    "trace": (trace, 20),
    "parquet": (parquet, 5),
    "log": (log, 4),
    "metrics": (metrics, 3),
    "profile": (profile, 5),
    "run_folder": (run_folder, 6),
    "study_folder": (study_folder, 1),
    "model": (model, 10),
    "flags": (flags, 6),
    "tables": (tables, 1),
    "points": (points, 1),
}
"""What makes the cases of each kind of input, and how many of all cases are of it, in proportion."""
