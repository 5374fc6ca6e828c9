"""What kernels reach of a peak, worked by hand, and the report that one command writes."""

from __future__ import annotations

import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from calibration.kernel_report import KernelReport, additivity_sentence, grid
from calibration.reached_peaks import Reached, Sum, additivity, reached
from cbsim.cost.costfile import Box, CostFile, model_shape
from cbsim.cost.form import StepForm
from cbsim.lab.calibrate import coefficients
from cbsim.lab.calibrate import measurement as measure
from cbsim.lab.calibrate.accuracy import predict
from cbsim.lab.calibrate.point import Point
from cbsim.lab.calibrate.pointsfile import Meta, read_meta
from cbsim.lab.calibrate.timing_plan import PlanPoint
from cbsim.lab.kernels.rig import Rig
from cbsim.lab.kernels.timing import Timer, Timing
from cbsim.specs import GpuSpec
from tests.cost.laws import make_form
from tests.lab.kernels.references import CONFIGS, load_model

GPU = GpuSpec(
    name="round",
    memory_gib=80,
    memory_bandwidth_gb_s=4000,
    bf16_tflops=1000,
    fp32_tflops=100,
    link_gb_s=1,
    host_link_gb_s=1,
)
LLAMA = load_model("llama-3-8b")
META = Meta(
    device="NVIDIA Round",
    model=model_shape(LLAMA),
    source="a law",
    date="2026-01-01",
    command="none",
    software={"torch": "9.9"},
    warnings=["clocks moved"],
)
SCRIPT = CONFIGS.parent / "calibration" / "run_on_gpu.py"


def cost_file(form: StepForm) -> CostFile:
    return CostFile(
        format="cbsim-cost/1",
        gpu=None,
        device=META.device,
        model=META.model,
        tensor_parallel=1,
        form=form,
        box=Box(max_tokens=1, max_logits=1, max_decodes=1, max_context_tokens=1, max_attention_pairs=1),
        points_sha256="",
    )


# 64 contexts of 4096: 2 x 8 heads x 128 x 2 bytes a token and layer, 1.0737 GB, in 0.4 ms.
DECODE = Point("decode", 4e-4, num_decodes=64, decode_context=64 * 4096, max_decode_context=4096)
# 1000 tokens over 500: 1,000,500 pairs, 4 x 32 heads x 128 FLOP each, in 0.1 ms.
CHUNK = Point("prefill", 1e-4, chunks=((1000, 500),))
# 128 tokens: 2 FLOP for each of 218,103,808 weights, in 0.2 ms.
DENSE = Point("dense", 2e-4, tokens=128)


def test_rates_by_hand() -> None:
    rows = reached([DECODE, CHUNK, DENSE], LLAMA, GPU)
    assert [(row.op, row.batch, row.context) for row in rows] == [
        ("decode", 64, 4096),
        ("prefill", 1000, 500),
        ("dense", 128, 0),
    ]
    assert rows[0].rate == pytest.approx(64 * 4096 * 4096 / 4e-4 / 1e12)
    assert rows[0].share == pytest.approx(rows[0].rate / 4)
    assert rows[1].rate == pytest.approx(1_000_500 * 16384 / 1e-4 / 1e12)
    assert rows[2].rate == pytest.approx(128 * 2 * 218_103_808 / 2e-4 / 1e12)
    halves = reached([DECODE, CHUNK, DENSE], LLAMA, GPU, tensor_parallel=2)
    assert [half.rate for half in halves] == [pytest.approx(row.rate / 2) for row in rows]


def test_without_a_data_sheet_there_are_rates_but_no_shares() -> None:
    known, unknown = reached([DECODE], LLAMA, GPU), reached([DECODE], LLAMA, None)
    assert unknown[0].rate == known[0].rate
    assert unknown[0].share is None
    assert grid(known, "decodes") == ("| decodes \\ context | 4,096 |\n| :-- | --: |\n| 64 | 2.68 (67%) |")
    assert grid(unknown, "decodes").endswith("| 64 | 2.68 |")


def test_a_grid_has_every_size_once_and_leaves_gaps_empty() -> None:
    rows = [
        Reached("decode", batch, context, 1.0, batch * context, None) for batch, context in ((2, 9), (1, 3))
    ]
    assert grid(rows, "decodes").splitlines()[2:] == ["| 1 | 3 |  |", "| 2 |  | 18 |"]


