"""What is served, and on what: models, GPUs, and how these share a model."""

from cbsim.specs.gpu import GpuSpec
from cbsim.specs.model import ModelSpec
from cbsim.specs.parallel import ParallelSpec

__all__ = ["GpuSpec", "ModelSpec", "ParallelSpec"]
