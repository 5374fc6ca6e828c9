"""What is served, and on what: models and GPUs."""

from cbsim.specs.gpu import GpuSpec
from cbsim.specs.model import ModelSpec

__all__ = ["GpuSpec", "ModelSpec"]
