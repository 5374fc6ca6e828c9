"""The loop from a plan to rows on disk, on a CPU with the tiny model: structure, resuming and mistakes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from cbsim.base.errors import CalibrationError
from cbsim.base.units import GIB
from cbsim.lab.calibrate import coefficients
from cbsim.lab.calibrate import measurement as measuring
from cbsim.lab.calibrate.fit import fit_unreported
from cbsim.lab.calibrate.measurement import Measurement, calls_of, find_room, measure, warnings_of
from cbsim.lab.calibrate.point import Op, Point
from cbsim.lab.calibrate.pointsfile import read_meta, read_points, write_points
from cbsim.lab.calibrate.timing_plan import PlanPoint, make_plan
from cbsim.lab.kernels.all_reduce import can_all_reduce
from cbsim.lab.kernels.attention_backends import SdpaBackend
from cbsim.lab.kernels.shard import Shard
from cbsim.lab.kernels.timing import CpuTimer, Device, MakeCalls, Timing, open_device
from cbsim.specs.parallel import ONE_GPU
from tests.lab.kernels.references import load_model

BY_LAYER: tuple[Op, ...] = ("dense", "experts")
TINY = load_model("tiny")
GPU = Device(torch.device("cuda"), "a GPU", 0, 0, {})


class OnceTimer(CpuTimer):
    """Runs everything once, and stops the run after `limit` timings as a kill would."""

    def __init__(self, limit: int = 10**9) -> None:
        super().__init__(num_runs=1, num_warmups=1, target_s=0.0)
        self.limit = limit
        self.num_timed = 0

    def time(self, make_calls: MakeCalls, *, what: object = None, as_graph: bool = True) -> Timing:
        if self.num_timed == self.limit:
            raise KeyboardInterrupt
        self.num_timed += 1
        return super().time(make_calls, what=what, as_graph=as_graph)


class Counting(SdpaBackend):
    """A backend of somebody else."""

    def describe(self) -> str:
        return "Counting"


def run(out: Path, **changes: object) -> Measurement:
    settings = {"model": TINY, "out": out, "device": "cpu", "plan": "quick", "timer": OnceTimer(), **changes}
    return measure(**settings)  # type: ignore[arg-type]


def test_every_point_is_timed_and_written(tmp_path: Path) -> None:
    seen: list[tuple[int, int, float | None]] = []
    result = run(tmp_path, progress=lambda *row: seen.append(row))
    planned = make_plan("quick", find_room(open_device("cpu"), Shard(TINY)).limits)
    assert read_points(tmp_path / "points.csv") == result.points
    assert [point.order for point in result.points] == [point.order for point in planned]
    assert all(0 < point.t_min_s <= point.t_median_s <= point.t_p90_s for point in result.points)
    assert {point.op for point in result.points} == {"dense", "logits", "prefill", "decode", "mixed", "step"}
    assert {point.l2 for point in result.points} == {"warm"}
    assert seen[0] == (1, len(planned), None)
    assert seen[-1][:2] == (len(planned), len(planned))
    assert seen[-1][2] == 0
    meta = read_meta(tmp_path / "meta.json")
    assert meta == result.meta
    assert meta.model["name"] == "tiny"
    # What a build adds, such as `+cu130`, one of the two may lack.
    assert meta.software["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


@pytest.mark.parametrize("name", ["tiny-experts", "tiny-sliding"])
def test_experts_and_windows_are_timed_fitted_and_priced(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How wrong the form is, other tests look at.
    monkeypatch.setattr(coefficients, "NUM_STARTS", 1)
    model = load_model(name)
    result = run(tmp_path, model=model)
    counts = Counter((point.op, point.window) for point in result.points if point.split == "fit")
    # What a CPU takes while others use it is no law to fit.
    lawful = [replace(point, t_median_s=1e-5 + 1e-8 * point.size) for point in result.points]
    write_points(tmp_path / "lawful.csv", lawful)
    cost_file = fit_unreported(lawful, result.meta, tmp_path / "lawful.csv")
    form, windows = cost_file.form, {("decode", 32): 16, ("prefill", 32): 32}
    if model.experts is None:
        assert {key: count for key, count in counts.items() if key[1]} == windows
        assert form.sliding is not None
        assert (form.sliding.window, form.sliding.num_layers) == (32, 3)
    else:
        assert counts["experts", 0] == counts["dense", 0]
        assert form.experts is not None
        assert cost_file.assumptions[0].startswith("tokens were dealt out to experts evenly")
    assert cost_file.mismatch(model, ONE_GPU) == []


def test_all_reduces_of_two_processes(tmp_path: Path) -> None:
    """On a CPU by gloo; where the devices are missing a shard is timed alone, and that is said."""
    result = run(tmp_path, tensor_parallel=2)
    counts = Counter(point.op for point in result.points if point.split == "fit")
    assert counts["collectives"] == counts["dense"]
    assert result.meta.assumptions == [measuring.BY_TORCH]
    assert not can_all_reduce(open_device("cpu"), 1)
    if torch.cuda.device_count() < 2:
        assert not can_all_reduce(replace(open_device("cpu"), torch_device=torch.device("cuda")), 2)


def test_points_by_tokens_are_averages_over_layers() -> None:
    """`tiny-experts` has one layer with an MLP and two with experts: kinds of layers, and their shares."""
    shard = Shard(load_model("tiny-experts"))
    rig = find_room(open_device("cpu"), shard).rig(shard, open_device("cpu"))
    shares = {op: [share for share, _ in calls_of(rig, PlanPoint(op, tokens=4))] for op in BY_LAYER}
    assert shares == {"dense": [1 / 3, 2 / 3], "experts": [2 / 3]}
    one, other = Timing(3.0, 2.0, 4.0, 20, True), Timing(6.0, 5.0, 7.0, 20, True)
    assert Timing.summed([(0.5, one), (1.0, other)]) == Timing(7.5, 6.0, 9.0, 20, True)


def test_a_killed_run_resumes_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, timer=OnceTimer(limit=12))
    path = tmp_path / "points.csv"
    first = read_points(path)
    assert len(first) == 12
    with path.open("a") as file:
        file.write("decode,,4,64")
    with pytest.raises(CalibrationError, match=r":14: got 4 columns \(decode,,4,64\); allowed: 20"):
        read_points(path)
    timer = OnceTimer()
    result = run(tmp_path, timer=timer)
    assert result.points[:12] == first
    assert timer.num_timed == len(result.points) - 12
    assert [point.order for point in result.points] == list(range(len(result.points)))
    assert read_points(path) == result.points


def test_a_run_killed_before_its_first_row_starts_over(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, timer=OnceTimer(limit=0))
    path = tmp_path / "points.csv"
    path.write_text("op,chu")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, timer=OnceTimer(limit=2))
    assert [point.order for point in read_points(path)] == [0, 1]


def test_timings_of_something_else_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, timer=OnceTimer(limit=3))
    before = (tmp_path / "points.csv").read_bytes()
    with pytest.raises(
        CalibrationError,
        match="another parallelism: 1 tensor, 1 expert, 1 data, not 2 tensor",
    ):
        run(tmp_path, tensor_parallel=2)
    with pytest.raises(CalibrationError, match="holds timings of another model: tiny, not little; give"):
        run(tmp_path, model=TINY.model_copy(update={"name": "little"}))
    with pytest.raises(
        CalibrationError, match="another model: tiny with vocab_size 512, not tiny with vocab_size 600; give"
    ):
        run(tmp_path, model=TINY.model_copy(update={"vocab_size": 600}))
    with pytest.raises(CalibrationError, match=r"another attention backend: prefill: .*, not Counting; give"):
        run(tmp_path, backend="tests.lab.calibrate.test_measurement:Counting")
    with pytest.raises(
        CalibrationError,
        match=r"another plan: .* plan quick, seed 0, not .* plan full, seed 0; give another --out",
    ):
        run(tmp_path, plan="full")
    assert (tmp_path / "points.csv").read_bytes() == before


def test_unstable_and_drifting_timings_are_said_in_words() -> None:
    planned = make_plan("quick", find_room(open_device("cpu"), Shard(TINY)).limits)
    calm = [point.timed(1.0, num_runs=20, t_min_s=1.0, t_p90_s=1.0) for point in planned]
    assert warnings_of(calm, planned, GPU) == []
    unstable = [replace(calm[0], t_p90_s=3.0), *calm[1:]]
    (line,) = warnings_of(unstable, planned, GPU)
    assert line.startswith(f"1 of {len(calm)} timings are unstable")
    assert "3.0 times" in line
    slower = [replace(p, t_median_s=1.2, t_p90_s=1.2) if p.split == "repeat" else p for p in calm]
    (line,) = warnings_of(slower, planned, GPU)
    assert "repeats of the same point differ by 18% at the median" in line
    (line,) = warnings_of(calm[:-2], planned, GPU)
    assert line == f"2 of {len(calm)} points could not be timed: too little memory"


def test_threads_of_a_cpu_are_pointed_at() -> None:
    unstable = [Point("dense", 1.0, tokens=8, t_min_s=1.0, t_p90_s=2.0)]
    for threads, hint in (("4", True), ("1", False)):
        cpu = Device(torch.device("cpu"), "a CPU", 0, 0, {"threads": threads})
        (line,) = warnings_of(unstable, [], cpu)
        assert ("OMP_NUM_THREADS=1" in line) is hint


def test_a_folder_that_cannot_be_written_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CalibrationError, match="below: can't be written: Not a directory"):
        run(tmp_path / "file" / "below")


def test_triton_needs_a_gpu_or_its_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(CalibrationError, match=r"attention backend triton: needs .*; allowed: sdpa"):
        run(tmp_path / "new", backend="triton")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("device", "given", "gpu"),
    [("NVIDIA H200", None, "h200"), ("AMD EPYC", None, None), ("AMD EPYC", "l40s", "l40s")],
)
def test_a_device_is_the_gpu_that_it_calls_itself(
    device: str, given: str | None, gpu: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "open_device", lambda kind: replace(open_device(kind), name=device))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, gpu=given, timer=OnceTimer(limit=1))
    assert read_meta(tmp_path / "meta.json").gpu == gpu


def test_devices_that_are_not_there() -> None:
    with pytest.raises(CalibrationError, match="--device: unknown 'cudda'; did you mean 'cuda'"):
        open_device("cudda")
    if not torch.cuda.is_available():
        with pytest.raises(CalibrationError, match=r"--device cuda: no CUDA here: .*; allowed: --device cpu"):
            open_device("cuda")


def test_too_little_memory() -> None:
    cpu = replace(open_device("cpu"), free_bytes=GIB)
    with pytest.raises(CalibrationError) as caught:
        find_room(cpu, Shard(load_model("llama-3-8b")))
    (line,) = caught.value.problems
    assert line.startswith("model llama-3-8b needs 17.8 GiB for weights and a small KV cache; ")
    assert line.endswith("has 1.00 GiB free; allowed: a smaller model or a higher --tp")
    find_room(replace(cpu, free_bytes=64 * GIB), Shard(load_model("llama-3-8b")))


def test_a_large_gpu_times_everything_and_a_small_one_less() -> None:
    gpu = replace(open_device("cpu"), torch_device=torch.device("cuda"))
    shard = Shard(load_model("llama-3-8b"))
    h200 = find_room(replace(gpu, free_bytes=140 * GIB), shard).limits
    l4 = find_room(replace(gpu, free_bytes=22 * GIB), shard).limits
    assert (h200.max_kv_tokens, h200.max_context, h200.max_decodes) == (2**21, 131072, 512)
    assert h200.max_step_kv_tokens == 2**18
    assert 8192 <= l4.max_step_kv_tokens <= 32768
    assert l4.max_kv_tokens < h200.max_kv_tokens
