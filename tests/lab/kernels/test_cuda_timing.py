"""The timer of GPUs on a GPU of known times: what is hidden, what is taken off, and errors."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from cbsim.lab.kernels import graph_capture, timing
from cbsim.lab.kernels.graph_capture import CaptureFailed, captured
from cbsim.lab.kernels.timing import MAX_GRAPH_CALLS, Call, CudaTimer, Device, DeviceLost
from cbsim.lab.live import runner
from cbsim.lab.live.runner import ModelRunner
from tests.lab.kernels.fake_cuda import GRAPH_START_S, FakeCuda, WithCuda, WithTensors
from tests.lab.kernels.references import load_model

CPU = torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    for module in (timing, graph_capture):
        monkeypatch.setattr(module, "torch", WithTensors(fake))
    monkeypatch.setattr(timing, "perf_counter", lambda: fake.host_s)
    return fake


@pytest.fixture
def timer(cuda: FakeCuda) -> CudaTimer:
    return CudaTimer(Device(CPU, "a GPU", 0, 60 * 2**20, {}))


def calls(cuda: FakeCuda, *kernels_s: float) -> timing.MakeCalls:
    def call() -> None:
        for seconds in kernels_s:
            cuda.kernel(seconds)

    def make(count: int) -> list[Call]:
        return [call] * count

    return make


@pytest.mark.parametrize("kernels_s", [(2e-6,), (3e-6, 4e-6), (5e-4,), (3e-3,)])
def test_neither_launches_nor_the_start_of_a_graph_are_in_a_timing(
    cuda: FakeCuda, timer: CudaTimer, kernels_s: tuple[float, ...]
) -> None:
    """The host needs twice as long to launch a graph as the flush lasts."""
    result = timer.time(calls(cuda, *kernels_s))
    assert result.median_s == pytest.approx(sum(kernels_s), rel=1e-6)
    assert (result.graph, result.is_cold) == (True, True)
    assert timer.graph_start_s == pytest.approx(GRAPH_START_S)


def test_short_calls_share_a_graph(cuda: FakeCuda, timer: CudaTimer) -> None:
    made: list[int] = []

    def make(count: int) -> list[Call]:
        made.append(count)
        return calls(cuda, 2e-6)(count)

    timer.time(make)
    assert made == [1, MAX_GRAPH_CALLS]
    num_graphs = cuda.num_graphs
    timer.time(make)
    assert cuda.num_graphs == num_graphs + 1, "what a graph's start takes is measured once"


def test_what_cannot_be_captured_is_launched_behind_a_wait(cuda: FakeCuda, timer: CudaTimer) -> None:
    """Kernels of 2 us that take the host 5 us each to launch."""
    result = timer.time(calls(cuda, 2e-6), as_graph=False)
    assert result.median_s == pytest.approx(2e-6)
    assert not result.graph


def test_a_capture_that_fails_leaves_the_stream_as_it_was(cuda: FakeCuda, timer: CudaTimer) -> None:
    assert timer.time(calls(cuda, 1e-6)).graph
    cuda.fails = RuntimeError("operation not permitted when stream is capturing\nC++ frames")
    with pytest.raises(CaptureFailed, match=r"^RuntimeError: .* not permitted when stream is capturing$"):
        timer.time(calls(cuda, 1e-6))
    assert cuda.current_stream().name == "the usual stream"
    for error, is_of_memory in ((torch.OutOfMemoryError("8 GiB"), True), (ValueError("odd"), False)):
        cuda.fails = RuntimeError("operation failed due to a previous error during capture")

        def run(error: Exception = error) -> None:
            raise error

        with pytest.raises(CaptureFailed) as caught:
            captured(run)
        assert caught.value.is_of_memory is is_of_memory


def test_memory_that_runs_out(cuda: FakeCuda, timer: CudaTimer) -> None:
    def make(count: int) -> list[Call]:
        raise torch.OutOfMemoryError("8 GiB")

    with pytest.raises(MemoryError, match="8 GiB"):
        timer.time(make)


def test_a_device_that_is_lost(cuda: FakeCuda, timer: CudaTimer) -> None:
    def make(count: int) -> list[Call]:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    with pytest.raises(DeviceLost, match="illegal memory access"):
        timer.time(make)
    timer.check()
    cuda.error = RuntimeError("an illegal memory access was encountered")
    with pytest.raises(DeviceLost, match="illegal memory access"):
        timer.check()


def test_live_decodes_go_on_without_graphs_and_say_why(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where graphs are captured, none of them holds logits: the LM head is outside."""
    monkeypatch.setattr(runner, "torch", WithCuda(cuda))
    model = load_model("tiny", max_model_len=64)
    for fails, notes in ((None, 0), (RuntimeError("not permitted"), 1)):
        cuda.fails, cuda.num_graphs = fails, 0
        served = ModelRunner(model, CPU, num_blocks=8, block_size=16, graph_decodes=4)
        graphs = served.graphs
        assert graphs is not None
        graphs._device = torch.device("cuda")
        monkeypatch.setattr(graphs, "_spare_batch", spare_batch_of(graphs))
        served.warm_up()
        assert len(served.notes) == notes
        assert (served.graphs is None) is (fails is not None)
        if fails is None:
            assert cuda.num_graphs == 3
            _, compute = graphs._captured[4]
            assert compute().shape == (4, model.hidden_size)
        else:
            assert served.notes[0].endswith("(RuntimeError: not permitted)")


def spare_batch_of(graphs: runner.DecodeGraphs) -> object:
    """Its batches on this machine, although its graphs are the fake GPU's."""
    make = runner.DecodeGraphs._spare_batch

    def spare_batch(size: int) -> object:
        device, graphs._device = graphs._device, CPU
        batch = make(graphs, size)
        graphs._device = device
        return batch

    return spare_batch
