"""An experiment served live: the run folder of a simulation, arrivals by the clock, the same decisions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from click.testing import CliRunner

import cbsim
from cbsim.base.errors import ConfigError
from cbsim.cli.commands.live_command import live
from cbsim.core.building import KvPool
from cbsim.cost.cost_model import CostModel, StepShape
from cbsim.lab.kernels.kernel_choice import DecodeTuning, KernelChoice, PrefillChoice, save_choice
from cbsim.lab.kernels.sampling import SamplingParams
from cbsim.lab.live import run_live
from cbsim.lab.live.live_engine import LiveEngine, LiveWorld, any_step_s, live_engine
from cbsim.lab.live.live_run import fit_blocks, kernel_choice
from cbsim.lab.live.runner import ModelRunner
from cbsim.lab.live.tokens import TokenBook
from cbsim.observers.audience import Audience
from cbsim.results.run_log import RunLog
from cbsim.schedulers import SCHEDULERS, Means, Scheduler, SchedulerConfig
from cbsim.studies.core_log import stepwise_log
from cbsim.studies.experiment import Experiment
from cbsim.studies.setup import Setup
from cbsim.studies.simulation import step_through, stepwise
from cbsim.workload import Workload
from cbsim.workload.request import RequestState
from tests.lab.kernels.references import load_model
from tests.simulation import FixedCost, ListedWorkload

TINY = load_model("tiny", max_model_len=256)
ROWS = [
    {
        "request_id": f"r{i}",
        "arrival_s": 0.37 * i,
        "num_prompt_tokens": 9 + 7 * (i % 5),
        "num_output_tokens": 3 + i % 6,
    }
    for i in range(14)
]


class Ticks:
    """A clock that moves only when steps run or somebody sleeps: live runs come out the same every time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class TickingRunner(ModelRunner):
    """Computes for real; by the clock a step takes a second and a quarter for each request."""

    clock: Ticks

    def run(self, slices: Any, book: TokenBook) -> None:
        super().run(slices, book)
        self.clock.now += 1.0 + 0.25 * len(slices)


class Recorded(CostModel):
    """Gives back the step times of another run, in order."""

    def __init__(self, durations: list[float]) -> None:
        self.durations = iter(durations)

    def step_s(self, shape: StepShape) -> float:
        return next(self.durations)


def setup_of(
    values: dict[str, Any],
    num_blocks: int,
    workload: Workload | None = None,
    cost: CostModel | None = None,
    rung: type[Scheduler] | None = None,
) -> Setup:
    rung = rung or SCHEDULERS.get(values["type"])
    config = SCHEDULERS.get(values["type"]).Config(**values)
    return Setup(
        workload=workload or ListedWorkload(ROWS),
        cost=cost or FixedCost(),
        rung=rung,
        scheduler=config,
        pool=KvPool(num_blocks, 4, prefix_caching=True, has_identities=True),
        means=Means(num_blocks, 4, 4096, 4096e3, 256, 0),
        with_batches=True,
    )


def serve(setup: Setup, time_scale: float = 1.0) -> tuple[LiveEngine, RunLog]:
    clock = Ticks()
    runner = TickingRunner(TINY, torch.device("cpu"), num_blocks=setup.pool.num_blocks, block_size=4)
    runner.clock = clock
    book = TokenBook(TINY.vocab_size, 0, SamplingParams())
    made = {"runner": runner, "book": book, "clock": clock, "audience": Audience(())}
    world = stepwise(setup, step_s=any_step_s, make_replica=partial(LiveEngine, **made))
    engine = live_engine(world)
    LiveWorld(setup.workload, engine, time_scale=time_scale, sleep=clock.sleep).run()
    engine.check_integrity()
    return engine, stepwise_log(world, setup)


def columns(table: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: np.asarray(values).tolist() for name, values in table.items()}


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("type", "num_blocks"),
    [
        ("vllm", 100),
        ("vllm", 13),
        ("preemptive", 13),
        ("chunked_prefill", 40),
        ("continuous", 40),
        ("static", 200),
    ],
)
def test_decisions_are_those_of_the_simulation_with_the_same_step_times(
    type: str, num_blocks: int, async_scheduling: bool
) -> None:
    values = {"type": type, "async_scheduling": async_scheduling}
    settings = {"static": {"max_model_len": 48}, "continuous": {"max_tokens_per_step": 48}}
    values |= settings.get(type, {"max_tokens_per_step": 16})
    _, live_log = serve(setup_of(values, num_blocks))
    steps = live_log.steps
    assert len(steps["step"]) > 12
    setup = setup_of(values, num_blocks, cost=Recorded(steps["duration_s"].tolist()))
    world = stepwise(setup)
    step_through(world, setup)
    simulated = stepwise_log(world, setup)
    assert columns(simulated.steps) == columns(steps)
    assert simulated.batches is not None
    assert live_log.batches is not None
    assert columns(simulated.batches) == columns(live_log.batches)


