"""The comparison with served runs: a wheel of kernels that follow simple rules, and runs worked by hand."""

import json
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import yaml

from calibration.served_runs import __main__ as command
from calibration.served_runs import estimates, estimator, prediction
from calibration.served_runs.answers import AnswerFile, answer_all
from calibration.served_runs.assumptions import DOCUMENTED, OTHERS, Assumption, always
from calibration.served_runs.checkpoints import CHECKPOINTS
from calibration.served_runs.estimates import FIGURES, case_of, estimate_all
from calibration.served_runs.picture import served_picture
from calibration.served_runs.prediction import Prediction, predict, profile_order, run_order
from calibration.served_runs.rules import (
    APART_CORRECTIONS,
    APART_EXCLUSIONS,
    CORRECTIONS,
    EXCLUSIONS,
    INFERENCE_MAX,
    RUNNER,
)
from calibration.served_runs.sample import (
    COLUMNS,
    ORIGIN,
    ServedRun,
    Workers,
    every,
    read_sample,
    sift,
    sift_apart,
)
from calibration.served_runs.servers import (
    REQUESTS_PER_CLIENT,
    experts_framework,
    experts_kernel,
    reduces_with_norms,
    release_of,
    set_up,
    worker,
)
from calibration.served_runs.tables import (
    Answer,
    apart_estimator_table,
    apart_table,
    errors_table,
    estimator_table,
    runs_table,
    shown,
    sifting_table,
    with_constant,
    write_runs,
)
from cbsim.base.errors import CalibrationError, CbsimError
from cbsim.base.paths import install_extra
from cbsim.cost.cost_model import StepShape
from cbsim.cost.costfile import Box, CostFile, model_shape
from cbsim.cost.profile_record import form_seconds
from cbsim.cost.step_columns import StepColumns
from cbsim.lab.calibrate import nvidia_tables
from cbsim.specs import ParallelSpec
from cbsim.studies.experiment import Experiment
from cbsim.studies.worker_pool import open_pool
from tests.cost.laws import make_form

HOST_S = 1e-3 + 1e-5
"""Of a step with one request, added to the GPU's."""
DATED = "source_file=2026-04-06.csv; silicon_concurrency=8"
ROW = {
    "id": "a",
    "silicon_data_source": "source_file=/data/vllm/0.12.0/a.csv; silicon_concurrency=8",
    "model_path": "meta-llama/Llama-3.1-8B-Instruct",
    "precision": None,
    "backend": "vllm",
    "backend_version": "0.12.0",
    "system": "h100_sxm",
    "mode": "agg",
    "isl": 1024,
    "osl": 128,
    "batch_size": 8.0,
    "tp_size": 1.0,
    "attention_dp_size": None,
    "moe_tp_size": 1.0,
    "moe_ep_size": 1.0,
    "silicon_ttft_ms": 250.0,
    "silicon_tpot_ms": 12.5,
}
R1_ROW = ROW | {
    "id": "r",
    "silicon_data_source": DATED,
    "model_path": "deepseek-ai/DeepSeek-R1",
    "precision": "fp8",
    "backend": "trtllm",
    "backend_version": "1.2.0rc6.post2",
    "system": "b200_sxm",
    "tp_size": 8.0,
    "attention_dp_size": 1.0,
    "moe_tp_size": 8.0,
}
CLIENTS = "source_file=2026-04-06.csv; silicon_concurrency=%d"
CONSTANT = {"cost_model": {"type": "constant", "step_s": 1.0}}


def served_run(framework="vllm", parallel=None, **figures):
    """A run of Llama-8B in bf16 on an H100, by the authors of aiconfigurator."""
    sizes = {"num_prompt_tokens": 1024, "num_output_tokens": 128, "clients": 8, "ttft_s": 9.0, "tpot_s": 9.0}
    checkpoint = CHECKPOINTS["meta-llama/Llama-3.1-8B-Instruct", "bf16"]
    origin, system = figures.pop("origin", RUNNER), figures.pop("system", "h100_sxm")
    checkpoint, version = figures.pop("checkpoint", checkpoint), figures.pop("version", "0.12.0")
    split = parallel or ParallelSpec()
    return ServedRun("a", checkpoint, framework, version, system, origin, split, **{**sizes, **figures})


def make_wheel(path, sample=None):
    root = "aiconfigurator_core/systems"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data/h100_sxm/gemm/vllm/1/.gitkeep", "")
        figures = {"mem_bw": 1e12, "mem_bw_empirical_scaling_factor": 0.8}
        figures["mem_empirical_constant_latency"] = 3e-6
        archive.writestr(f"{root}/h100_sxm.yaml", yaml.safe_dump({"gpu": figures}))
        if sample is not None:
            archive.writestr(f"{root}/silicon_sample.csv", pd.DataFrame(sample).to_csv(index=False))
    return path


@pytest.fixture
def wheel(tmp_path):
    """Makes a wheel that holds a sample."""
    return lambda sample: make_wheel(tmp_path / "aiconfigurator_core-7.8.9-py3-none-any.whl", sample)


@pytest.fixture
def sifted(wheel):
    """What is left of rows of the sample."""
    return lambda *rows: sift(read_sample(wheel(list(rows))))


def test_a_row_by_hand(sifted):
    [run] = sifted(ROW).runs
    assert run == served_run(ttft_s=0.25, tpot_s=0.0125)
    [run] = sifted(R1_ROW).runs
    assert run.checkpoint.load(run.framework, run.system).kv_dtype == "fp8"
    assert (run.origin, run.parallel, run.clients) == (INFERENCE_MAX, ParallelSpec(tensor=8), 8)


