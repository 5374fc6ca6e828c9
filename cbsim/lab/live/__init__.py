"""The live world: cbsim's schedulers drive a real decoder in torch, on the wall clock."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cbsim.lab.kernels.sampling import SamplingParams
    from cbsim.lab.live.generation import Generation, generate
    from cbsim.lab.live.live_run import run_live

__all__ = ["Generation", "SamplingParams", "generate", "run_live"]

_HOMES = {
    "Generation": "cbsim.lab.live.generation",
    "SamplingParams": "cbsim.lab.kernels.sampling",
    "generate": "cbsim.lab.live.generation",
    "run_live": "cbsim.lab.live.live_run",
}
"""Imported when first asked for: the command must be there, and say what is missing, without torch."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
