"""Points that fail, captures that fail, devices that are lost, time that runs out: what is left and said."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from calibration.fake_card import FakeTimer, fake_device, law_s
from cbsim.base.errors import CalibrationError
from cbsim.lab.calibrate import measurement as measuring
from cbsim.lab.calibrate.left_out import LeftOut, append_left_out, read_left_out
from cbsim.lab.calibrate.measurement import Measurement, ProcessSpent, measure
from cbsim.lab.calibrate.timing_plan import PlanPoint, make_plan
from cbsim.lab.kernels import graph_capture, timing
from cbsim.lab.kernels.graph_capture import CaptureFailed
from cbsim.lab.kernels.kernel_choice import read_choice
from cbsim.lab.kernels.timing import CudaTimer, DeviceLost, MakeCalls, Timing
from tests.lab.kernels.fake_cuda import FakeCuda, WithTensors
from tests.lab.kernels.references import load_model

TINY = load_model("tiny")
WRONG = RuntimeError("no kernel image is available\nand a trace of it")


class Trouble(FakeTimer):
    """Raises an error at some points, runs nothing, and is lost after an error if asked."""

    def __init__(
        self, errors: dict[int, BaseException], *, is_lost: bool = False, eager: bool = True
    ) -> None:
        super().__init__(runs=False)
        self.errors, self.is_lost, self.eager = errors, is_lost, eager

    def _time(self, make_calls: MakeCalls, what: object, as_graph: bool) -> Timing:
        assert isinstance(what, PlanPoint)
        error = self.errors.get(what.order)
        if error is not None and (as_graph or not isinstance(error, CaptureFailed)):
            raise error
        return super()._time(make_calls, what, as_graph)

    def check(self) -> None:
        if self.is_lost:
            raise DeviceLost("an illegal memory access was encountered")


def run(out: Path, errors: dict[int, BaseException], **how: bool) -> Measurement:
    return measure(TINY, out, device=fake_device(), plan="quick", timer=Trouble(errors, **how))


def told(out: Path) -> list[LeftOut]:
    return read_left_out(out / "left_out.csv")


def test_a_point_that_fails_is_left_out_and_not_tried_again(tmp_path: Path) -> None:
    result = run(tmp_path, {3: WRONG, 5: MemoryError(), 7: torch.OutOfMemoryError()})
    orders = {point.order for point in result.points}
    assert {3, 5, 7} & orders == set()
    (row,) = told(tmp_path)
    assert (row.order, row.trouble, row.error) == (3, "failed", "RuntimeError: no kernel image is available")
    failed, lacking = result.meta.warnings
    assert failed.startswith(f"1 of {len(orders) + 3} points failed and were left out (left_out.csv has them")
    assert failed.endswith("no kernel image is available")
    assert lacking == f"2 of {len(orders) + 3} points could not be timed: too little memory"
    # The next run times what there was no memory for, and stays away from what failed.
    again = run(tmp_path, {3: AssertionError("tried again")})
    assert {point.order for point in again.points} == orders | {5, 7}
    assert len(again.meta.warnings) == 1


def test_a_device_that_is_lost_ends_the_process_and_the_next_goes_on(tmp_path: Path) -> None:
    accelerator = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    for errors, how in (({4: accelerator}, False), ({9: WRONG}, True)):
        with pytest.raises(ProcessSpent, match=r"made the device fail: .* goes on from here") as caught:
            run(tmp_path, errors, is_lost=how)
        assert str(caught.value).startswith(f"point {next(iter(errors))} (")
    assert [row.order for row in told(tmp_path)] == [4, 9]
    orders = {point.order for point in run(tmp_path, {}).points}
    assert orders == set(range(max(orders) + 1)) - {4, 9}


def test_a_capture_that_fails_ends_the_process_and_its_op_goes_without_graphs(tmp_path: Path) -> None:
    """Nothing is timed behind a failed capture, of which torch would keep a part."""
    errors: dict[int, BaseException] = {}
    result = run(tmp_path / "plan", errors)
    chunk = next(point.order for point in result.points if point.op == "prefill")
    errors[chunk] = CaptureFailed(RuntimeError("operation not permitted when stream is capturing"))
    with pytest.raises(ProcessSpent, match="can't be captured into a CUDA graph: RuntimeError: operation"):
        run(tmp_path, errors)
    assert len(measuring.read_points(tmp_path / "points.csv")) == chunk
    result = run(tmp_path, errors)
    by_graph = {point.op: point.graph for point in result.points}
    assert by_graph.pop("prefill") is False
    assert set(by_graph.values()) == {True}
    (line,) = result.meta.warnings
    assert line.startswith("prefill was timed without CUDA graphs, launch times included: ")


def test_memory_that_runs_out_in_a_capture_is_not_the_ops_fault(tmp_path: Path) -> None:
    failed = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    failed.__context__ = torch.OutOfMemoryError("tried to allocate 8 GiB")
    with pytest.raises(ProcessSpent):
        run(tmp_path, {2: CaptureFailed(failed)})
    (row,) = told(tmp_path)
    assert row.trouble == "failed"
    result = run(tmp_path, {})
    assert {point.graph for point in result.points} == {True}


@pytest.mark.parametrize("reached", [0, 6])
def test_what_is_there_when_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: int) -> None:
    now = [0.0]
    monkeypatch.setattr(measuring.time, "monotonic", lambda: now[0])

    class Clock(FakeTimer):
        def _time(self, make_calls: MakeCalls, what: object, as_graph: bool) -> Timing:
            now[0] += 1.0
            return super()._time(make_calls, what, as_graph)

    timer = Clock(runs=False)
    result = measure(TINY, tmp_path, device=fake_device(), plan="quick", timer=timer, until_s=float(reached))
    assert len(result.points) == reached
    (line,) = result.meta.warnings
    assert line.endswith("points were not reached: time was up")
    whole = measure(TINY, tmp_path, device=fake_device(), plan="quick", timer=timer)
    assert whole.points[:reached] == result.points
    assert whole.meta.warnings == []
    assert line.startswith(f"{len(whole.points) - reached} of {len(whole.points)} points")


FAKE = "calibration.fake_card:FakeBackend"


def test_a_kernel_that_brings_the_process_down_is_not_tried_again(tmp_path: Path) -> None:
    """Kernels are chosen before the plan; what was chosen is taken by a resumed run as it is."""
    seen: list[str] = []

    class Choosy(FakeTimer):
        def _time(self, make_calls: MakeCalls, what: object, as_graph: bool) -> Timing:
            assert isinstance(what, PlanPoint)
            (call, *_) = make_calls(1)
            backend = call.args[0] if what.op == "prefill" else None  # type: ignore[attr-defined]
            if backend is not None and backend.choice.prefill.timed:
                name = backend.choice.prefill.timed[0][2]
                seen.append(name)
                if name == "sdpa again" and len(seen) > 3:
                    raise CaptureFailed(RuntimeError("not permitted"))
            return super()._time(make_calls, what, as_graph)

    def measured() -> Measurement:
        how = {"device": fake_device(), "plan": "quick", "backend": FAKE, "timer": Choosy(runs=False)}
        return measure(TINY, tmp_path, **how)  # type: ignore[arg-type]

    with pytest.raises(ProcessSpent, match=r"kernel 'sdpa again' can't be timed: RuntimeError: .* goes on"):
        measured()
    assert not (tmp_path / "kernels.json").exists()
    result = measured()
    choice = read_choice(tmp_path / "kernels.json")
    assert choice is not None
    assert {name for _, _, name in choice.prefill.timed} == {"sdpa"}
    assert choice.told() in result.meta.software["attention"]
    (line,) = result.meta.warnings
    assert line.startswith("kernel 'sdpa again' was not tried: it brought a process down (RuntimeError")
    written = (tmp_path / "kernels.json").read_bytes()
    assert measured().points == result.points
    assert (tmp_path / "kernels.json").read_bytes() == written


def test_a_plan_by_graphs_on_a_gpu_of_known_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every point by the timer of GPUs, until a capture fails; the next process goes on."""
    cuda = FakeCuda()
    for module in (timing, graph_capture):
        monkeypatch.setattr(module, "torch", WithTensors(cuda))
    monkeypatch.setattr(timing, "perf_counter", lambda: cuda.host_s)

    cuda.tick_s = 1e-6
    monkeypatch.setattr(measuring, "make_plan", lambda *given, **how: make_plan(*given, **how)[:30])
    fails_at, synchronize = [20], cuda.synchronize

    def until_it_fails(device: object = None) -> None:
        synchronize()
        is_over = cuda.num_graphs >= fails_at[0]
        cuda.fails = RuntimeError("operation not permitted when stream is capturing") if is_over else None

    monkeypatch.setattr(cuda, "synchronize", until_it_fails)

    def measured() -> Measurement:
        timer = CudaTimer(fake_device())
        timer.max_calls, timer.num_runs = 1, 1
        return measure(TINY, tmp_path, device=fake_device(), plan="quick", timer=timer)

    with pytest.raises(ProcessSpent, match="can't be captured into a CUDA graph: RuntimeError: operation"):
        measured()
    # Two of the graphs told what the start of one takes.
    assert len(measuring.read_points(tmp_path / "points.csv")) == 20 - 2
    (row,) = told(tmp_path)
    fails_at[0] = 10**9
    result = measured()
    assert {point.l2 for point in result.points} == {"cold"}
    assert {point.graph for point in result.points if point.op != row.op} == {True}
    later = [point for point in result.points if point.op == row.op and point.order >= row.order]
    assert {point.graph for point in later} == {False}


