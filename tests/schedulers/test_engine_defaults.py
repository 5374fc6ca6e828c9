"""vLLM's own defaults by the GPU, what a user says instead, and how GPUs share a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import cbsim
from cbsim.base.errors import ConfigError
from cbsim.cli.command_line import preview
from cbsim.schedulers.vllm import VllmConfig
from cbsim.show.capacity_text import capacity_table
from cbsim.show.reader_tables import run_tables
from cbsim.studies.capacity import Plan
from cbsim.studies.experiment import Experiment


def experiment(**settings: Any) -> Experiment:
    return Experiment.from_mapping({"workload": {"type": "trace", "path": "azure-like.csv"}, **settings})


@pytest.mark.parametrize(
    ("gpu", "scheduler", "tokens", "seqs", "share"),
    [
        ("h100", "vllm-0.33", 8192, 1024, 0.92),
        ("h200", "vllm-0.20", 8192, 1024, 0.9),
        ("h100", "vllm-server", 8192, 1024, 0.92),
        ("a100-80g", "vllm-server", 2048, 256, 0.92),
        ("h100", "vllm-0.15", 8192, 1024, 0.9),
        ("a100-80g", "vllm-0.33", 2048, 256, 0.92),
        ("l40s", "vllm-0.33", 2048, 256, 0.92),
        ("h100", {"type": "vllm", "entry": "llm"}, 16_384, 1024, 0.92),
        ("l40s", {"type": "vllm", "entry": "llm"}, 8192, 256, 0.92),
    ],
)
def test_an_entry_takes_what_vllm_takes(
    gpu: str, scheduler: Any, tokens: int, seqs: int, share: float
) -> None:
    made = experiment(gpu=gpu, scheduler=scheduler)
    config: Any = made.scheduler
    assert (config.max_tokens_per_step, config.max_num_seqs) == (tokens, seqs)
    assert made.kv_cache.gpu_memory_utilization == share
    assert made.kv_cache.cuda_graphs == (share == 0.92)
    assert made.kv_cache.prefix_caching
    assert config.async_scheduling, "the default since 0.14"


def test_what_a_user_says_stays_and_the_run_says_the_rest() -> None:
    mapping = {
        "workload": {"type": "trace", "path": "azure-like.csv", "limit": 5},
        "gpu": "h100",
        "scheduler": {"type": "vllm", "entry": "server", "max_num_seqs": 64},
        "kv_cache": {"prefix_caching": False},
    }
    result = cbsim.run(mapping)
    assert result.config["scheduler"]["max_num_seqs"] == 64
    assert result.config["scheduler"]["max_tokens_per_step"] == 8192
    assert not result.config["kv_cache"]["prefix_caching"]
    (note,) = (each for each in result.summary["notes"] if each.startswith("defaults of vLLM"))
    assert "max_num_seqs 64, max_tokens_per_step 8192" in note


def test_without_an_entry_nothing_changes() -> None:
    made = experiment(scheduler={"type": "vllm"}, gpu="h100")
    config: Any = made.scheduler
    assert (config.max_tokens_per_step, config.max_num_seqs, made.kv_cache.prefix_caching) == (
        2048,
        256,
        False,
    )


BUDGET, SEQS, CACHING = (
    "max_tokens_per_step 8192 (here 2048)",
    "max_num_seqs 1024 (here 256)",
    "prefix_caching true (here false)",
)


@pytest.mark.parametrize(
    ("gpu", "scheduler", "cache", "unlike"),
    [
        ("h100", {}, {}, (BUDGET, SEQS, CACHING)),
        ("h200", {"version": "0.15"}, {"prefix_caching": True}, (BUDGET, SEQS)),
        ("h200", {"max_tokens_per_step": 512}, {"num_blocks": 900}, (SEQS, CACHING)),
        ("a100-80g", {}, {}, (CACHING,)),
        ("a100-80g", {}, {"prefix_caching": False}, ()),
        ("h100", {"max_tokens_per_step": 2048, "max_num_seqs": 256}, {}, ()),
        ("h100", {"entry": "server"}, {}, ()),
        ("h100", {"type": "preemptive"}, {}, ()),
    ],
)
def test_what_nobody_set_and_vllm_would_have_otherwise_is_told(
    gpu: str, scheduler: dict[str, Any], cache: dict[str, Any], unlike: tuple[str, ...]
) -> None:
    version = scheduler.get("version", "0.33")
    told = f"vllm serve {version} on {gpu} would have {', '.join(unlike)}: `entry: server` in `scheduler` "
    expected = (f"{told}takes its defaults for all that is not set",) if unlike else ()
    made = experiment(scheduler={"type": "vllm", **scheduler}, gpu=gpu, kv_cache=cache)
    assert made.assumed == expected
    assert Experiment.from_mapping(made.resolved()).assumed == (), "all is given there"


def test_runs_sweeps_capacities_and_tunes_say_it(tmp_path: Path) -> None:
    """Each point is told what nobody set in it; workers, which get all settings spelled out, can't tell."""
    mapping = {
        "name": "bare",
        "workload": {"type": "trace", "path": "azure-like.csv", "limit": 120},
        "scheduler": {"type": "vllm"},
        "cost_model": {"type": "constant", "step_s": 0.01},
        "slo": {"ttft_s": {"p90": 1.0}},
    }
    (note,) = cbsim.Experiment.from_mapping(mapping).assumed
    assert cbsim.run(mapping).notes[0] == note
    swept = mapping | {"sweep": {"scheduler.max_num_seqs": [8, 256]}}
    table = cbsim.sweep(swept, tmp_path / "sweep")
    fewer = note.replace(f"{SEQS}, ", "")
    assert [notes.split("; ")[0] for notes in table["notes"]] == [fewer, fewer]
    answer = cbsim.capacity(swept, Plan(num_replicates=2, tolerance=1.0))
    assert {notes.split("; ")[0] for notes in answer.curve["notes"]} == {fewer}
    assert fewer in capacity_table(answer).notes
    tuned = mapping | {"tune": {"scheduler.max_num_seqs": [8, 256], "trials": 2, "windows": []}}
    assert str(cbsim.tune(tuned, tmp_path / "tune").table["notes"][0]).startswith(note)


