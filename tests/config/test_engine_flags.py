"""Names of others for settings, and the flags of engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbsim.base.errors import ConfigError
from cbsim.config.engine_flags import ENGINES, FLAGS, OTHER_NAMES
from cbsim.studies.experiment import Experiment


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("model.num_hidden_layers", "num_layers"),
        ("scheduler.max_num_batched_tokens", "max_tokens_per_step"),
        ("max_num_batched_tokens", "scheduler.max_tokens_per_step"),
        ("tensor_parallel_size", "parallel.tensor"),
        ("parallel.tensor_parallel_size", "tensor"),
        ("scheduler.gpu_memory_utilization", "kv_cache.gpu_memory_utilization"),
        ("workload.burstiness", "workload.arrivals.burstiness"),
        ("model.num_experts", "model.experts.num_experts"),
        ("kv_cache.enable_prefix_caching", "prefix_caching"),
        ("scheduler.mem_fraction_static", "kv_cache.gpu_memory_utilization"),
        ("kv_cache.num_gpu_blocks", "num_blocks"),
    ],
)
def test_names_of_others_lead_to_ours(key: str, meant: str) -> None:
    mapping = {"workload": {"type": "trace", "path": "azure-like.csv"}, "scheduler": {"type": "vllm"}}
    with pytest.raises(ConfigError) as raised:
        Experiment.from_mapping(mapping, {key: 8})
    assert raised.value.problems == (f"overrides: {key}: unknown key; did you mean '{meant}'?",)


def test_every_name_leads_to_a_key_that_there_is() -> None:
    known = (Path(__file__).parents[2] / "configs" / "reference.md").read_text()
    for name, key in OTHER_NAMES.items():
        assert f"| `{key.rpartition('.')[2]}` |" in known, name


def test_every_flag_has_a_key_or_a_reason() -> None:
    for engine, rows in ENGINES.items():
        assert sum(len(names.split()) for names in rows) == len(FLAGS[engine]), "a flag stands in two rows"
        assert all(bool(flag.key) != bool(flag.reason) for flag in rows.values())