def test_arrivals_come_by_the_clock_and_faster_by_the_time_scale() -> None:
    late = [{**row, "arrival_s": 1000.0 * place} for place, row in enumerate(ROWS[:4])]
    values = {"type": "vllm", "async_scheduling": False}
    _, log = serve(setup_of(values, 100, ListedWorkload(late)), time_scale=10.0)
    table = log.requests
    assert table["arrival_s"].tolist() == [0.0, 100.0, 200.0, 300.0]
    waited = table["first_scheduled_at_s"] - table["arrival_s"]
    assert ((waited >= 0) & (waited <= 0.05)).all()


def test_closed_loop_clients_wait_for_their_answers() -> None:
    clients = ListedWorkload(ROWS, concurrency=2, think_time_s=0.5)
    _, log = serve(setup_of({"type": "vllm"}, 100, clients))
    arrived, finished = log.requests["arrival_s"], log.requests["finished_at_s"]
    assert not np.isnan(finished).any()
    assert arrived[:2].tolist() == [0.0, 0.0]
    assert arrived[2:].tolist() == sorted((finished + 0.5).tolist())[: len(arrived) - 2]
    assert log.steps["num_running"].max() == 2


def leave_it_empty(self: Any, step: Any) -> None:
    """Never does anything."""


class Idle(Scheduler):
    """Leaves everybody waiting."""

    Config = SchedulerConfig
    decide = leave_it_empty


def test_a_scheduler_that_leaves_requests_waiting_ends_the_run() -> None:
    engine, log = serve(setup_of({"type": "vllm"}, 8, rung=Idle))
    assert engine.num_outstanding == len(ROWS)
    assert (log.requests["state"] == RequestState.UNFINISHED).all()


def experiment(**changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "name": "small",
        "model": {**load_model("tiny").model_dump()},
        "gpu": "h200",
        "scheduler": {"type": "vllm", "max_tokens_per_step": 64},
        "kv_cache": {"num_blocks": 64},
        "cost_model": {"type": "roofline"},
    }
    return {**settings, **changes}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "requests.csv"
    lines = ["request_id,arrival_s,num_prompt_tokens,num_output_tokens"]
    lines += [f"r{i},{0.002 * i},{9 + 7 * (i % 5)},{3 + i % 6}" for i in range(12)]
    path.write_text("\n".join(lines) + "\n")
    return path


def load(trace: Path, **changes: Any) -> Experiment:
    return Experiment.from_mapping(
        experiment(workload={"type": "trace", "path": str(trace)}, **changes), folder=trace.parent
    )


def test_a_live_run_has_the_folder_of_a_simulated_one(trace: Path, tmp_path: Path) -> None:
    result = run_live(load(trace, output={"batches": True}), sampling=SamplingParams(1.0, top_k=20))
    assert result.summary["num_finished"] == 12
    assert result.summary["output_token_throughput_per_s"] > 0
    assert any(note.startswith("live on this machine's cpu") for note in result.summary["notes"])
    assert (result.requests["ttft_s"] > 0).all()
    starts, ends = result.steps["start_s"], result.steps["start_s"] + result.steps["duration_s"]
    assert (starts.to_numpy()[1:] >= ends.to_numpy()[:-1] - 1e-9).all()
    result.save(tmp_path / "run")
    assert (tmp_path / "run" / "steps.parquet").is_file()
    simulated = cbsim.run(experiment(workload={"type": "trace", "path": str(trace)}))
    # Latencies are split by pricing steps again, for which nobody has prices here.
    split = {"transfer_s", "waiting_for"}
    assert list(result.steps.columns) == [name for name in simulated.steps if name not in split]
    # Nor has what was measured an interval that it is likely to lie in.
    unpriced = {"parts", "interval"}
    assert list(result.summary) == [name for name in simulated.summary if name not in unpriced]


@pytest.mark.parametrize("scheduler", ["vllm", "continuous"])
@pytest.mark.parametrize("name", ["tiny-experts", "tiny-sliding"])
def test_experts_and_windows_are_served_as_they_are_simulated(name: str, scheduler: str, trace: Path) -> None:
    """`tiny-sliding` has its layers in four groups with `vllm`, and in one where blocks are kept ahead."""
    changes = {"model": load_model(name).model_dump(), "scheduler": {"type": scheduler}}
    live = run_live(load(trace, **changes, kv_cache={"num_blocks": 64}))
    assert live.summary["num_finished"] == 12
    assert not any("priced" in note for note in live.summary["notes"])
    simulated = cbsim.run(load(trace, **changes, kv_cache={"num_blocks": 64}))
    assert live.summary["kv_cache_tokens"] == simulated.summary["kv_cache_tokens"]


