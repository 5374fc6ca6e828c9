"""Cost models by name."""

from cbsim.cost.base import CostModel, StepShape
from cbsim.registry import Registry

COST_MODELS: Registry[CostModel] = Registry(
    "cost model",
    "cbsim.cost_models",
    CostModel,
    {
        "constant": "cbsim.cost.constant:ConstantCost",
        "roofline": "cbsim.cost.roofline:RooflineCost",
        "profile": "cbsim.cost.profile:ProfileCost",
    },
)

__all__ = ["COST_MODELS", "CostModel", "StepShape"]