@pytest.mark.parametrize(
    ("name", "row", "split"),
    [
        ("products of parallelism", {"tp_size": 64, "moe_tp_size": 8, "moe_ep_size": 8}, (8, 8, 1)),
        (
            "products of parallelism",
            {"tp_size": 1, "attention_dp_size": 16, "moe_tp_size": 4, "moe_ep_size": 4},
            (1, 4, 4),
        ),
        (
            "attention's ranks counted twice",
            {"tp_size": 4, "attention_dp_size": 4, "moe_tp_size": 1, "moe_ep_size": 16},
            (4, 4, 1),
        ),
        (
            "ranks of attention left out",
            {"tp_size": 1, "attention_dp_size": None, "moe_tp_size": 2, "moe_ep_size": 1},
            (1, 1, 2),
        ),
    ],
)
def test_parallelism_is_put_right(sifted, name, row, split):
    found = sifted(R1_ROW | row)
    assert dict(found.corrected)[name] == 1
    assert sum(dict(found.corrected).values()) == 1
    [run] = found.runs
    assert (run.parallel.tensor, run.parallel.expert, run.parallel.data) == split


@pytest.mark.parametrize(
    ("row", "split"),
    [
        ({"system": "h200_sxm"}, (8, 8, 1)),
        ({"system": "h200_sxm", "isl": 8192, "osl": 1024, "silicon_data_source": CLIENTS % 64}, (1, 8, 8)),
        ({"silicon_data_source": CLIENTS % 64}, (8, 8, 1)),
        ({"silicon_data_source": CLIENTS % 64, "osl": 1024}, (1, 8, 8)),
        ({"precision": "fp4", "osl": 1024}, (8, 1, 1)),
        ({"precision": "fp4", "osl": 1024, "silicon_data_source": CLIENTS % 16}, (8, 8, 1)),
        (
            {"precision": "fp4", "tp_size": 4, "moe_tp_size": 4, "silicon_data_source": CLIENTS % 32},
            (4, 1, 1),
        ),
        ({"precision": "fp4", "silicon_data_source": CLIENTS % 256}, (1, 8, 8)),
    ],
)
def test_deepseek_is_split_as_the_script_did(sifted, row, split):
    """Only where no image is named: later files say how it was split."""
    found = sifted(R1_ROW | {"backend_version": None} | row)
    assert dict(found.corrected)["DeepSeek-R1 split by a script"] == 1
    [run] = found.runs
    assert (run.parallel.tensor, run.parallel.expert, run.parallel.data) == split
    assert dict(sifted(R1_ROW | row).corrected)["DeepSeek-R1 split by a script"] == 0


def test_sglang_dealt_experts_out_while_no_release_is_named(sifted):
    """And is no twin of later releases, whose runs would look as if they drafted tokens."""
    row = R1_ROW | {"backend": "sglang", "precision": "fp4", "backend_version": None, "silicon_tpot_ms": 20.0}
    later = row | {"id": "l", "backend_version": "0.5.9", "silicon_tpot_ms": 16.0}
    later |= {"moe_tp_size": 1.0, "moe_ep_size": 8.0}
    found = sifted(row, later)
    assert dict(found.corrected)["SGLang's experts dealt out by a script"] == 1
    assert [run.parallel for run in found.runs] == 2 * [ParallelSpec(tensor=8, expert=8)]
    fp8 = sifted(row | {"precision": "fp8"})
    assert dict(fp8.corrected)["SGLang's experts dealt out by a script"] == 0


def test_an_honest_split_of_experts_stays(sifted):
    """Two by two experts on four GPUs, where nothing is said of ranks of attention."""
    row = {"tp_size": 4, "attention_dp_size": None, "moe_tp_size": 2, "moe_ep_size": 2}
    found = sifted(R1_ROW | row)
    assert sum(dict(found.corrected).values()) == 0
    assert found.runs[0].parallel == ParallelSpec(tensor=4, expert=2)


def test_clients_are_those_of_one_server(sifted):
    """Outside InferenceMAX `batch_size` counts; dense models' columns of experts say nothing."""
    found = sifted(ROW | {"batch_size": 4, "tp_size": 2, "moe_ep_size": 0})
    assert dict(found.corrected)["clients of several servers"] == 1
    assert dict(found.corrected)["experts of dense models"] == 1
    [run] = found.runs
    assert (run.clients, run.parallel) == (4, ParallelSpec(tensor=2))
    [run] = sifted(R1_ROW | {"batch_size": 4}).runs
    assert run.clients == 8


