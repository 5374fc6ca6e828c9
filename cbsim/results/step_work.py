"""StepWork: what steps compute and read, for model FLOP and memory bandwidth utilization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cbsim.cost.experts import num_touched
from cbsim.results.run_log import WINDOW_STEP_COLUMNS, Column
from cbsim.specs import GpuSpec, ModelSpec

if TYPE_CHECKING:
    import pandas as pd

    from cbsim.results.result import Result

COLUMNS = (
    "num_prefill_tokens",
    "num_decode_tokens",
    "num_logits",
    "num_attention_pairs",
    "num_context_tokens",
)
"""Of the steps, those that `StepWork.of` needs."""


class StepWork(NamedTuple):
    """Counts of one step, sums over several, or columns with a row a step."""

    num_steps: Any
    num_tokens: Any
    num_logits: Any
    num_pairs: Any
    """(Query token, key) pairs in a layer without a window."""
    num_keys: Any
    """KV entries read in it."""
    num_window_pairs: Any
    """Pairs in a layer with the model's window."""
    num_window_keys: Any
    num_experts: Any
    """Experts of a layer that the step's tokens go to, routing being even; 0 without experts."""

    @classmethod
    def of(cls, steps: Mapping[str, Any] | pd.DataFrame, model: ModelSpec) -> StepWork:
        """The columns of a table of steps; without `WINDOW_STEP_COLUMNS` as if no layer had a window."""
        columns = [np.asarray(steps[name]) for name in COLUMNS]
        if all(name in steps for name in WINDOW_STEP_COLUMNS):
            windowed = [np.asarray(steps[name]) for name in WINDOW_STEP_COLUMNS]
        else:
            windowed = columns[-2:]
        num_tokens = columns[0] + columns[1]
        touched = np.zeros(len(num_tokens))
        if model.experts is not None:
            touched = num_touched(model.experts, 0.0, 1, num_tokens)
        return cls._make([np.ones(len(num_tokens), np.int64), num_tokens, *columns[2:], *windowed, touched])

    def sums(self) -> StepWork:
        """Over all rows."""
        return StepWork(*(column.sum().item() for column in self))

    def plus(self, other: StepWork) -> StepWork:
        """The sums of two."""
        return StepWork(*(mine + its for mine, its in zip(self, other, strict=True)))

    def flop(self, model: ModelSpec) -> Any:
        """Model FLOP as in PaLM (Chowdhery et al. 2022, appendix B), forward only: 2 for each matrix weight
        that a token uses (of its experts alone), those of attention for each pair, and the logits.
        """
        flop = self.num_tokens * model.dense_flop_per_token + self.num_logits * model.logits_flop
        for kind in model.attention_kinds:
            pairs = self.num_window_pairs if kind.window else self.num_pairs
            flop = flop + pairs * (kind.num_layers * kind.flop_per_pair)
        return flop

    def num_bytes(self, model: ModelSpec) -> Any:
        """All weights once a step, of experts those that tokens go to; KV entries attended to and written."""
        weight_bytes, expert_bytes = model.weight_bytes, 0.0
        if model.experts is not None:
            (experts,) = (part for part in model.parts if part.name == "experts")
            weight_bytes -= round(experts.num_bytes)
            expert_bytes = experts.num_bytes / model.experts.num_experts
        num_bytes = self.num_steps * weight_bytes + self.num_experts * expert_bytes
        for kind in model.attention_kinds:
            keys = self.num_window_keys if kind.window else self.num_keys
            entry_bytes = kind.num_layers * kind.kv_elements * model.kv_element_bytes
            num_bytes = num_bytes + (keys + self.num_tokens) * entry_bytes
        return num_bytes


NO_WORK = StepWork(0, 0, 0, 0, 0, 0, 0, 0.0)


def has_utilization(result: Result) -> bool:
    """Whether the run says enough of its steps and of what all of them ran on."""
    pools = (result.config.get("cluster") or {}).get("pools", ())
    is_alike = not any(pool.get("gpu") or pool.get("parallel") for pool in pools)
    is_told = {"model", "gpu"} <= result.config.keys()
    return {*result.steps.columns} >= {*COLUMNS} and is_told and is_alike


def step_mfu(result: Result, steps: pd.DataFrame) -> Column:
    """Of each step, FLOP over what the GPUs could do in its time."""
    model, gpu, gpu_s = _deployed(result, steps)
    return _share(StepWork.of(steps, model).flop(model), gpu_s * gpu.peak_flop_per_s(model.dtype))


def step_mbu(result: Result, steps: pd.DataFrame) -> Column:
    """Of each step, bytes over what memory could move in its time."""
    model, gpu, gpu_s = _deployed(result, steps)
    return _share(StepWork.of(steps, model).num_bytes(model), gpu_s * gpu.memory_bytes_per_s)


def _deployed(result: Result, steps: pd.DataFrame) -> tuple[ModelSpec, GpuSpec, Column]:
    """What ran on what, and the seconds of each step times the GPUs of a replica."""
    config = result.config
    parallel = {"tensor": 1, "pipeline": 1, **config.get("parallel", {})}
    num_tensor = max(parallel["tensor"], config.get("replicas", {}).get("tensor_parallel", 1))
    gpu_s = steps["duration_s"].to_numpy() * int(num_tensor * parallel["pipeline"])
    return ModelSpec.model_validate(config["model"]), GpuSpec.model_validate(config["gpu"]), gpu_s


def _share(amount: Column, possible: Column) -> Column:
    return np.divide(amount, possible, out=np.zeros(len(possible)), where=possible > 0)
