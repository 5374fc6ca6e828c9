"""The comparison with served runs: a wheel of kernels that follow simple rules, and runs worked by hand."""

import zipfile
from pathlib import Path

import pandas as pd
import pytest
import yaml

from calibration.served_runs import __main__ as command
from calibration.served_runs import tables as tables_module
from calibration.served_runs.assumptions import DOCUMENTED, OTHERS, REQUESTS_PER_CLIENT, Assumption, always
from calibration.served_runs.picture import served_picture
from calibration.served_runs.prediction import Prediction, predict, run_order
from calibration.served_runs.sample import COLUMNS, ServedRun, read_runs
from calibration.served_runs.servers import SERIES, Series, vllm
from calibration.served_runs.tables import errors_table, runs_table, write_runs
from cbsim.base.errors import CalibrationError
from cbsim.cost.cost_model import StepShape
from cbsim.cost.costfile import Box, CostFile, model_shape
from cbsim.cost.profile_record import form_seconds
from cbsim.cost.step_columns import StepColumns
from cbsim.lab.calibrate import nvidia_tables
from cbsim.lab.calibrate.nvidia_tables import NvidiaTables
from cbsim.studies.experiment import Experiment
from tests.cost.laws import make_form
from tests.specs.test_specs import load_model

HOST_S = 1e-3 + 1e-5
"""Of a step with one request, added to the GPU's."""
OURS = Series("Llama, vLLM", "meta/Llama", "llama-3-8b", "vllm", vllm)
ROW = {
    "model_path": OURS.path,
    "backend": "vllm",
    "backend_version": "0.12.0",
    "system": "h100_sxm",
    "precision": None,
    "gemm_quant_mode": None,
    "mode": "agg",
    "tp_size": 1.0,
    "isl": 1024,
    "osl": 128,
    "silicon_ttft_ms": 250.0,
    "silicon_tpot_ms": 12.5,
    "silicon_data_source": "source_file=a.csv; silicon_concurrency=8",
}
CONSTANT = always({"cost_model": {"type": "constant", "step_s": 1.0}})


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


def test_rows_that_count(wheel):
    others = [
        {"precision": "fp8"},
        {"gemm_quant_mode": "nvfp4"},
        {"mode": "disagg"},
        {"system": "h200_sxm"},
        {"backend": "sglang"},
        {"model_path": "meta/Other"},
        {"silicon_tpot_ms": None},
        {"silicon_data_source": "source_file=a.csv"},
    ]
    small = {"isl": 512, "silicon_data_source": "silicon_concurrency=128; silicon_x=1"}
    path = wheel([ROW, *(ROW | other for other in others), ROW | small])
    assert read_runs(NvidiaTables("h100_sxm", path), OURS) == [
        ServedRun("0.12.0", 1, 512, 128, 128, 0.25, 0.0125),
        ServedRun("0.12.0", 1, 1024, 128, 8, 0.25, 0.0125),
    ]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (None, "aiconfigurator-core 7.8.9 has no silicon_sample.csv"),
        (
            [{column: ROW[column] for column in COLUMNS if column not in ("isl", "mode")}],
            "silicon_sample.csv of aiconfigurator-core 7.8.9: no column mode, isl",
        ),
        (
            [ROW | {"precision": "fp8"}],
            "silicon_sample.csv of aiconfigurator-core 7.8.9: no bf16 runs of meta/Llama by vllm on h100_sxm",
        ),
    ],
)
def test_what_the_sample_lacks_is_told(wheel, sample, message):
    with pytest.raises(CalibrationError) as raised:
        read_runs(NvidiaTables("h100_sxm", wheel(sample)), OURS)
    assert raised.value.problems == (message,)


