"""What each step asks of the GPU: its share of the peak FLOP rate and of the peak memory bandwidth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cbsim.results.result import Result
from cbsim.results.run_log import Column
from cbsim.results.step_work import COLUMNS, StepWork
from cbsim.specs import GpuSpec, ModelSpec

if TYPE_CHECKING:
    import pandas as pd


def has_utilization(result: Result) -> bool:
    """Whether the run says enough of its steps and of what it ran on."""
    return {*result.steps.columns} >= {*COLUMNS} and "gpu" in result.config


def step_mfu(result: Result, steps: pd.DataFrame) -> Column:
    """Of each step, FLOP over what the GPUs could do in its time."""
    model = ModelSpec.model_validate(result.config["model"])
    flop = StepWork.of(steps, model).flop(model)
    return _share(flop, result, steps, _gpu(result).peak_flop_per_s(model.dtype))


def step_mbu(result: Result, steps: pd.DataFrame) -> Column:
    """Of each step, bytes over what memory could move in its time."""
    model = ModelSpec.model_validate(result.config["model"])
    num_bytes = StepWork.of(steps, model).num_bytes(model)
    return _share(num_bytes, result, steps, _gpu(result).memory_bytes_per_s)


def _gpu(result: Result) -> GpuSpec:
    return GpuSpec.model_validate(result.config["gpu"])


def _share(amount: Column, result: Result, steps: pd.DataFrame, per_gpu_s: float) -> Column:
    parallel = {"tensor": 1, "pipeline": 1, **result.config.get("parallel", {})}
    num_tensor = max(parallel["tensor"], result.config.get("replicas", {}).get("tensor_parallel", 1))
    num_gpus = int(num_tensor * parallel["pipeline"])
    possible = steps["duration_s"].to_numpy() * (num_gpus * per_gpu_s)
    return np.divide(amount, possible, out=np.zeros(len(steps)), where=possible > 0)
