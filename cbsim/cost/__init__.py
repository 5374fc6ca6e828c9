"""Cost models by name."""

from cbsim.base.registry import Registry
from cbsim.cost.cost_model import CostModel, StepShape

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
