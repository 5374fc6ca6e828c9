"""The live world: cbsim's schedulers drive a real decoder in torch, on the wall clock."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cbsim.kernels.sampling import SamplingParams
    from cbsim.live.batch import Generation, generate
    from cbsim.live.run import run_live

__all__ = ["Generation", "SamplingParams", "generate", "run_live"]

_HOMES = {
    "Generation": "cbsim.live.batch",
    "SamplingParams": "cbsim.kernels.sampling",
    "generate": "cbsim.live.batch",
    "run_live": "cbsim.live.run",
}
"""Imported when first asked for: the command must be there, and say what is missing, without torch."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