TWIN = R1_ROW | {"silicon_tpot_ms": 20.0}
OTHER = R1_ROW | {"id": "other", "backend": "sglang", "isl": 2048, "silicon_ttft_ms": 3.0}


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("the same measurement again", [R1_ROW, R1_ROW | {"model_path": "deepseek-ai/DeepSeek-V3"}]),
        ("prefill and decode apart", [OTHER, R1_ROW | {"mode": "disagg"}]),
        (
            "prompts that were not computed",
            [OTHER, R1_ROW | {"model_path": "nvidia/Llama-3.1-8B-Instruct-FP8"}],
        ),
        ("attention not modelled", [OTHER, R1_ROW | {"model_path": "zhipuai/GLM-5"}]),
        ("more than 8 GPUs", [OTHER, R1_ROW | {"tp_size": 16, "moe_tp_size": 16}]),
        ("parallelism that contradicts itself", [OTHER, R1_ROW | {"tp_size": 8, "moe_tp_size": 4}]),
        ("perhaps speculation", [OTHER, R1_ROW | {"backend_version": "1.1.0rc2.post2"}]),
        (
            "perhaps speculation",
            [
                OTHER,
                R1_ROW | {"silicon_data_source": "source_file=/data/1.3.0rc1/b.csv; silicon_concurrency=8"},
            ],
        ),
        ("speculation, unlabelled", [TWIN, R1_ROW | {"backend_version": "1.1.0rc2.post2"}]),
        (
            "TTFT of 5 to 9 s whatever the load",
            [
                OTHER,
                R1_ROW
                | {"backend": "sglang", "precision": "fp4", "backend_version": None, "silicon_ttft_ms": 6e3},
            ],
        ),
        (
            "SGLang 0.5.10 on B300s, prompts of 8192 tokens",
            [
                OTHER,
                R1_ROW
                | {
                    "backend": "sglang",
                    "backend_version": "0.5.10.post1",
                    "system": "b300_sxm",
                    "isl": 8192,
                },
            ],
        ),
        (
            "gpt-oss on H100s with 512 clients",
            [
                OTHER,
                R1_ROW
                | {
                    "model_path": "openai/gpt-oss-120b",
                    "system": "h100_sxm",
                    "silicon_data_source": "source_file=2026-04-06.csv; silicon_concurrency=512",
                },
            ],
        ),
        (
            "Dynamo's Qwen3-32B in bf16 on GB200s",
            [OTHER, ROW | {"model_path": "Qwen/Qwen3-32B", "system": "gb200"}],
        ),
    ],
)
def test_each_rule_leaves_out_its_own(sifted, name, rows):
    """Of two rows the second goes, by that rule and no other."""
    found = sifted(*rows)
    assert dict(found.left_out)[name] == 1
    assert sum(dict(found.left_out).values()) == 1
    assert [run.id for run in found.runs] == [rows[0]["id"]]
    assert f"| left out: {name} | 1 |" in sifting_table(found)


def test_twins_that_agree_both_count(sifted):
    found = sifted(TWIN, R1_ROW | {"silicon_tpot_ms": 19.0, "backend_version": "1.1.0rc2.post2"})
    assert len(found.runs) == 2


APART_ROW = (
    R1_ROW
    | dict.fromkeys(("batch_size", "tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size"))
    | {"id": "p", "mode": "disagg", "backend_version": "0.8.1.post2", "system": "gb200"}
    | {"prefill_num_workers": 1.0, "decode_num_workers": 4.0}
    | dict(zip(("prefill_tp_size", "prefill_attention_dp_size"), (1, 4), strict=True))
    | dict(zip(("prefill_moe_tp_size", "prefill_moe_ep_size"), (0, 4), strict=True))
    | dict(zip(("decode_tp_size", "decode_attention_dp_size"), (8, 1), strict=True))
    | dict(zip(("decode_moe_tp_size", "decode_moe_ep_size"), (1, 8), strict=True))
)
"""One worker of four ranks computes prompts, four of eight GPUs decode."""
EARLY_ROW = (
    APART_ROW
    | {"backend": "sglang", "backend_version": "0.5.5.post2"}
    | {f"{role}_{name}": 1 for role in ("prefill", "decode") for name in ("tp_size", "moe_ep_size")}
    | dict.fromkeys(("prefill_attention_dp_size", "prefill_moe_tp_size"), 4)
)


def apart(wheel, *rows):
    """What is left of rows of servers that prefill and decode apart."""
    return sift_apart(read_sample(wheel([ROW, *rows])))


def test_prefill_and_decode_apart_by_hand(wheel):
    """Two clients of each worker that decodes, all of the one that computes prompts."""
    found = apart(wheel, APART_ROW)
    assert found.num_rows == 1
    [run] = found.runs
    assert (run.num_workers, run.parallel) == (4, ParallelSpec(tensor=8, expert=8))
    assert run.prefill == Workers(1, ParallelSpec(data=4, expert=4))
    assert (run.clients, run.clients_of_rank) == (8, 2)
    [prefill, decode] = run.servers
    assert (prefill.num_workers, prefill.parallel, prefill.clients_of_rank) == (1, run.prefill.parallel, 2)
    assert decode is run
    # Dynamo's 0.8.1 has TensorRT-LLM 1.2, whose experts in FP8 are another framework's.
    assert experts_framework(run) == "sglang"
    assert experts_framework(run._replace(version="0.5.1-rc0.pre3")) is None
    # SGLang's rule leaves less than the weights take of four GB200s.
    shares = [
        worker(run._replace(framework="sglang", parallel=ParallelSpec(tensor=tensor)))[
            "kv_cache.gpu_memory_utilization"
        ]
        for tensor in (4, 8)
    ]
    assert shares == [0.95, 0.84]


@pytest.mark.parametrize(
    ("name", "ranks", "splits"),
    [
        ("tensor parallelism called ranks of attention", 4, [(4, 1, 1), (4, 1, 1)]),
        ("wide ranks' experts called sliced", 32, [(1, 4, 4), (1, 32, 32)]),
    ],
)
def test_workers_are_put_right(wheel, name, ranks, splits):
    row = EARLY_ROW | {"decode_attention_dp_size": ranks, "decode_moe_tp_size": ranks}
    found = apart(wheel, row)
    assert dict(found.corrected)[name] == sum(dict(found.corrected).values()) == 1
    [run] = found.runs
    parallel = [server.parallel for server in run.servers]
    assert [(each.tensor, each.expert, each.data) for each in parallel] == splits
    assert sum(dict(apart(wheel, row | {"backend_version": "0.5.8"}).corrected).values()) == 0


