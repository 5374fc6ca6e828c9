"""Runs with a third party's scheduler that errs, and what the notes say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import cbsim
from cbsim.core import building
from cbsim.studies.experiment import Experiment

MODULE = '''
from cbsim.core.verbs import admit, schedule
from cbsim.core.waiting_queue import head_of_queue
from cbsim.schedulers import Scheduler, SchedulerConfig
from cbsim.schedulers.vllm import VllmScheduler

class Greedy(Scheduler):
    """Schedules more than there is."""
    Config = SchedulerConfig

    def decide(self, step):
        while self.own.num_waiting:
            request = self.requests[head_of_queue(self, step.now)]
            admit(self, step, request)
            schedule(self, step, request, 5000)

class Broken(Scheduler):
    """Raises."""
    Config = SchedulerConfig

    def decide(self, step):
        return 1 / 0

class Late(VllmScheduler):
    """Raises at the third step of the second replica."""

    def pad(self, step):
        if step.number == 2 and self.own.replica == 1:
            1 / 0
'''


def experiment(**settings: Any) -> dict[str, Any]:
    return {
        "name": "erring",
        "workload": {"type": "trace", "path": "azure-like.csv", "limit": 3},
        "scheduler": {"type": "vllm", "max_tokens_per_step": 2048, "max_num_seqs": 256},
        "cost_model": {"type": "constant", "step_s": 1.0},
        **settings,
    }


@pytest.fixture
def module_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "erring_schedulers.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("module_here")
@pytest.mark.parametrize("observers", [[], ["metrics"]])
def test_a_scheduler_that_schedules_too_much_is_told_at_once(observers: list[str]) -> None:
    with pytest.raises(cbsim.PluginError, match=r"Greedy schedules 5000 tokens of request r0, which has"):
        cbsim.run(experiment(scheduler={"type": "erring_schedulers:Greedy"}, observers=observers))


@pytest.mark.usefixtures("module_here")
def test_a_scheduler_that_raises_is_named_with_the_instant() -> None:
    message = "scheduler Broken failed at 0.0635078 s: ZeroDivisionError: division by zero"
    with pytest.raises(cbsim.PluginError, match=message):
        cbsim.run(experiment(scheduler={"type": "erring_schedulers:Broken"}))


@pytest.mark.usefixtures("module_here")
@pytest.mark.parametrize("observers", [[], ["metrics"], ["memory"]])
@pytest.mark.parametrize("concurrency", [None, 4])
@pytest.mark.parametrize("router", ["round_robin", "least_kv"])
def test_the_instant_is_that_of_the_replica_that_failed(
    router: str, concurrency: int | None, observers: list[str]
) -> None:
    """Another may have come further, and the next request may be known already."""
    workload = {"type": "trace", "path": "azure-like.csv", "limit": 12, "concurrency": concurrency}
    settings = experiment(workload=workload, observers=observers, replicas={"count": 2, "router": router})
    steps = cbsim.run(settings).steps
    (failed_at_s,) = steps[(steps["replica"] == 1) & (steps["step"] == 2)]["scheduled_at_s"]
    assert 0.5 < failed_at_s < steps["start_s"].max()
    message = f"scheduler Late failed at {failed_at_s:.6g} s: ZeroDivisionError"
    with pytest.raises(cbsim.PluginError, match=re.escape(message)):
        cbsim.run({**settings, "scheduler": {"type": "erring_schedulers:Late"}})


def test_a_roofline_beside_a_measured_profile_is_noted() -> None:
    advised, estimated, how_far = cbsim.run(experiment(cost_model={"type": "roofline"})).notes
    assert how_far.startswith("step times are estimated: within ")
    assert estimated.startswith("costs are estimated by a roofline, nothing was measured: on a100-80g, b200")
    assert advised.startswith("costs are a roofline's, though h200/llama-3-8b is measured")
    assert cbsim.run(experiment()).notes == []
    fp8 = {"model.weight_dtype": "fp8", "parallel.data": 1}
    quantized = cbsim.run(experiment(cost_model={"type": "roofline"}), overrides=fp8).notes
    assert not any("is measured" in note for note in quantized), "a profile is only advised where it fits"


def test_a_run_that_stops_before_the_first_arrival_says_so() -> None:
    workload = {"type": "trace", "path": "late.csv"}
    Path("late.csv").write_text(
        "request_id,arrival_s,num_prompt_tokens,num_output_tokens\na,100.0,5,5\n", encoding="utf-8"
    )
    result = cbsim.run(experiment(workload=workload, stop_at_s=10.0))
    assert result.summary["num_requests"] == 0
    assert result.notes == ["no request arrives before stop_at_s, 10 s"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_context_that_can_never_fit_is_told_and_the_rest_is_served() -> None:
    """0.72 of an RTX 4090 hold 6,928 tokens; Llama-3-8B was made for 8,192."""
    mapping = {
        "workload": {
            "type": "synthetic",
            "num_requests": 4,
            "arrivals": {"type": "constant", "rate_per_s": 1.0},
            "prompt_tokens": {"type": "fixed", "value": 100},
            "output_tokens": {"type": "fixed", "value": 5},
        },
        "gpu": "rtx4090",
        "scheduler": "vllm",
        "kv_cache": {"gpu_memory_utilization": 0.72},
        "cost_model": {"type": "constant", "step_s": 0.01},
    }
    result = cbsim.run(mapping)
    assert result.summary["num_finished"] == 4
    assert result.summary["kv_cache_tokens"] == {"default": 6928}
    assert result.summary["longest_context_tokens"] == 8192
    assert result.summary["longest_request_tokens"] == 105
    (note,) = (each for each in result.notes if "vLLM would not start" in each)
    assert "up to 6,928 tokens fit" in note


def kv_tokens(**settings: Any) -> int:
    workload = {"type": "trace", "path": "azure-like.csv", "limit": 1}
    return Experiment.from_mapping(
        {"workload": workload, "scheduler": "vllm", **settings}
    ).kv_capacity.num_tokens


def test_more_gpus_than_kv_heads_hold_copies_of_them() -> None:
    """Four KV heads on eight GPUs: each GPU holds one, as on four, beside half of the weights."""
    model = {"name": "qwen2.5-7b", "num_heads": 32}
    on_four, on_eight = (kv_tokens(model=model, gpu="h100", parallel={"tensor": n}) for n in (4, 8))
    assert on_four == pytest.approx(4.95e6, rel=0.01)
    assert on_eight == pytest.approx(5.1e6, rel=0.01)


def test_fp8_weights_leave_room_as_vllm_logged() -> None:
    """GPU KV cache size: 174,336 tokens, llama-3-70b with FP8 weights and bf16 KV on an H200."""
    model = {"name": "llama-3-70b", "weight_dtype": "fp8"}
    logged = kv_tokens(model=model, gpu="h200", scheduler="vllm-0.15")
    assert logged == pytest.approx(174_336, rel=0.01)
    in_fp8 = kv_tokens(model=model, gpu="h200", scheduler="vllm-0.15", kv_cache={"dtype": "fp8"})
    assert in_fp8 == pytest.approx(2 * logged, rel=0.01)


@pytest.mark.parametrize("gpu", ["b200", "mi300x"])
def test_what_nobody_measured_is_told(gpu: str) -> None:
    workload = {"type": "trace", "path": "azure-like.csv", "limit": 3}
    notes = cbsim.run({"gpu": gpu, "workload": workload, "scheduler": "vllm"}).summary["notes"]
    assert any("estimated by a roofline, nothing was measured" in note for note in notes)


def test_more_kv_blocks_than_there_is_memory_for_are_told_with_their_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = experiment(kv_cache={"prefix_caching": True, "num_blocks": 10**6}, replicas={"count": 300})
    with pytest.raises(cbsim.ConfigError, match=r"num_blocks: got 1,000,000 in 300 replicas .* at most"):
        Experiment.from_mapping(many)
    pool = {"name": "a", "count": 150}
    of_pools = many | {"replicas": {}, "cluster": {"pools": [pool, pool | {"name": "b"}]}}
    with pytest.raises(cbsim.ConfigError, match=r"kv_cache.num_blocks: got 1,000,000 in 300 replicas"):
        Experiment.from_mapping(of_pools)
    counted = many | {"kv_cache": {"num_blocks": 10**6}}
    Experiment.from_mapping(counted)

    def refuse(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(building, "_new_pool", refuse)
    with pytest.raises(cbsim.ConfigError, match=r"1,000,000, and 300 replicas .* more memory than there is"):
        cbsim.run(counted)


def test_any_number_of_loads_may_fail_one_after_the_other_at_one_instant(tmp_path: Path) -> None:
    columns = "arrival_s,num_prompt_tokens,num_output_tokens,remote_prefill,load_s,fail_from_block\n"
    (tmp_path / "trace.csv").write_text(columns + "0,20,3,1,0,0\n" * 500)
    result = cbsim.run(
        experiment(
            workload={"type": "trace", "path": str(tmp_path / "trace.csv")},
            scheduler={"type": "vllm", "max_num_seqs": 4, "connector": {}},
            kv_cache={"num_blocks": 100},
            engine="interpreted",
        )
    )
    assert result.summary["num_failed"] == 500
    assert len(result.events) == 4 * 500


def test_more_requests_than_a_run_can_hold_are_told_before_it() -> None:
    generator = {
        "type": "synthetic",
        "num_requests": 10**9,
        "arrivals": {"type": "constant", "rate_per_s": 10},
        "prompt_tokens": {"type": "fixed", "value": 5},
        "output_tokens": {"type": "fixed", "value": 2},
    }
    with pytest.raises(cbsim.WorkloadError, match=r"workload: got 1,000,000,000 requests; expected at"):
        cbsim.run(experiment(workload=generator))
    assert cbsim.run(experiment(workload=generator, stop_at_s=2.05)).summary["num_requests"] == 21
    resampled = {"type": "resampled", "path": "azure-like.csv", "num_requests": 10**9}
    with pytest.raises(cbsim.ConfigError, match=r"num_requests: got 1000000000; expected .*100,?000,?000"):
        Experiment.from_mapping(experiment(workload=resampled))
