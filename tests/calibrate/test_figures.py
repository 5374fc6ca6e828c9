"""What kernels reach of a peak, worked by hand, and the report that one command writes."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from cbsim.calibrate import measure
from cbsim.calibrate.figures import Sum, additivity, additivity_sentence, reached, reached_table
from cbsim.calibrate.plan import PlanPoint
from cbsim.calibrate.point import Point
from cbsim.kernels import timing
from cbsim.kernels.timing import CpuTimer
from cbsim.specs import GpuSpec
from tests.kernels.references import CONFIGS, load_model

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
SCRIPT = CONFIGS.parent / "calibration" / "run_on_gpu.py"


def test_rates_by_hand() -> None:
    # 64 contexts of 4096: 2 x 8 heads x 128 x 2 bytes a token and layer, 1.0737 GB, in 0.4 ms.
    decode = Point("decode", 4e-4, num_decodes=64, decode_context=64 * 4096, max_decode_context=4096)
    # 1000 tokens over 500: 1,000,500 pairs, 4 x 32 heads x 128 FLOP each, in 0.1 ms.
    chunk = Point("prefill", 1e-4, chunks=((1000, 500),))
    # 100 tokens: 2 FLOP for each of 218,103,808 weights, in 0.2 ms.
    dense = Point("dense", 2e-4, tokens=100)
    rows = reached([decode, chunk, dense], LLAMA, GPU)
    assert [row.op for row in rows] == ["decode", "prefill", "dense"]
    assert rows[0].rate == pytest.approx(64 * 4096 * 4096 / 4e-4 / 1e12)
    assert rows[0].share == pytest.approx(rows[0].rate / 4)
    assert rows[1].rate == pytest.approx(1_000_500 * 16384 / 1e-4 / 1e12)
    assert rows[2].rate == pytest.approx(100 * 2 * 218_103_808 / 2e-4 / 1e12)
    assert "| decode | B=64 context=4096 | 0.0004 s | 2.68 TB/s | 67% |" in reached_table(rows)
    halves = reached([decode, chunk, dense], LLAMA, GPU, tensor_parallel=2)
    assert [half.rate for half in halves] == [pytest.approx(row.rate / 2) for row in rows]


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
    assert additivity_sentence([row]).startswith("1 mixes of chunks and decodes take +20.0% of the sum")


def test_the_one_command_runs_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scipy")
    for module in (measure, timing):
        monkeypatch.setattr(module, "make_timer", lambda device: CpuTimer(1, 1, 0.0))
    words = f"--device cpu --models tiny --gpu h200 --plan quick --out {tmp_path}".split()
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
    assert "| whole_steps | step |" in report
    assert "mixes of chunks and decodes take" in report


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
        "unknown gpu 'h2000'; did you mean 'h200'?\nunknown model 'llama-3-8'; did you mean 'llama-3-8b'?\n"
    )
    assert list(tmp_path.iterdir()) == []