@pytest.mark.parametrize(
    ("ttft_ms", "seats"), [(100.0, None), (5000.0, 16), (6000.0, None), (20_000.0, 8), (4990.0, 16)]
)
def test_seats_by_littles_law(wheel, ttft_ms, seats):
    """A worker of 24 clients, whose answers take 922 x 10.85 ms: with TTFT of 5 s 16 of them decode."""
    row = APART_ROW | {
        ORIGIN: CLIENTS % 96,
        "osl": 1024,
        "silicon_tpot_ms": 10.85,
        "silicon_ttft_ms": ttft_ms,
    }
    found = apart(wheel, row)
    assert dict(found.corrected)["fewer seats than clients"] == (seats is not None)
    [run] = found.runs
    assert run.seats == seats


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("the same measurement again", {"model_path": "deepseek-ai/DeepSeek-R1", "decode_num_workers": None}),
        ("workers not told", {"decode_num_workers": None, "silicon_tpot_ms": 9.0}),
        ("clients not told", {ORIGIN: "source_file=/data/a.csv"}),
        ("attention not modelled", {"model_path": "zhipuai/GLM-5", "isl": 8}),
        ("layers over more than 8 GPUs", {"decode_tp_size": 16, "isl": 8}),
    ],
)
def test_each_rule_leaves_out_its_own_apart(wheel, name, changes):
    """The row that names its workers is kept, though another names the model better."""
    found = apart(
        wheel, APART_ROW | {"id": "q"} | changes, APART_ROW | {"model_path": "deepseek-ai/DeepSeek-V3"}
    )
    assert dict(found.left_out)[name] == sum(dict(found.left_out).values()) == 1
    assert [run.id for run in found.runs] == ["p"]


def test_every_rule_has_evidence_and_a_test():
    tested = Path(__file__).read_text(encoding="utf-8")
    for rule in (*CORRECTIONS, *EXCLUSIONS, *APART_CORRECTIONS, *APART_EXCLUSIONS):
        assert len(rule.evidence) > 20
        assert f'"{rule.name}"' in tested


def test_some_runs_of_each_group():
    runs = [served_run(clients=number) for number in range(1, 10)]
    runs += [served_run("sglang", clients=number) for number in (1, 2)]
    chosen = [(run.framework, run.clients) for run in every(runs, 3)]
    assert chosen == [("vllm", 1), ("vllm", 5), ("vllm", 9), ("sglang", 1), ("sglang", 2)]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (None, "aiconfigurator-core 7.8.9 has no silicon_sample.csv"),
        (
            [{column: ROW[column] for column in COLUMNS if column not in ("isl", "mode")}],
            "silicon_sample.csv of aiconfigurator-core 7.8.9: no column mode, isl",
        ),
    ],
)
def test_what_the_sample_lacks_is_told(wheel, sample, message):
    with pytest.raises(CalibrationError) as raised:
        read_sample(wheel(sample))
    assert raised.value.problems == (message,)


def test_mistakes_are_one_line_each(tmp_path, capsys, monkeypatch):
    def told(*arguments):
        assert command.main([*map(str, arguments), "--workers", "1"]) == 2
        return capsys.readouterr().err.splitlines()[-1] + "\n"

    other = tmp_path / "other.whl"
    other.write_bytes(b"no archive")
    assert "other.whl: can't be read as a wheel: " in told("--wheel", other)

    def not_installed(name):
        raise nvidia_tables.PackageNotFoundError(name)

    monkeypatch.setattr(nvidia_tables, "distribution", not_installed)
    assert told() == (
        f"aiconfigurator-core is not installed: {install_extra('nvidia')}, or pass its wheel by --wheel\n"
    )
    whole = make_wheel(tmp_path / "aiconfigurator_core-7.8.9-py3-none-any.whl", [ROW])
    (tmp_path / "taken").write_text("")
    assert told("--wheel", whole, "--out", tmp_path / "taken") == (
        f"{tmp_path / 'taken'}: can't be written: File exists\n"
    )
    assert told("--wheel", whole, "--out", tmp_path / "out").startswith("h100_sxm: ")
    nothing = make_wheel(
        tmp_path / "aiconfigurator_core-7.8.8-py3-none-any.whl", [ROW | {"model_path": "zhipuai/GLM-5"}]
    )
    assert told("--wheel", nothing) == "the sample holds no run that can be predicted\n"


def constant_order(run, requests_per_client=REQUESTS_PER_CLIENT):
    """A run whose every step takes a second."""
    return run_order(run, [Path("nowhere")] * len(run.servers), CONSTANT, requests_per_client)


def test_a_run_by_hand():
    """Both prompts fit in one step of 1 s, then three of decodes: clients stay in step for ever."""
    order = constant_order(served_run(num_prompt_tokens=100, num_output_tokens=4, clients=2))
    assert order.config["workload"]["num_requests"] == 20
    # One decode step, and a quarter of the one prompt that the other client sends meanwhile.
    assert predict(order) == Prediction(1.0, 1.0, 1.0 + 1 / 4)


def test_prompts_before_decodes_by_hand():
    """SGLang: a step holds 8192 tokens, so the third prompt of 3000 waits a step, and the first two for it.

    Steps 1 and 2 compute prompts, 3 to 5 decodes, and so on: TTFT is 1, 1 and 2 s; TPOT is 4/3, 4/3 and 1 s.
    """
    run = served_run("sglang", num_prompt_tokens=3000, num_output_tokens=4, clients=3)
    prediction = predict(constant_order(run, requests_per_client=1))
    assert prediction.ttft_s == pytest.approx(4 / 3)
    assert prediction.tpot_s == pytest.approx((4 / 3 + 4 / 3 + 1) / 3)


def test_whole_prompts_by_hand():
    """TensorRT-LLM: 2 + 3000 + 1500 tokens a step, so one of two prompts waits, while the other decodes."""
    run = served_run("trtllm", num_prompt_tokens=3000, num_output_tokens=4, clients=2)
    order = constant_order(run, requests_per_client=1)
    prediction = predict(order)
    assert order.settings["scheduler.max_tokens_per_step"] == 4502
    assert prediction[:2] == pytest.approx((1.5, 1.0))


