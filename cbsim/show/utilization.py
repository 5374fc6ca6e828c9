"""What each step asks of the GPU: its share of the peak FLOP rate and of the peak memory bandwidth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cbsim.results.result import Result
from cbsim.results.run_log import Column
from cbsim.specs import GpuSpec, ModelSpec

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = {"num_attention_pairs", "num_context_tokens", "num_logits"}


def has_utilization(result: Result) -> bool:
    """Whether the run says enough of its steps and of what it ran on."""
    return {*result.steps.columns} >= _COLUMNS and "gpu" in result.config


def step_mfu(result: Result, steps: pd.DataFrame) -> Column:
    """Of each step, FLOP over what the GPUs could do in its time; the FLOP of `cbsim.results.metrics.mfu`."""
    model = ModelSpec.model_validate(result.config["model"])
    flop = (
        _num_tokens(steps) * float(model.dense_flop_per_token)
        + steps["num_logits"].to_numpy() * float(model.logits_flop)
        + steps["num_attention_pairs"].to_numpy() * float(model.attention_flop_per_pair)
    )
    return _share(flop, result, steps, _gpu(result).peak_flop_per_s(model.dtype))


def step_mbu(result: Result, steps: pd.DataFrame) -> Column:
    """Of each step, bytes over what memory could move in its time; the bytes of `results.metrics.mbu`."""
    model = ModelSpec.model_validate(result.config["model"])
    num_entries = steps["num_context_tokens"].to_numpy() + _num_tokens(steps)
    num_bytes = model.weight_bytes + num_entries * float(model.kv_bytes_per_token)
    return _share(num_bytes, result, steps, _gpu(result).memory_bytes_per_s)


def _gpu(result: Result) -> GpuSpec:
    return GpuSpec.model_validate(result.config["gpu"])


def _num_tokens(steps: pd.DataFrame) -> Column:
    num_tokens: Column = steps["num_prefill_tokens"].to_numpy() + steps["num_decode_tokens"].to_numpy()
    return num_tokens


def _share(amount: Column, result: Result, steps: pd.DataFrame, per_gpu_s: float) -> Column:
    parallel = {"tensor": 1, "pipeline": 1, **result.config.get("parallel", {})}
    num_tensor = max(parallel["tensor"], result.config.get("replicas", {}).get("tensor_parallel", 1))
    num_gpus = int(num_tensor * parallel["pipeline"])
    possible = steps["duration_s"].to_numpy() * (num_gpus * per_gpu_s)
    return np.divide(amount, possible, out=np.zeros(len(steps)), where=possible > 0)
