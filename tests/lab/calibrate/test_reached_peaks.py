"""What kernels reach of a peak, worked by hand, and the report that one command writes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from calibration import reached_peaks
from calibration.against_table import against_table, ratios
from calibration.kernel_report import KernelReport, additivity_sentence, grid
from calibration.reached_peaks import (
    Attainable,
    Reached,
    Sum,
    additivity,
    additivity_by_form,
    reached,
    read_bytes,
)
from cbsim.cost.costfile import Box, CostFile, find_cost_file, model_shape, read_cost_file
from cbsim.cost.form import StepForm
from cbsim.lab.calibrate.accuracy import predict
from cbsim.lab.calibrate.point import Point
from cbsim.lab.calibrate.pointsfile import Meta, read_points
from cbsim.lab.calibrate.timing_plan import PlanPoint
from cbsim.specs import GpuSpec
from tests.cost.laws import make_form
from tests.lab.kernels.references import load_model

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


def test_shares_of_what_is_attainable() -> None:
    attainable = Attainable(bytes_per_s=2.0e12, flop_per_s=5.0e14)
    rows = reached([DECODE, CHUNK], LLAMA, GPU, attainable=attainable)
    assert [row.attained / row.share for row in rows] == [pytest.approx(2.0), pytest.approx(2.0)]
    assert grid(rows[:1], "decodes").endswith("| 64 | 2.68 (67%; 134%) |")


def test_a_dense_layer_is_not_held_against_experts_weights() -> None:
    """Qwen3-30B-A3B: 48 layers of 128 experts, 8 a token, of 3 x 2048 x 768 weights each."""
    model = load_model("qwen3-30b-a3b")
    projections = 2048 * 128 * (2 * 32 + 2 * 4)
    expert = 3 * 2048 * 768
    dense, experts = reached([DENSE, replace(DENSE, op="experts")], model, GPU)
    assert dense.rate == pytest.approx(128 * 2 * projections / 2e-4 / 1e12)
    assert experts.rate == pytest.approx(128 * 2 * (8 * expert + 2048 * 128) / 2e-4 / 1e12)
    assert read_bytes(model, "dense", 128) == 2 * projections
    # One token goes to 8 of the experts, 16 tokens, dealt out evenly, to all of them.
    for tokens, num_read in ((1, 8), (16, 128), (4096, 128)):
        assert read_bytes(model, "experts", tokens) == 2 * (num_read * expert + 2048 * 128)


def test_weights_of_8_bits_have_their_own_peak() -> None:
    model = LLAMA.model_copy(update={"weight_dtype": "fp8"})
    gpu = GPU.model_copy(update={"fp8_tflops": 2000})
    (plain,), (small,) = reached([DENSE], LLAMA, gpu), reached([DENSE], model, gpu)
    assert small.share == pytest.approx(plain.share / 2)
    # The product that was timed for what is attainable is one of the activations' dtype.
    attainable = Attainable(bytes_per_s=2.0e12, flop_per_s=5.0e14)
    (row,) = reached([DENSE], model, gpu, attainable=attainable)
    assert row.attained is None
    assert read_bytes(model, "dense", 1) == read_bytes(LLAMA, "dense", 1) / 2


def test_additivity_without_time_for_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    law = make_form(fused=False)
    mixed = replace(DECODE, op="mixed", chunks=((64, 0),))
    (seconds,) = predict(law, [mixed])
    (row,) = additivity_by_form([replace(mixed, t_median_s=1.3 * seconds), DECODE], law)
    assert row.excess == pytest.approx(0.3)
    assert "took 1.30 times the sum of its parts as the fitted form has them, at" in additivity_sentence(
        [row]
    )
    assert additivity_by_form([DECODE], law) == []
    monkeypatch.setattr(reached_peaks.time, "monotonic", lambda: 5.0)
    assert additivity([PlanPoint("mixed", chunks=((64, 0),), contexts=(9,))], lambda part: 1.0, 5.0) == []


def test_own_kernels_over_a_table() -> None:
    """Timings that take 1.5 times what the shipped profile says, and decodes twice."""
    h200 = GPU.model_copy(update={"name": "h200"})
    file = read_cost_file(find_cost_file("h200/llama-3-8b"))
    points = read_points(find_cost_file("h200/llama-3-8b").with_name("points.csv"))[::7]
    theirs = predict(file.form, points)
    own = [
        replace(point, t_median_s=float(seconds) * (2.0 if point.op == "decode" else 1.5))
        for point, seconds in zip(points, theirs, strict=True)
    ]
    rows = ratios(own, theirs, file.box)
    assert {(row.op, round(row.median, 6)) for row in rows} == {
        ("dense", 1.5),
        ("logits", 1.5),
        ("prefill", 1.5),
        ("decode", 2.0),
    }
    ops = {row.op for row in rows}
    assert sum(row.num_points for row in rows) == sum(
        point.split == "fit" and point.op in ops for point in own
    )
    title, said, table = against_table(own, LLAMA, h200, 1)
    assert "NVIDIA's table" in title
    assert "`h200/llama-3-8b`" in said
    assert "| decodes, context in all |" in table
    assert "2.00 (2.00 to 2.00)" in table
    beyond = replace(DENSE, tokens=10**6)
    assert ratios([beyond], np.ones(1), file.box) == []
    assert against_table(own, LLAMA, None, 1)[1].startswith("No profile of this model and GPU is shipped")