def test_what_stands_against_a_run_is_its_answer():
    order = constant_order(served_run())
    assert "unknown gpu 'h1000'" in predict(order._replace(config=order.config | {"gpu": "h1000"}))


def test_ranks_share_the_clients():
    """Two ranks with a client each, in step: a prompt each in a step of 1 s, then three of decodes."""
    checkpoint = CHECKPOINTS["openai/gpt-oss-120b", "fp4"]
    split = ParallelSpec(data=2, expert=2)
    sizes = {"num_prompt_tokens": 100, "num_output_tokens": 4, "clients": 2}
    order = constant_order(served_run(parallel=split, checkpoint=checkpoint, **sizes))
    assert order.config["workload"]["concurrency"] == 2
    assert order.settings["scheduler.max_num_seqs"] == 1
    assert predict(order) == Prediction(1.0, 1.0, 1.0)


@pytest.mark.parametrize("framework", ["vllm", "sglang", "trtllm"])
def test_prefill_and_decode_apart_one_by_one(framework):
    """Both prompts in one step of 1 s, then three of decodes elsewhere; the link adds some 10 us."""
    one = ParallelSpec()
    run = served_run(framework, num_prompt_tokens=100, num_output_tokens=4, clients=2)
    run = run._replace(num_workers=2, prefill=Workers(1, one))
    order = constant_order(run)
    prediction = predict(order)
    assert prediction[:2] == pytest.approx((1.0, 1.0), rel=2e-3)
    assert prediction.tpot_s > 1.0
    # Where servers decode alone no prompt of another stalls them.
    assert prediction.formula_tpot_s == 1.0
    [prefill, decode] = order.config["cluster"]["pools"]
    assert (prefill["count"], decode["count"]) == (1, 2)
    assert (prefill["scheduler"]["max_num_seqs"], decode["scheduler"]["max_num_seqs"]) == (2, 1)


def test_fewer_seats_than_clients_by_hand():
    """Both prompts take a second; the one who decodes first takes three more, and so long the other waits."""
    run = served_run("trtllm", num_prompt_tokens=100, num_output_tokens=4, clients=2)
    run = run._replace(prefill=Workers(1, ParallelSpec()), seats=1)
    prediction = predict(constant_order(run, requests_per_client=1))
    assert prediction[:2] == pytest.approx(((1 + 4) / 2, 1.0), rel=1e-3)


def test_a_key_tells_settings_apart():
    run = served_run()
    keys = {run_order(run, [Path(folder)]).key for folder in ("here", "there")}
    assert len(keys) == 1
    assert run_order(run, [Path("here")], {"cost_model.host": "none"}).key not in keys


def test_lengths_of_inference_max_vary():
    run = served_run(origin=INFERENCE_MAX)
    assert set_up(run)["workload.prompt_tokens"] == {"type": "uniform", "min": 819, "max": 1024}
    assert set_up(served_run())["workload.prompt_tokens"] == {"type": "fixed", "value": 1024}
    checkpoint = CHECKPOINTS["deepseek-ai/DeepSeek-R1", "fp8"]
    ranks = {"checkpoint": checkpoint, "parallel": ParallelSpec(data=8, expert=8), "origin": INFERENCE_MAX}
    balanced = served_run("trtllm", system="h200_sxm", **ranks)
    assert set_up(balanced)["workload.prompt_tokens"] == {"type": "fixed", "value": 922}


def test_servers_by_model_and_release():
    """InferenceMAX's scripts, vLLM's changed default, SGLang's budget by memory, TensorRT-LLM's share."""
    llama = CHECKPOINTS["meta-llama/Llama-3.1-70B", "fp8"]
    kimi = CHECKPOINTS["moonshotai/Kimi-K2.5", "int4"]
    assert set_up(served_run())["cost_model.host"] == "sync"
    assert set_up(served_run(version="0.14.1"))["cost_model.host"] == "async"
    many = {"clients": 2000, "origin": INFERENCE_MAX, "version": ""}
    assert set_up(served_run(checkpoint=llama, **many))["scheduler.max_num_seqs"] == 2000
    assert set_up(served_run(checkpoint=kimi, **many))["scheduler.max_num_seqs"] == 1024
    assert set_up(served_run(checkpoint=kimi, **many))["kv_cache.gpu_memory_utilization"] == 0.95
    assert set_up(served_run("sglang"))["scheduler.max_tokens_per_step"] == 8192
    assert set_up(served_run("sglang", system="b200_sxm"))["scheduler.max_tokens_per_step"] == 16_384
    blocks = CHECKPOINTS["deepseek-ai/DeepSeek-R1", "fp8"]
    scripted = served_run("sglang", checkpoint=blocks, origin=INFERENCE_MAX)
    assert set_up(scripted)["scheduler.max_tokens_per_step"] == 32_768
    trtllm = set_up(served_run("trtllm", checkpoint=llama, origin=INFERENCE_MAX, system="h200_sxm"))
    weights, memory = 70.55e9, 139.8 * 2**30
    used = (weights + 0.9 * (memory - weights)) / memory
    assert trtllm["kv_cache.gpu_memory_utilization"] == pytest.approx(used, abs=0.01)
    assert trtllm["scheduler.max_tokens_per_step"] == 16_384


