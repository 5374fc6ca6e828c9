"""The bundled sample is what its YAML generates, close to the published figures; real traces load whole."""

from pathlib import Path

import pytest
import yaml

from cbsim.base.paths import data_folder
from cbsim.workload import WORKLOADS
from cbsim.workload.stats import describe

TRACES = Path(__file__).parents[3] / "shared" / "traces"


def load(type_, **settings):
    workload = WORKLOADS.get(type_)
    config = workload.Config.model_validate({"type": type_, **settings})
    return workload(config, seed=0, folder=Path("/nowhere"))


def generator(**changed):
    settings = yaml.safe_load((data_folder("workloads") / "azure-like.yaml").read_text())
    return load(settings.pop("type"), **{**settings, **changed})


def test_the_sample_is_regenerated():
    read = list(load("trace", path="azure-like.csv").requests())
    made = list(generator().requests())
    assert [(r.request_id, r.num_prompt_tokens, r.num_output_tokens) for r in read] == [
        (r.request_id, r.num_prompt_tokens, r.num_output_tokens) for r in made
    ]
    # exp and log may differ in the last bit from one C library to the next
    assert [r.arrival_s for r in read] == pytest.approx([r.arrival_s for r in made], rel=1e-12)


def test_the_generator_fits_the_published_figures():
    stats = describe(generator(num_requests=100_000))
    assert stats.rate_per_s == pytest.approx(5.53, rel=0.02)
    assert stats.interarrival_cv == pytest.approx(1.094, rel=0.02)
    assert stats.prompt_tokens.p50 == pytest.approx(1020, rel=0.02)
    assert stats.prompt_tokens.mean == pytest.approx(1155, rel=0.02)
    assert stats.output_tokens.p50 == pytest.approx(129, rel=0.03)
    assert stats.output_tokens.mean == pytest.approx(211, rel=0.02)


@pytest.mark.skipif(not TRACES.is_dir(), reason="the real traces are not here")
def test_the_azure_hour():
    workload = load("trace", path=str(TRACES / "AzureLLMInferenceTrace_conv.csv"))
    stats = describe(workload)
    assert (stats.num_requests, stats.num_prompt_tokens, stats.num_output_tokens) == (
        19_366,
        22_361_870,
        4_088_665,
    )
    assert stats.duration_s == 3501.721937
    assert (stats.prompt_tokens.p50, stats.output_tokens.p50) == (1020.0, 129.0)


@pytest.mark.skipif(not TRACES.is_dir(), reason="the real traces are not here")
def test_mooncake():
    workload = load("trace", path=str(TRACES / "mooncake_synthetic_trace.jsonl"))
    stats = describe(workload)
    assert (stats.num_requests, stats.num_prompt_tokens) == (3_993, 61_194_628)
    assert stats.prefix_share == pytest.approx(0.651, abs=1e-3)
