"""What each step asks of the GPU: its share of the peak FLOP rate and of the peak memory bandwidth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cbsim.results.metrics import bytes_of, flop_of
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
    """Of each step, FLOP over what the GPUs could do in its time."""
    model = ModelSpec.model_validate(result.config["model"])
    flop = flop_of(
        model, _num_tokens(steps), _numbers(steps, "num_logits"), _numbers(steps, "num_attention_pairs")
    )
    return _share(flop, result, steps, _gpu(result).peak_flop_per_s(model.dtype))


def step_mbu(result: Result, steps: pd.DataFrame) -> Column:
    """Of each step, bytes over what memory could move in its time."""
    model = ModelSpec.model_validate(result.config["model"])
    num_bytes = bytes_of(model, 1, _num_tokens(steps), _numbers(steps, "num_context_tokens"))
    return _share(num_bytes, result, steps, _gpu(result).memory_bytes_per_s)


def _gpu(result: Result) -> GpuSpec:
    return GpuSpec.model_validate(result.config["gpu"])


def _numbers(steps: pd.DataFrame, name: str) -> Column:
    return steps[name].to_numpy(np.float64)


def _num_tokens(steps: pd.DataFrame) -> Column:
    return _numbers(steps, "num_prefill_tokens") + _numbers(steps, "num_decode_tokens")


def _share(amount: Column, result: Result, steps: pd.DataFrame, per_gpu_s: float) -> Column:
    parallel = {"tensor": 1, "pipeline": 1, **result.config.get("parallel", {})}
    num_tensor = max(parallel["tensor"], result.config.get("replicas", {}).get("tensor_parallel", 1))
    num_gpus = int(num_tensor * parallel["pipeline"])
    possible = steps["duration_s"].to_numpy() * (num_gpus * per_gpu_s)
    return np.divide(amount, possible, out=np.zeros(len(steps)), where=possible > 0)