def test_experts_of_the_kernel_that_was_asked_for():
    blocks = CHECKPOINTS["deepseek-ai/DeepSeek-R1", "fp8"]
    figures = {"checkpoint": blocks, "system": "b200_sxm", "version": "1.2.0rc6.post2"}
    run = served_run("trtllm", origin=INFERENCE_MAX, **figures)
    assert experts_framework(run) == "sglang"
    assert experts_framework(run._replace(version="1.1.0rc2.post2")) is None
    assert experts_framework(run._replace(system="h200_sxm")) is None
    assert experts_framework(run._replace(parallel=ParallelSpec(data=2))) is None


def test_experts_of_the_backend_that_scripts_name():
    """CUTLASS's for many clients, fewer where prompts are long."""
    nvfp4 = CHECKPOINTS["nvidia/DeepSeek-R1-NVFP4", "fp4"]
    scripted = {"origin": INFERENCE_MAX, "system": "b200_sxm", "version": "1.2.0rc6.post2"}
    run = served_run("trtllm", checkpoint=nvfp4, clients=255, **scripted)
    assert experts_kernel(run) == "TRTLLM"
    assert experts_kernel(run._replace(clients=256)) == "CUTLASS"
    long = run._replace(num_prompt_tokens=8192, clients=32)
    assert experts_kernel(long) == "TRTLLM"
    assert experts_kernel(long._replace(clients=33)) == "CUTLASS"
    others = ({"origin": RUNNER}, {"framework": "sglang"}, {"version": "0.8.1.post2"})
    others += ({"checkpoint": CHECKPOINTS["deepseek-ai/DeepSeek-R1", "fp8"]}, {"system": "gb200"})
    assert [experts_kernel(run._replace(**other)) for other in others] == [None] * 5


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("1.0.0rc3", (1, 0, 0, 3)),
        ("1.2.0rc6.post2", (1, 2, 0, 6, 2)),
        ("", (1, 1, 0, 2)),
        ("gpt-oss-dev", (1, 1, 0, 2)),
        ("0.8.1.post2", (1, 2, 0, 6)),
    ],
)
def test_kernels_of_the_release_that_served(version, numbers):
    run = served_run("trtllm", version=version)
    assert release_of(run) == ("trtllm", numbers)
    assert release_of(run._replace(framework="sglang")) is None
    folder = profile_order(run, None, None, Path("out")).folder
    assert folder.name == f"h100_sxm-llama-3-8b-bf16-trtllm-tp1-ep1-dp1-{'.'.join(map(str, numbers))}"


def test_tokens_are_spread_as_nvidia_saw_them():
    r1, kimi = (
        CHECKPOINTS[key] for key in (("deepseek-ai/DeepSeek-R1", "fp8"), ("moonshotai/Kimi-K2.5", "int4"))
    )
    orders = [profile_order(served_run(checkpoint=each), None, None, Path()) for each in (r1, kimi)]
    assert [order.distribution for order in orders] == ["power_law_1.01", "power_law_1.2"]


def test_the_usual_spread_where_experts_were_not_timed_otherwise(monkeypatch):
    asked, lacking = [], {"power_law_1.01"}

    def points(tables, wanted):
        asked.append(wanted.distribution)
        if wanted.distribution in lacking:
            raise CalibrationError(f"{wanted.distribution} was not timed")

    monkeypatch.setattr(prediction, "NvidiaTables", lambda *order: None)
    monkeypatch.setattr(prediction, "import_points", points)
    monkeypatch.setattr(prediction, "import_meta", lambda *order: None)
    monkeypatch.setattr(prediction, "write_quick_profile", lambda *order: None)
    run = served_run(checkpoint=CHECKPOINTS["deepseek-ai/DeepSeek-R1", "fp8"])
    order = profile_order(run, None, None, Path())
    assert prediction.import_profile(order) is None
    assert asked == ["power_law_1.01", "power_law_1.2"]
    lacking.add("power_law_1.2")
    assert prediction.import_profile(order) == "power_law_1.01 was not timed"


def test_all_reduces_that_normalise():
    """vLLM's by default, and where scripts asked for them."""
    assert reduces_with_norms(served_run(version="0.16.0")) is False
    assert reduces_with_norms(served_run(version="0.17.1")) is True
    assert reduces_with_norms(served_run(version="0.17.1", system="b300_sxm")) is False
    llama = CHECKPOINTS["meta-llama/Llama-3.1-70B", "fp8"]
    asked = {"checkpoint": llama, "version": "", "origin": INFERENCE_MAX}
    assert reduces_with_norms(served_run(system="b200_sxm", **asked)) is True
    assert reduces_with_norms(served_run(system="h100_sxm", **asked)) is True
    assert reduces_with_norms(served_run(system="h200_sxm", **asked)) is False
    assert reduces_with_norms(served_run("sglang", system="h100_sxm", **asked)) is None
    blocks = CHECKPOINTS["deepseek-ai/DeepSeek-R1", "fp8"]
    asked |= {"checkpoint": blocks}
    assert reduces_with_norms(served_run("sglang", system="b200_sxm", **asked)) is True
    assert reduces_with_norms(served_run("sglang", system="h200_sxm", **asked)) is None
    assert reduces_with_norms(served_run("trtllm")) is None


@pytest.mark.parametrize("assumption", [DOCUMENTED, *OTHERS], ids=lambda assumption: assumption.text)
def test_every_assumption_is_a_valid_experiment(assumption):
    for framework in ("vllm", "sglang", "trtllm"):
        if framework in assumption.changes:
            run = served_run(framework, ParallelSpec(tensor=2))
            changes = assumption.changes[framework](run)
            order = run_order(run, [Path("h100/llama-3-8b")], changes, assumption.requests_per_client)
            experiment = Experiment.of(order.config, order.settings)
            assert experiment.tensor_parallel == 2
            assert (assumption is DOCUMENTED) == (order == run_order(run, [Path("h100/llama-3-8b")]))


