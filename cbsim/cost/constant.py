"""ConstantCost: every step takes the same time, for arguments about scheduling alone."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from cbsim.config.section import ComponentConfig
from cbsim.cost.cost_model import CostModel
from cbsim.cost.costrules import MAX_DECODES, MAX_TOKENS, CostRules, Figures, as_record


class ConstantConfig(ComponentConfig):
    """A fixed time a step, with optional terms proportional to its tokens."""

    step_s: float = Field(gt=0)
    """Seconds of every step."""
    per_prefill_token_s: float = Field(default=0.0, ge=0)
    """Seconds added for each prompt token in the step."""
    per_decode_s: float = Field(default=0.0, ge=0)
    """Seconds added for each decode in the step."""


def constant_step_s(cost: Any, shape: Any, chunks: Any) -> Any:
    """Seconds of a step: a fixed time, and linear terms of its prompt tokens and its decodes."""
    figures = cost.figures
    linear_s = figures.per_prefill_token_s * shape.num_prefill_tokens
    return figures.step_s + linear_s + figures.per_decode_s * shape.num_decodes


class ConstantCost(CostModel):
    """`step_s + per_prefill_token_s * prompt tokens + per_decode_s * decodes`.

    Without the extras that is `step_s` itself, to the last bit.
    """

    Config = ConstantConfig

    def rules(self, max_tokens: int = MAX_TOKENS, max_decodes: int = MAX_DECODES) -> CostRules:
        """The formula and its three figures."""
        figures = self.config.model_dump(include={"step_s", "per_prefill_token_s", "per_decode_s"})
        return CostRules(constant_step_s, Figures(as_record(figures)))
