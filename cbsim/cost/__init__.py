"""Cost models by name."""

from cbsim.cost.base import CostModel, StepShape
from cbsim.cost.costrules import CHUNK, SHAPE, CostRules
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

__all__ = ["CHUNK", "COST_MODELS", "SHAPE", "CostModel", "CostRules", "StepShape"]
