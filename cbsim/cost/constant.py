"""ConstantCost: every step takes the same time, for arguments about scheduling alone."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import Field

from cbsim.config.section import ComponentConfig
from cbsim.cost.base import CostModel
from cbsim.cost.costrules import MAX_DECODES, MAX_TOKENS, CostRules
from cbsim.specs import GpuSpec, ModelSpec


class ConstantConfig(ComponentConfig):
    """A fixed time a step, with optional terms proportional to its tokens."""

    step_s: float = Field(gt=0)
    """Seconds of every step."""
    per_prefill_token_s: float = Field(default=0.0, ge=0)
    """Seconds added for each prompt token in the step."""
    per_decode_s: float = Field(default=0.0, ge=0)
    """Seconds added for each decode in the step."""


class ConstantFigures(NamedTuple):
    """What `constant_step_s` takes, in seconds."""

    each_step_s: float
    each_prefill_token_s: float
    each_decode_s: float


def constant_step_s(cost: Any, shape: Any, chunks: Any) -> Any:
    """Seconds of a step: a fixed time, and linear terms of its prompt tokens and its decodes."""
    return (
        cost.each_step_s
        + cost.each_prefill_token_s * shape.num_prefill_tokens
        + cost.each_decode_s * shape.num_decodes
    )


class ConstantCost(CostModel):
    """`step_s + per_prefill_token_s * prompt tokens + per_decode_s * decodes`.

    Without the extras that is `step_s` itself, to the last bit.
    """

    Config = ConstantConfig

    def __init__(
        self, config: ConstantConfig, model: ModelSpec, gpu: GpuSpec, tensor_parallel: int = 1
    ) -> None:
        super().__init__(config, model, gpu, tensor_parallel)
        self._figures = ConstantFigures(config.step_s, config.per_prefill_token_s, config.per_decode_s)

    def rules(self, max_tokens: int = MAX_TOKENS, max_decodes: int = MAX_DECODES) -> CostRules:
        """The formula and its three figures."""
        return CostRules(constant_step_s, self._figures)
