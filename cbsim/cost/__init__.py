"""Cost models by name."""

from cbsim.base.registry import Registry
from cbsim.cost.cost_model import CostModel, StepShape
from cbsim.cost.costrules import CostRules
from cbsim.cost.step_columns import CHUNK, SHAPE

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
