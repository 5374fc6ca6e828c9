"""vLLM's `/metrics` beside a simulation."""

import json
from math import inf

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

import cbsim
from cbsim.base.errors import WorkloadError
from cbsim.cli.command_line import main
from cbsim.lab.validate.metrics_page import is_metrics_page, read_metrics_page
from cbsim.lab.validate.recorded_run import error_pct

SETTINGS = {
    "model": "llama-3-8b",
    "scheduler": "vllm",
    "cost_model": {"type": "constant", "step_s": 0.02},
    "workload": {
        "type": "synthetic",
        "num_requests": 40,
        "arrivals": {"type": "poisson", "rate_per_s": 20.0},
        "prompt_tokens": {"type": "fixed", "value": 30},
        "output_tokens": {"type": "uniform", "min": 2, "max": 40},
    },
}
BOUNDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, inf]


def histogram(name, values, engine="0"):
    labels = f'engine="{engine}",model_name="m"'
    rows = [f"# HELP {name} seconds", f"# TYPE {name} histogram"]
    for bound in BOUNDS:
        told = "+Inf" if bound == inf else str(bound)
        rows.append(f'{name}_bucket{{{labels},le="{told}"}} {(np.asarray(values) <= bound).sum()}.0')
    return [*rows, f"{name}_sum{{{labels}}} {np.sum(values)}", f"{name}_count{{{labels}}} {len(values)}.0"]


def page_of(result, *, factor=1.0):
    """What a server would say that did the same, its times `factor` times as long, on two engines."""
    requests = result.requests
    rows = [
        f'vllm:generation_tokens_total{{engine="0"}} {requests["num_output_tokens"].sum()}.0 1700000000000'
    ]
    for engine in ("0", "1"):
        half = requests.iloc[int(engine) :: 2]
        rows += histogram("vllm:time_to_first_token_seconds", factor * half["ttft_s"], engine)
        rows += histogram("vllm:e2e_request_latency_seconds", factor * half["e2e_s"], engine)
    return "\n".join(["# HELP process_start_time_seconds x", "process_start_time_seconds 1.7e+09", *rows, ""])


@pytest.fixture
def files(tmp_path):
    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.txt").write_text(text)
        (tmp_path / "e.yaml").write_text(yaml.safe_dump(SETTINGS))
        return tmp_path

    return write


def told(folder, *options):
    ran = CliRunner().invoke(main, ["validate", str(folder / "e.yaml"), "--json", *options])
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def test_a_server_that_did_the_same(files):
    folder = files(after=page_of(cbsim.run(SETTINGS)))
    found = told(folder, "--log", str(folder / "after.txt"))
    figures = {figure["name"]: figure for figure in found["figures"]}
    assert set(figures) == {"ttft_s.mean", "e2e_s.mean", "output tokens"}
    assert all(abs(figure["error_pct"]) < 1e-9 for figure in figures.values())
    assert len(found["quantiles"]) == 6
    assert all(quantile["is_within"] for quantile in found["quantiles"])


def test_a_slower_server_is_told(files):
    folder = files(after=page_of(cbsim.run(SETTINGS), factor=2.0))
    found = told(folder, "--log", str(folder / "after.txt"))
    means = {figure["name"]: figure["error_pct"] for figure in found["figures"]}
    assert means["ttft_s.mean"] == pytest.approx(-50.0)
    assert means["e2e_s.mean"] == pytest.approx(-50.0)
    assert not all(quantile["is_within"] for quantile in found["quantiles"])


def test_figures_that_no_service_has_are_noted(files):
    folder = files(after=page_of(cbsim.run(SETTINGS), factor=1e12))
    (note,) = (
        note for note in told(folder, "--log", str(folder / "after.txt"))["notes"] if "service" in note
    )
    assert note.startswith("ttft_s.mean ")
    assert "e+10, e2e_s.mean " in note


def test_an_error_beside_next_to_nothing_is_none():
    assert error_pct(2.0, 1.0) == 100.0
    assert np.isnan([error_pct(1.0, real) for real in (0.0, 5e-324)]).all()


def test_what_came_before_is_taken_off(files):
    once = cbsim.run(SETTINGS)
    text = page_of(once)
    twice = "".join(
        f"{line.rpartition(' ')[0]} {2 * float(line.rpartition(' ')[2])}\n"
        for line in text.replace(" 1700000000000", "").splitlines()
        if not line.startswith("#")
    )
    folder = files(before=text.replace(" 1700000000000", ""), after="# HELP vllm:\n" + twice)
    found = told(folder, "--log", str(folder / "after.txt"), "--since", str(folder / "before.txt"))
    assert all(abs(figure["error_pct"]) < 1e-9 for figure in found["figures"])
    with pytest.raises(WorkloadError, match="less than"):
        read_metrics_page(folder / "before.txt").since(read_metrics_page(folder / "after.txt"))


def test_wrong_pages(files, tmp_path):
    folder = files(wrong="# HELP vllm:x y\nvllm:x{} twelve\n", none="# HELP x y\nx 1\n# vllm: nothing\n")
    with pytest.raises(WorkloadError, match=r"wrong.txt:2: got vllm:x\{\} twelve; allowed"):
        read_metrics_page(folder / "wrong.txt")
    with pytest.raises(WorkloadError, match="got no figure of vLLM"):
        read_metrics_page(folder / "none.txt")
    name = "vllm:time_to_first_token_seconds"
    for text, message in (
        (
            f'{name}_bucket{{le="0.1"}} 3\n{name}_bucket{{le="+Inf"}} 1',
            r"_bucket: got \[3.0, 1.0\]; allowed: counts",
        ),
        (f'{name}_bucket{{le="+Inf"}} NaN', "counts that rise"),
        (f'{name}_bucket{{le="+Inf"}} 3', f"{name}_sum: missing beside"),
        (f'{name}_bucket{{le="+Inf"}} 3\n{name}_sum -1', "_sum: got -1; allowed: numbers from 0 up"),
        ("vllm:prompt_tokens_total inf", "tokens_total: got inf"),
    ):
        (folder / "wrong.txt").write_text(text)
        with pytest.raises(WorkloadError, match=message):
            read_metrics_page(folder / "wrong.txt")
    assert not is_metrics_page(folder / "e.yaml")
    assert not is_metrics_page(tmp_path / "missing.txt")