def test_every_checkpoint_loads():
    for checkpoint in CHECKPOINTS.values():
        for framework in ("vllm", "sglang", "trtllm"):
            model = checkpoint.load(framework, "b200_sxm")
            assert (model.experts is not None) == checkpoint.has_experts


def test_kv_caches_by_system():
    """As InferenceMAX's scripts ask for them, on H100s for none."""
    llama = CHECKPOINTS["meta-llama/Llama-3.1-70B", "fp8"]
    systems = ("h100_sxm", "h200_sxm", "b200_sxm")
    assert [llama.load("vllm", system).kv_dtype for system in systems] == ["bfloat16", "fp8", "fp8"]
    assert CHECKPOINTS["Qwen/Qwen3-32B", "fp8"].load("trtllm", "h100_sxm").weight_dtype == "fp8_block"


def test_errors_by_hand(tmp_path):
    run = served_run(ttft_s=2.0, tpot_s=0.1)
    slower = run._replace(id="b", framework="sglang")
    table = runs_table([(run, Answer(1.0, 0.11, 0.1)), (slower, Answer(3.0, 0.08, 0.1))])
    assert errors_table(table).splitlines()[2:] == [
        "| **Llama-3.1-8B bf16, SGLang** | 1 | 20 / 20 | -20.0 | - | 0.0 / 0.0 | +0.0 | 50 / 50 | +50.0 |",
        "| **Llama-3.1-8B bf16, vLLM** | 1 | 10 / 10 | +10.0 | - | 0.0 / 0.0 | +0.0 | 50 / 50 | -50.0 |",
    ]
    write_runs(table, tmp_path / "served-runs.csv")
    written = pd.read_csv(tmp_path / "served-runs.csv")
    pd.testing.assert_frame_equal(written, table, check_dtype=False)
    assert [path.name for path in tmp_path.iterdir()] == ["served-runs.csv"]


def test_marks_stand_beside_errors():
    checkpoint = CHECKPOINTS["deepseek-ai/DeepSeek-R1", "fp8"]
    run = served_run("sglang", checkpoint=checkpoint, version="0.5.9", tpot_s=0.1)
    lines = errors_table(runs_table([(run, Answer(1.0, 0.108, 0.1))])).splitlines()[2:]
    assert [line.split(" | ")[4] for line in lines] == ["9 / 25, met", "6 / 12, missed"]


def test_a_constant_comes_from_other_gpus():
    """H200's runs lack 2 ms, B200's 4: each gets the other's."""
    checkpoint = CHECKPOINTS["MiniMaxAI/MiniMax-M2.5", "fp8"]
    runs = [
        (served_run(checkpoint=checkpoint, system=system, tpot_s=0.01 + lacking), Answer(1.0, 0.01, 0.01))
        for system, lacking in (("h200_sxm", 0.002), ("b200_sxm", 0.004))
    ]
    table = runs_table(runs)
    assert with_constant(table).tolist() == pytest.approx([0.014, 0.012])
    assert "MiniMax-M2.5 fp8_block, vLLM, with other GPUs' constant" in errors_table(table)


def test_a_killed_job_goes_on(tmp_path):
    """What was answered is not asked again; a torn last line is."""
    path = tmp_path / "answers.csv"
    file = AnswerFile(path, ("half",))
    tasks = {"a": 2, "b": 4, "c": "odd"}
    pool = open_pool(1)
    assert answer_all(pool, "tasks", halved, {"a": 2}, file) == {"a": (1.0,)}
    with path.open("a") as torn:
        torn.write("b,,1")
    file = AnswerFile(path, ("half",))
    assert (file.known("a"), file.known("b")) == ((1.0,), None)
    assert answer_all(pool, "tasks", halved, tasks, file) == {"a": (1.0,), "b": (2.0,), "c": "not a number"}
    assert AnswerFile(path, ("half",)).found(tasks) == {"a": (1.0,), "b": (2.0,), "c": "not a number"}


def halved(number):
    return "not a number" if isinstance(number, str) else [number / 2]


def test_a_case_for_the_estimator():
    checkpoint = CHECKPOINTS["openai/gpt-oss-120b", "fp4"]
    run = served_run(checkpoint=checkpoint, system="b200_sxm", parallel=ParallelSpec(data=2, expert=2))
    case = case_of(run)
    assert (case["gemm_quant_mode"], case["moe_quant_mode"]) == ("bfloat16", "w4a8_mxfp4_mxfp8")
    assert (case["batch_size"], case["moe_tp_size"], case["moe_ep_size"]) == (4, 1, 2)
    assert case["kvcache_quant_mode"] == "fp8"


def test_a_case_apart_for_the_estimator(wheel):
    [run] = apart(wheel, APART_ROW).runs
    case = case_of(run)
    assert case["mode"] == "disagg"
    told = {key.removeprefix("decode_"): value for key, value in case.items() if key.startswith("decode_")}
    assert told == {
        "num_workers": 4,
        "batch_size": 2,
        "tp_size": 8,
        "attention_dp_size": 1,
        "moe_tp_size": 1,
        "moe_ep_size": 8,
    }
    assert (case["prefill_batch_size"], case["prefill_attention_dp_size"], case["prefill_moe_ep_size"]) == (
        1,
        4,
        4,
    )