def test_a_point_that_processes_die_of_is_left_out(tmp_path: Path) -> None:
    """One death may be a kill from outside, which is not the point's fault; two in a row are."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, {6: KeyboardInterrupt()})
    assert not (tmp_path / ".under-way").exists()
    (tmp_path / ".under-way").write_text("6 0")

    class Dying(FakeTimer):
        def _time(self, make_calls: MakeCalls, what: object, as_graph: bool) -> Timing:
            assert (tmp_path / ".under-way").read_text() == "6 1"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(TINY, tmp_path, device=fake_device(), plan="quick", timer=Dying(runs=False))
    (tmp_path / ".under-way").write_text("6 1")
    result = run(tmp_path, {})
    assert 6 not in {point.order for point in result.points}
    (row,) = told(tmp_path)
    assert (row.order, row.error) == (6, "the process died while it was timed")


def test_the_file_itself(tmp_path: Path) -> None:
    path = tmp_path / "left_out.csv"
    assert read_left_out(path) == []
    rows = [LeftOut(1, "decode", 0, "failed", 'a, "b"'), LeftOut(2, "prefill", 32, "no graph", "c")]
    for row in rows:
        append_left_out(path, row)
    with path.open("a") as file:
        file.write("3,dec")
    assert read_left_out(path) == rows
    path.write_text("something else\n")
    with pytest.raises(CalibrationError, match=r"left_out.csv: not a list of points left out; remove it"):
        read_left_out(path)


def test_the_law_of_the_fake_card_is_additive() -> None:
    chunk, decodes = ((64, 100),), (50, 60)
    parts = PlanPoint("prefill", chunk), PlanPoint("decode", contexts=decodes)
    assert law_s(PlanPoint("mixed", chunk, decodes)) == pytest.approx(sum(map(law_s, parts)))
    start = time.perf_counter()
    assert FakeTimer().time(lambda count: [lambda: None] * count).median_s == pytest.approx(1e-5, rel=0.02)
    assert time.perf_counter() - start < 1
