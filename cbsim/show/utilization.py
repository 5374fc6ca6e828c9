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
    return result.steps.columns.isin(_COLUMNS).sum() == len(_COLUMNS) and "gpu" in result.config


def step_mfu(result: Result, steps: pd.DataFrame) -> Column:
    """Of each step, FLOP over what the GPUs could do in its time; the FLOP of `cbsim.results.metrics.mfu`."""
    model, gpu, num_gpus = _deployment(result)
    num_tokens = steps["num_prefill_tokens"].to_numpy() + steps["num_decode_tokens"].to_numpy()
    flop = (
        num_tokens * float(model.dense_flop_per_token)
        + steps["num_logits"].to_numpy() * float(model.logits_flop)
        + steps["num_attention_pairs"].to_numpy() * float(model.attention_flop_per_pair)
    )
    return _share(flop, steps, num_gpus * gpu.peak_flop_per_s(model.dtype))


def step_mbu(result: Result, steps: pd.DataFrame) -> Column:
    """Of each step, bytes over what memory could move in its time; the bytes of `results.metrics.mbu`."""
    model, gpu, num_gpus = _deployment(result)
    num_entries = (
        steps["num_context_tokens"].to_numpy()
        + steps["num_prefill_tokens"].to_numpy()
        + steps["num_decode_tokens"].to_numpy()
    )
    num_bytes = model.weight_bytes + num_entries * float(model.kv_bytes_per_token)
    return _share(num_bytes, steps, num_gpus * gpu.memory_bytes_per_s)


def _deployment(result: Result) -> tuple[ModelSpec, GpuSpec, int]:
    config = result.config
    num_gpus = int(config.get("replicas", {}).get("tensor_parallel", 1))
    return ModelSpec.model_validate(config["model"]), GpuSpec.model_validate(config["gpu"]), num_gpus


def _share(amount: Column, steps: pd.DataFrame, per_s: float) -> Column:
    possible = steps["duration_s"].to_numpy() * per_s
    share: Column = np.divide(amount, possible, out=np.zeros(len(steps)), where=possible > 0)
    return share
