"""Identity on published traffic: the first 1,000 requests of the Azure 2023 conversation hour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cbsim.results.metrics import Deployment, flatten, summarize
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_workload, simulate
from cbsim.testing import differences

NUM_REQUESTS = 1000
SETTINGS: dict[str, dict[str, Any]] = {
    "static": {"scheduler": {"type": "static", "max_model_len": 8192}},
    "continuous": {"scheduler": {"type": "continuous"}},
    "chunked_prefill": {"scheduler": {"type": "chunked_prefill"}},
    "preemptive": {"scheduler": {"type": "preemptive"}},
    "vllm": {"scheduler": {"type": "vllm"}},
    "vllm-thrash": {"scheduler": {"type": "vllm"}, "kv_cache": {"num_blocks": 700}},
    "vllm-replicas": {"scheduler": {"type": "vllm"}, "replicas": {"count": 3, "router": "least_outstanding"}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_engines_agree_on_the_azure_hour(name: str, shared: Path) -> None:
    trace = shared / "traces" / "AzureLLMInferenceTrace_conv.csv"
    workload = {"type": "trace", "path": str(trace), "limit": NUM_REQUESTS}
    logs, figures = [], []
    for engine in ("reference", "fast"):
        experiment = Experiment.from_mapping({"workload": workload, "engine": engine, **SETTINGS[name]})
        log, _ = simulate(experiment, make_workload(experiment))
        deployment = Deployment(
            model=experiment.model,
            gpu=experiment.gpu,
            tensor_parallel=1,
            num_replicas=experiment.replicas.count,
            kv_block_size=experiment.kv_cache.block_size,
        )
        logs.append(log)
        figures.append(flatten(summarize(log, deployment, {"ttft_s": 2.0})))
    assert differences(*logs) == []
    assert figures[0] == figures[1]
    assert len(logs[0].requests["request_id"]) == NUM_REQUESTS
    if name == "vllm-thrash":
        assert figures[0]["num_preemptions"] > 50