def test_what_a_live_run_of_layers_with_windows_cannot_do(trace: Path) -> None:
    sliding = {"model": load_model("tiny-sliding").model_dump()}
    swaps = {"type": "preemptive", "preemption": "swap"}
    groups = {"num_blocks": 64, "groups": [{}, {"kind": "sliding", "window": 8}]}
    with pytest.raises(ConfigError) as caught:
        run_live(load(trace, **sliding, scheduler=swaps, kv_cache=groups))
    assert caught.value.problems == (
        "kv_cache.groups: got some; a live run has those of the model",
        "scheduler.preemption: got swap; a live run computes layers with windows again",
    )


def test_blocks_of_groups_are_as_large_as_one_group(trace: Path) -> None:
    sliding = {"model": load_model("tiny-sliding").model_dump()}
    num_blocks, _ = fit_blocks(load(trace, **sliding, kv_cache={}), torch.device("cpu"))
    # 2 GiB of blocks of 16 tokens in one layer of each group: (keys, values) x 2 heads x 32 x 4 bytes.
    assert num_blocks == 2 * 2**30 // (16 * 512)


def test_a_kv_cache_of_a_larger_gpu_shrinks_to_what_is_here(trace: Path) -> None:
    num_blocks, (note,) = fit_blocks(load(trace, kv_cache={}), torch.device("cpu"))
    # 2 GiB of blocks of 16 tokens, each 2 layers x (keys, values) x 2 heads x 32 x 4 bytes.
    assert num_blocks == 2 * 2**30 // (16 * 1024)
    assert note.startswith("KV cache of 131072 blocks, what fits here; h200 would have ")
    assert fit_blocks(load(trace), torch.device("cpu")) == (64, [])


def test_the_kernels_that_a_profile_was_timed_with_serve(trace: Path, tmp_path: Path) -> None:
    assert kernel_choice(load(trace)) is None
    assert kernel_choice(load(trace, cost_model={"type": "profile", "profile": "h200/llama-3-8b"})) is None
    choice = KernelChoice(DecodeTuning(tile=32), PrefillChoice(((64, 0, "sdpa again"),)))
    (tmp_path / "cost.json").touch()
    save_choice(choice, tmp_path / "kernels.json")
    priced = load(trace, cost_model={"type": "profile", "profile": str(tmp_path)})
    assert kernel_choice(priced) == choice
    how = {"num_blocks": 4, "block_size": 4, "backend": "calibration.fake_card:FakeBackend"}
    runner = ModelRunner(TINY, torch.device("cpu"), choice=choice, **how)  # type: ignore[arg-type]
    assert runner.decoder.backend.choice == choice


def test_what_only_a_simulation_can_do(trace: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_live(load(trace, replicas={"count": 2}, stop_at_s=1.0), time_scale=0.0)
    assert caught.value.problems == (
        "replicas.count: got 2; a live run has one replica",
        "stop_at_s: a live run goes on until every request has ended",
        "time_scale: got 0.0; allowed: more than 0",
    )
    with pytest.raises(ConfigError, match=r"kv_cache: 100000000 blocks take .* fit on this device"):
        run_live(load(trace, kv_cache={"num_blocks": 10**8}))


def test_a_request_longer_than_the_model_was_made_for_is_served(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("request_id,arrival_s,num_prompt_tokens,num_output_tokens\nlong,0,2045,9\n")
    result = run_live(load(path, kv_cache={"num_blocks": 200}))
    assert result.summary["num_finished"] == 1


def test_the_command(trace: Path, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    settings = experiment(workload={"type": "trace", "path": str(trace)})
    config.write_text(json.dumps(settings))
    words = [str(config), "--out", str(tmp_path / "out"), "--temperature", "0.8", "--set", "seed=3"]
    ran = CliRunner().invoke(live, words, catch_exceptions=False)
    assert ran.exit_code == 0
    assert ran.output.startswith("12 requests in ")
    assert (tmp_path / "out" / "summary.json").is_file()


def test_the_command_serves_one_run_and_no_sweep(trace: Path, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(json.dumps(experiment(workload={"type": "trace", "path": str(trace)})))
    words = [str(config), "--out", str(tmp_path / "out"), "--set", "sweep.seed=[1, 2]"]
    ran = CliRunner().invoke(live, words)
    assert isinstance(ran.exception, ConfigError)
    told = f"{config}: has a sweep over seed; allowed: one run, as with --set seed=1"
    assert ran.exception.problems == (told,)
    assert not (tmp_path / "out").exists()