def test_mistakes_are_one_line_each(tmp_path, capsys, monkeypatch):
    def told(*arguments):
        assert command.main([*map(str, arguments), "--workers", "1"]) == 2
        return capsys.readouterr().err

    other = tmp_path / "other.whl"
    other.write_bytes(b"no archive")
    assert "other.whl: can't be read as a wheel: " in told("--wheel", other)

    def not_installed(name):
        raise nvidia_tables.PackageNotFoundError(name)

    monkeypatch.setattr(nvidia_tables, "distribution", not_installed)
    assert told() == (
        "aiconfigurator-core is not installed: pip install 'cbsim[nvidia]', or pass its wheel by --wheel\n"
    )
    monkeypatch.setattr(command, "SERIES", (OURS,))
    whole = make_wheel(tmp_path / "aiconfigurator_core-7.8.9-py3-none-any.whl", [ROW])
    (tmp_path / "taken").write_text("")
    assert told("--wheel", whole, "--out", tmp_path / "taken") == (
        f"{tmp_path / 'taken'}: can't be written: File exists\n"
    )
    assert told("--wheel", whole, "--out", tmp_path / "out").startswith("h100_sxm: ")


def constant_order(run, series, requests_per_client=REQUESTS_PER_CLIENT):
    """A run whose every step takes a second."""
    assumption = Assumption("constant", {series.framework: CONSTANT}, requests_per_client)
    return run_order(run, series, assumption, "nowhere")


def test_a_run_by_hand():
    """Both prompts fit in one step of 1 s, then three of decodes: clients stay in step for ever."""
    run = ServedRun("0", 1, 100, 4, 2, 9.0, 9.0)
    order = constant_order(run, OURS)
    assert order.config["workload"]["num_requests"] == 20
    # One decode step, and a quarter of the one prompt that the other client sends meanwhile.
    assert predict(order) == Prediction(1.0, 1.0, 1.0 + 1 / 4)


def test_prompts_before_decodes_by_hand():
    """SGLang: a step holds 8192 tokens, so the third prompt of 3000 waits a step, and the first two for it.

    Steps 1 and 2 compute prompts, 3 to 5 decodes, and so on: TTFT is 1, 1 and 2 s; TPOT is 4/3, 4/3 and 1 s.
    """
    run = ServedRun("0", 1, 3000, 4, 3, 9.0, 9.0)
    prediction = predict(constant_order(run, SERIES[1], requests_per_client=1))
    assert prediction.ttft_s == pytest.approx(4 / 3)
    assert prediction.tpot_s == pytest.approx((4 / 3 + 4 / 3 + 1) / 3)


def test_whole_prompts_by_hand():
    """TensorRT-LLM: 2 + 3000 + 1500 tokens a step, so one of two prompts waits, while the other decodes."""
    run = ServedRun("0", 1, 3000, 4, 2, 9.0, 9.0)
    order = constant_order(run, SERIES[2], requests_per_client=1)
    prediction = predict(order)
    assert order.settings["scheduler.max_tokens_per_step"] == 4502
    assert prediction[:2] == pytest.approx((1.5, 1.0))


@pytest.mark.parametrize("assumption", [DOCUMENTED, *OTHERS], ids=lambda assumption: assumption.text)
def test_every_assumption_is_a_valid_experiment(assumption):
    run = ServedRun("0", 2, 1024, 128, 8, 1.0, 1.0)
    plain = {series.framework: run_order(run, series, DOCUMENTED, "nowhere") for series in SERIES}
    for series in SERIES:
        if series.framework in assumption.changes:
            order = run_order(run, series, assumption, "nowhere")
            experiment = Experiment.of(order.config, order.settings)
            assert experiment.replicas.tensor_parallel == 2
            assert (assumption is DOCUMENTED) == (order == plain[series.framework])


