"""A recorded vLLM run predicted from layer timings of its GPU, nearer than by LLMServingSim 2.0."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbsim.cost.costfile import CostFile, model_shape
from cbsim.lab.calibrate.fit import calibrated_box, fit_form
from cbsim.lab.calibrate.layers import LayerTimings
from cbsim.lab.calibrate.named_spec import load_gpu, load_model
from cbsim.lab.validate.recorded_run import compare_with_log, replay_log
from cbsim.lab.validate.server_log import read_server_log
from cbsim.studies.experiment import Experiment

FOLDER = Path(__file__).resolve().parents[4] / "shared" / "ground-truth" / "rtxpro6000-llama-3.1-8b"
PEER_PCT = {"ttft_s.mean": 4.0, "tpot_s.mean": 1.0, "e2e_s.mean": 1.8}
"""LLMServingSim 2.0's own errors on this run."""

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the recorded run is not at hand")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The recorded run's settings, priced by a form fitted to the timings alone."""
    folder = tmp_path_factory.mktemp("profile")
    model, gpu = load_model("llama-3-8b"), load_gpu("rtxpro6000")
    files = (FOLDER / name for name in ("dense.csv", "per_sequence.csv", "attention.csv"))
    points = [point for point in LayerTimings(*files, model, gpu).points() if point.split == "fit"]
    CostFile(
        format="cbsim-cost/1",
        gpu="rtxpro6000",
        device="rtxpro6000",
        model=model_shape(model),
        tensor_parallel=1,
        form=fit_form(points, model.num_layers, seed=0),
        box=calibrated_box(points),
        points_sha256="",
    ).save(folder / "cost.json")
    return Experiment.from_mapping(
        {
            "model": "llama-3-8b",
            "gpu": "rtxpro6000",
            "workload": {"type": "trace", "path": "azure-like.csv"},
            "scheduler": {
                "type": "vllm",
                "version": "0.20",
                "max_num_seqs": 128,
                "max_tokens_per_step": 2048,
            },
            "kv_cache": {"num_blocks": 30_000, "block_size": 16, "prefix_caching": True},
            "cost_model": {"type": "profile", "profile": str(folder)},
        }
    )


@pytest.mark.parametrize("arrivals", ["sent", "queued"])
def test_the_run_is_predicted_nearer_than_by_the_peer(experiment, arrivals):
    log = read_server_log(FOLDER / "requests.jsonl")
    figures = {figure.name: figure for figure in compare_with_log(experiment, log, arrivals).figures}
    for name, peer_pct in PEER_PCT.items():
        assert abs(figures[name].error_pct) < peer_pct, name


def test_the_scheduler_is_no_source_of_error(experiment):
    """In the forced replay nearly every step with recorded tokens is as decided."""
    clock = replay_log(experiment, read_server_log(FOLDER / "requests.jsonl"))
    assert clock.num_recorded_steps > 450
    assert len(clock.contradictions) <= 0.03 * clock.num_recorded_steps
    _, ratio = clock.recorded_over_predicted()["decode"]
    assert ratio == pytest.approx(1.0, abs=0.03)