def test_estimates_of_another_python(tmp_path, monkeypatch):
    """A script that answers like the estimator; a problem is kept as well."""
    script = tmp_path / "estimator.py"
    script.write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    case = json.loads(line)\n"
        "    answer = {'ttft_ms': 100.0, 'tpot_ms': 20.0}\n"
        "    if case['key'] == 'b': answer = {'problem': 'no table'}\n"
        "    print(json.dumps({'key': case['key'], **answer}), flush=True)\n"
    )
    monkeypatch.setattr(estimates.estimator, "__file__", str(script))
    runs = [served_run(tpot_s=0.025), served_run()._replace(id="b")]
    file = AnswerFile(tmp_path / "estimates.csv", FIGURES)
    found = estimate_all(Path(sys.executable), runs, file)
    assert found == {"a": (0.1, 0.02), "b": "no table"}
    assert estimate_all(Path("nowhere"), runs, file) == found
    table = runs_table([(runs[0], Answer(0.1, 0.024, 0.024, *found["a"]))])
    assert "| Llama-3.1-8B bf16, vLLM | 1 | 4.0 / 4.0 | 20 / 20 | 100% |" in estimator_table(table)
    with pytest.raises(CbsimError, match="nowhere: can't be started"):
        estimate_all(Path("nowhere"), [served_run()._replace(id="c")], file)


def test_the_estimator_tells_what_it_can_not(capsys):
    """Without the package every case is a problem, never a crash."""
    estimator.main([json.dumps({"key": "a", "model_path": "x", "system_name": "y"})], sys.stdout)
    answer = json.loads(capsys.readouterr().out)
    assert answer["key"] == "a"
    assert "problem" in answer


def test_the_picture_has_two_panels_a_model():
    table = pd.concat(
        runs_table(
            [(served_run("vllm", ParallelSpec(tensor=degree), checkpoint=model), Answer(1.0, 0.3, 0.1))]
        )
        for model in list(CHECKPOINTS.values())[:8]
        for degree in (1, 8)
    )
    series = shown(table)
    figure = served_picture(series, "title", "caption")
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")] == [
        each.name for each in series
    ]


def save_law(order):
    """A profile whose kernels are known beforehand, in place of one from tables."""
    order.folder.mkdir(parents=True)
    CostFile(
        format="cbsim-cost/1",
        gpu="h100",
        device=f"{order.framework}, {order.wheel}",
        model=model_shape(order.model),
        tensor_parallel=order.parallel.tensor,
        form=make_form(fused=False),
        box=Box(
            max_tokens=16_384,
            max_logits=512,
            max_decodes=512,
            max_context_tokens=500_000,
            max_attention_pairs=100_000_000,
        ),
        points_sha256="",
    ).save(order.folder / "cost.json")


def test_one_command_with_a_law_known_beforehand(tmp_path, capsys, monkeypatch):
    """A client alone: a prompt, then 127 decodes, each with a token of context more, and the host each time.

    The server is said to be ten percent slower with tokens, and twice as fast with prompts.
    """
    law = make_form(fused=False)
    decodes = StepColumns.from_shapes(
        [StepShape((), 0, 1, context, context) for context in range(1025, 1152)]
    )
    prompt = StepColumns.from_shapes([StepShape(((1024, 0),), 1, 0, 0, 0)])
    tpot_s = form_seconds(law, decodes).mean() + HOST_S
    ttft_s = form_seconds(law, prompt).sum() + HOST_S
    row = ROW | {
        "tp_size": 2.0,
        "batch_size": 1.0,
        "silicon_ttft_ms": 1000 * ttft_s / 2,
        "silicon_tpot_ms": 1000 * tpot_s * 1.1,
        ORIGIN: "silicon_concurrency=1",
    }
    path = make_wheel(tmp_path / "aiconfigurator_core-7.8.9-py3-none-any.whl", [row])
    monkeypatch.setattr(command, "import_profile", save_law)
    slow = Assumption("a host of 1 s", {"vllm": always({"cost_model.host_step_s": 1.0})})
    monkeypatch.setattr(command, "OTHERS", (slow,))
    out = tmp_path / "out"
    arguments = ["--wheel", str(path), "--out", str(out), "--workers", "1"]
    assert command.main(arguments) == 0
    [run] = pd.read_csv(out / "served-runs.csv").to_dict("records")
    assert run["simulated_tpot_s"] == pytest.approx(tpot_s, rel=1e-4)
    assert run["simulated_ttft_s"] == pytest.approx(ttft_s, rel=1e-4)
    printed = capsys.readouterr().out
    assert "| **Llama-3.1-8B bf16, vLLM** | 1 | 9.1 / 9.1 | -9.1 | - |" in printed
    assert "| 100 / 100 | +100.0 |" in printed
    names = sorted(entry.name for entry in out.iterdir())
    assert names == ["predictions.csv", "profiles", "served-runs.csv", "served-runs.png", "served-runs.svg"]
    [profile] = (out / "profiles").iterdir()
    assert profile.name == "h100_sxm-llama-3-8b-bf16-vllm-tp2-ep1-dp1"
    assert f"vllm, {path}" in (profile / "cost.json").read_text()
    monkeypatch.setattr(command, "import_profile", lambda order: None)
    assert command.main([*arguments, "--assumptions"]) == 0
    printed = capsys.readouterr().out
    assert "| as documented | 9.1 / 9.1, -9.1 | 100 / 100, +100.0 |" in printed
    assert "| a host of 1 s |" in printed


def test_the_readme_shows_what_the_file_says():
    """After another run of the command its tables go into the README."""
    folder = Path(command.__file__).parents[1]
    readme = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    table = pd.read_csv(folder / "served-runs.csv")
    apart_runs = pd.read_csv(folder / "served-runs-apart.csv")
    tables = [errors_table(table), apart_table(apart_runs), apart_estimator_table(apart_runs)]
    assert [line for each in tables for line in each.splitlines() if line not in readme] == []
    shown = [line.split(" | ")[0] for line in readme]
    assert [text for text in (each.text for each in OTHERS) if f"| {text}" not in shown] == []