def test_the_report_says_what_was_asked_of_a_gpu() -> None:
    steps = [
        replace(DECODE, op="step", split="unseen", t_median_s=2.0, num_logits=64),
        replace(CHUNK, op="step", split="unseen", t_median_s=2.0, tokens=1000),
    ]
    law = make_form(fused=False)
    for points, gpu, present, absent in (
        ([DECODE, CHUNK, DENSE, *steps], GPU, ["| 64 | 2.68 (67%) |", "(share of the memory peak)"], []),
        (
            [DECODE, CHUNK, DENSE, *steps],
            None,
            ["no share of a peak is given", "| 64 | 2.68 |"],
            ["(67%)", "share of the", "MFU"],
        ),
    ):
        report = KernelReport(LLAMA, META, points, cost_file(law), gpu)
        text = "\n".join(report.sections([Sum(((64, 0),), 2, 300, 1.2, 0.6, 0.4)]))
        for part in (*present, "| 128 | 200 us | 279 | 2.18 |", "took 1.20 times the sum of its parts"):
            assert part in text
        assert not [part for part in absent if part in text]
        for kind in ("decodes alone", "chunks alone", "all"):
            assert f"| {kind} | " in text
        assert "torch 9.9" in text
        assert "clocks moved" in text


def test_points_without_one_size_have_no_rate() -> None:
    unequal = Point("decode", 1.0, num_decodes=2, decode_context=30, max_decode_context=20)
    several = Point("prefill", 1.0, chunks=((10, 0), (20, 0)))
    repeat = Point("dense", 1.0, tokens=8, split="repeat")
    assert reached([unequal, several, repeat], LLAMA, GPU) == []


def test_additivity_times_the_whole_and_its_parts() -> None:
    law = {"mixed": 1.2, "prefill": 0.6, "decode": 0.4}
    point = PlanPoint("mixed", chunks=((64, 0),), contexts=(100, 200))
    (row,) = additivity([point], lambda part: law[part.op])
    assert row == Sum(((64, 0),), 2, 300, 1.2, 0.6, 0.4)
    assert row.excess == pytest.approx(0.2)
    assert "together took 1.20 times the sum of its parts" in additivity_sentence([row])


def test_mixes_that_do_not_fit_the_device_are_left_out() -> None:
    def seconds(part: PlanPoint) -> float:
        if sum(part.contexts) > 200:
            raise MemoryError
        return 1.0

    mixed = [PlanPoint("mixed", chunks=((64, 0),), contexts=(size,)) for size in (100, 300)]
    assert [row.decode_context for row in additivity(mixed, seconds)] == [100]
    assert additivity_sentence([]) == "No mix of chunks and decodes could be timed."


class Law:
    """Runs everything once, and says that it took what a law of additive parts says, give or take 1 %."""

    def __init__(self) -> None:
        self.law = make_form(fused=False)
        self.rng = np.random.default_rng(0)

    def __call__(self, rig: Rig, timer: Timer, planned: PlanPoint) -> Timing:
        with torch.inference_mode():
            for _, make_calls in measure.calls_of(rig, planned):
                make_calls(1)[0]()
        contexts = planned.contexts
        point = Point(
            planned.op,
            1.0,
            chunks=planned.chunks,
            num_decodes=len(contexts),
            decode_context=sum(contexts),
            max_decode_context=max(contexts, default=0),
            tokens=planned.tokens,
            num_logits=planned.num_logits,
        )
        (seconds,) = predict(self.law, [point])
        return Timing.of([seconds * self.rng.uniform(0.99, 1.01)])


def test_the_one_command_runs_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scipy")
    monkeypatch.setattr(measure, "time_point", Law())
    monkeypatch.setattr(coefficients, "NUM_STARTS", 1)
    words = f"--device cpu --models tiny --plan quick --out {tmp_path}".split()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    captured = capsys.readouterr()
    assert ended.value.code == 0, captured.err
    assert {path.name for path in (tmp_path / "tiny").iterdir()} == {
        "points.csv",
        "meta.json",
        "cost.json",
        "report.md",
    }
    report = (tmp_path / "tiny" / "report.md").read_text()
    assert report in captured.out
    assert "| chunks and decodes |" in report
    assert re.search(
        r"took (0\.99|1\.00|1\.01) times the sum of its parts timed apart, at the median", report
    )
    assert "no share of a peak is given" in report
    meta = read_meta(tmp_path / "tiny" / "meta.json")
    assert meta.gpu is None
    assert meta.command.startswith("python3 ")
    assert "run_on_gpu.py --device cpu" in meta.command


def test_it_lists_the_packages_to_bring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = runpy.run_path(str(SCRIPT))
    assert names["list_wheels"]([]) == 0
    assert names["list_wheels"](["pydantic", "scipy"]) == 2
    assert "--dest wheels pydantic scipy" in capsys.readouterr().out


def test_names_are_checked_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--device cpu --models tiny llama-3-8 --gpu h2000 --out {tmp_path}".split()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "no gpu 'h2000'; did you mean 'h200'?\nno model 'llama-3-8'; did you mean 'llama-3-8b'?\n"
    )
    assert list(tmp_path.iterdir()) == []
