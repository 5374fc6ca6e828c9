"""A cost model of one's own: so long for a token."""

from pydantic import Field

from cbsim.config.section import ComponentConfig
from cbsim.cost import CostModel, StepShape


class PerTokenConfig(ComponentConfig):
    """Every token of a step takes as long."""

    token_s: float = Field(gt=0)
    """Seconds a token."""


class PerTokenCost(CostModel):
    """`token_s * tokens`."""

    Config = PerTokenConfig
    config: PerTokenConfig

    def step_s(self, shape: StepShape) -> float:
        """See `CostModel.step_s`."""
        return self.config.token_s * shape.num_tokens