def test_errors_by_hand(tmp_path):
    run = ServedRun("0.12.0", 2, 1024, 128, 8, 2.0, 0.1)
    table = runs_table(
        [
            (OURS, run, Prediction(1.0, 0.11, 0.1)),
            (OURS, run._replace(tensor_parallel=4), Prediction(3.0, 0.08, 0.1)),
        ]
    )
    assert errors_table(table).splitlines()[2:] == [
        "| **Llama, vLLM** | 2 | 15 / 19 / 20 | -5.0 | 0.0 / 0.0 / 0.0 | +0.0 | 50 / 50 / 50 | +0.0 |",
        "| TP 2 | 1 | 10 / 10 / 10 | +10.0 | 0.0 / 0.0 / 0.0 | +0.0 | 50 / 50 / 50 | -50.0 |",
        "| TP 4 | 1 | 20 / 20 / 20 | -20.0 | 0.0 / 0.0 / 0.0 | +0.0 | 50 / 50 / 50 | +50.0 |",
    ]
    write_runs(table, tmp_path / "served-runs.csv")
    assert pd.read_csv(tmp_path / "served-runs.csv").to_dict() == table.to_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["served-runs.csv"]


def test_the_picture_has_two_panels_a_series():
    table = pd.concat(
        runs_table([(series, ServedRun("0", degree, 1, 2, 8, 1.0, 0.1), Prediction(1.0, 0.3, 0.1))])
        for series in SERIES
        for degree in (1, 8)
    )
    figure = served_picture(tables_module.shown(table), "title", "caption")
    assert len(figure.axes) == 6
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == [series.name for series in SERIES]


def save_law(order):
    """A profile whose kernels are known beforehand, in place of one from tables."""
    order.folder.mkdir(parents=True)
    CostFile(
        format="cbsim-cost/1",
        gpu="h100",
        device=f"{order.framework}, {order.wheel}",
        model=model_shape(load_model(order.model)),
        tensor_parallel=order.tensor_parallel,
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
        "silicon_ttft_ms": 1000 * ttft_s / 2,
        "silicon_tpot_ms": 1000 * tpot_s * 1.1,
        "silicon_data_source": "silicon_concurrency=1",
    }
    path = make_wheel(tmp_path / "aiconfigurator_core-7.8.9-py3-none-any.whl", [row])
    monkeypatch.setattr(command, "SERIES", (OURS,))
    monkeypatch.setattr(tables_module, "SERIES", (OURS,))
    monkeypatch.setattr(command, "import_profile", save_law)
    slow = Assumption("a host of 1 s", {"vllm": always({"cost_model.host_step_s": 1.0})})
    monkeypatch.setattr(command, "OTHERS", (slow,))
    out = tmp_path / "out"
    assert command.main(["--wheel", str(path), "--out", str(out), "--workers", "1"]) == 0
    [run] = pd.read_csv(out / "served-runs.csv").to_dict("records")
    assert run["simulated_tpot_s"] == pytest.approx(tpot_s, rel=1e-4)
    assert run["simulated_ttft_s"] == pytest.approx(ttft_s, rel=1e-4)
    printed = capsys.readouterr().out
    assert "| **Llama, vLLM** | 1 | 9.1 / 9.1 / 9.1 | -9.1 |" in printed
    assert "| 100 / 100 / 100 | +100.0 |" in printed
    assert "| as documented | 9.1 / 9.1, -9.1 | 100 / 100, +100.0 |" in printed
    assert "| a host of 1 s |" in printed
    names = sorted(entry.name for entry in out.iterdir())
    assert names == ["profiles", "served-runs.csv", "served-runs.png", "served-runs.svg"]
    assert f"vllm, {path}" in (out / "profiles" / "llama-3-8b-vllm-tp2" / "cost.json").read_text()


def test_the_readme_shows_what_the_file_says():
    """After another run of the command its tables go into the README."""
    folder = Path(command.__file__).parents[1]
    readme = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    table = pd.read_csv(folder / "served-runs.csv")
    assert [line for line in errors_table(table).splitlines() if line not in readme] == []
    shown = [line.split(" | ")[0] for line in readme]
    assert [text for text in (each.text for each in OTHERS) if f"| {text}" not in shown] == []
