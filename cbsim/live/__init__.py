"""The live world: cbsim's schedulers drive a real decoder in torch, on the wall clock."""

from cbsim.kernels.sampling import SamplingParams
from cbsim.live.batch import Generation, generate
from cbsim.live.run import run_live

__all__ = ["Generation", "SamplingParams", "generate", "run_live"]