def test_pools_that_share_a_bare_scheduler_are_told_by_their_gpus() -> None:
    pools = [{"name": "one", "gpu": "h100"}, {"name": "two", "gpu": "a100-80g"}]
    made = experiment(scheduler={"type": "vllm"}, cluster={"pools": pools})
    assert [note.split(" would")[0] for note in made.assumed] == [
        "vllm serve 0.33 on h100",
        "vllm serve 0.33 on a100-80g",
    ]


def test_the_two_names_of_tensor_parallelism_mean_one_thing() -> None:
    assert experiment(scheduler={"type": "vllm"}, parallel={"tensor": 4}).num_gpus == 4
    assert experiment(scheduler={"type": "vllm"}, replicas={"tensor_parallel": 4}).num_gpus == 4
    assert experiment(scheduler={"type": "vllm"}, parallel={"tensor": 2, "pipeline": 2}).num_gpus == 4
    with pytest.raises(ConfigError, match="expected one of the two"):
        experiment(scheduler={"type": "vllm"}, parallel={"tensor": 2}, replicas={"tensor_parallel": 4})


def test_who_does_not_wait_for_a_pipeline_is_refused() -> None:
    scheduler = {"type": "chunked_prefill", "async_scheduling": True}
    with pytest.raises(ConfigError, match="does not wait for tokens to leave the stages"):
        experiment(scheduler=scheduler, parallel={"pipeline": 2})


def test_a_pipeline_overlaps_steps() -> None:
    """Two stages: a step of 2 s begins each second, so that requests decode in turns."""
    mapping = {
        "workload": {"type": "trace", "path": "azure-like.csv", "limit": 40},
        "scheduler": {"type": "vllm"},
        "cost_model": {"type": "constant", "step_s": 2.0},
    }
    alone = cbsim.run(mapping).summary
    piped = cbsim.run(mapping | {"parallel": {"pipeline": 2}}).summary
    assert piped["makespan_s"] < alone["makespan_s"] * 1.01
    assert piped["num_steps"] > 1.2 * alone["num_steps"]


def test_chances_and_lists_of_accepted_drafts() -> None:
    """With every draft accepted each step brings 1 + n tokens; with none, one."""
    mapping = {
        "workload": {"type": "trace", "path": "azure-like.csv", "limit": 20},
        "cost_model": {"type": "constant", "step_s": 0.01},
    }
    spec = {"num_tokens": 3, "draft_share": 0.0}
    for name in ("vllm", "chunked_prefill", "preemptive"):
        for chance, tokens in ((0.0, 1.0), (1.0, 4.0)):
            scheduler = {"type": name, "speculative": spec | {"acceptance": chance}}
            summary = cbsim.run(mapping | {"scheduler": scheduler}).summary
            assert summary["num_finished"] == 20
            # First tokens come alone, and answers end amid a step.
            assert summary["tokens_per_step_and_request"] == pytest.approx(tokens, abs=0.5)
            # Asynchronous steps also verify drafts of requests that have just ended.
            assert summary["draft_acceptance_rate"] == pytest.approx(chance, abs=0.03)


def test_what_a_preempted_request_finds_of_its_own_is_no_hit() -> None:
    scheduler = {"type": "vllm", "max_num_seqs": 64}
    mapping = {
        "workload": {"type": "trace", "path": "azure-like.csv", "limit": 60, "rate_scale": 20.0},
        "scheduler": scheduler,
        "kv_cache": {"num_blocks": 600, "prefix_caching": True},
        "cost_model": {"type": "constant", "step_s": 0.05},
    }
    result = cbsim.run(mapping)
    assert result.summary["num_preemptions"] > 0
    resumed = result.events[result.events["event"] == "resumed"]
    assert resumed["num_tokens"].sum() > 0
    assert result.summary["prefix_hit_rate"] == 0.0
    assert result.summary["num_tokens_found_again"] == resumed["num_tokens"].sum()
    assert "found again by preempted" in run_tables(result)[0].to_text()


def test_requests_that_share_nothing_hit_nothing_however_often_they_are_preempted() -> None:
    lognormal = {"type": "lognormal", "sigma": 0.8}
    mapping = {
        "workload": {
            "type": "synthetic",
            "num_requests": 800,
            "arrivals": {"type": "poisson", "rate_per_s": 2000.0},
            "prompt_tokens": lognormal | {"mean": 512},
            "output_tokens": lognormal | {"mean": 256},
        },
        "scheduler": "vllm",
        "kv_cache": {"num_blocks": 300, "prefix_caching": True},
        "cost_model": {"type": "constant", "step_s": 0.01},
    }
    summary = cbsim.run(mapping).summary
    assert summary["num_preemptions"] > 50
    assert summary["prefix_hit_rate"] == 0.0


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        (
            {"type": "vllm", "watermark": 0.01},
            "room for a whole prompt needed at admission, 160 tokens kept free by the watermark",
        ),
        ({"type": "preemptive", "reserve_full_isl": False}, ""),
        ({"type": "continuous"}, "prompt and answer reserved at admission"),
        (
            {"type": "chunked_prefill", "max_output_tokens": 2048},
            "prompt and 2,048 tokens of answer reserved at admission",
        ),
        ({"type": "static"}, "the longest request reserved for every slot"),
    ],
)
def test_what_an_admission_takes_of_the_kv_cache_is_shown(scheduler: dict[str, Any], told: str) -> None:
    mapping = {
        "workload": {"type": "trace", "path": "azure-like.csv", "limit": 20},
        "scheduler": scheduler,
        "kv_cache": {"num_blocks": 1000},
    }
    expected = f" for a longest context of 8,192 ({told})" if told else " for a longest context of 8,192"
    assert preview(Experiment.from_mapping(mapping)).endswith(expected)
    notes = cbsim.run(mapping).notes
    assert any(note.startswith("KV cache: ") for note in notes) == ("watermark" in scheduler)


@pytest.mark.parametrize(("written", "meant"), [(0.2, "0.20"), (0.15, "0.15"), ("0.33", "0.33")])
def test_a_release_may_be_written_as_yaml_reads_it(written: Any, meant: str) -> None:
    assert VllmConfig(type="vllm", version=written).version == meant
