"""cbsim: what an LLM serving engine does with your traffic, simulated before any GPU hour is spent."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cbsim.base.errors import CalibrationError, CbsimError, ConfigError, PluginError, WorkloadError
    from cbsim.results.result import Result, load_run
    from cbsim.studies.capacity import capacity
    from cbsim.studies.compare import compare
    from cbsim.studies.experiment import Experiment
    from cbsim.studies.run import run
    from cbsim.studies.sweep import sweep

    __version__: str

_HOME = {
    "CalibrationError": "cbsim.base.errors",
    "CbsimError": "cbsim.base.errors",
    "ConfigError": "cbsim.base.errors",
    "PluginError": "cbsim.base.errors",
    "WorkloadError": "cbsim.base.errors",
    "Experiment": "cbsim.studies.experiment",
    "Result": "cbsim.results.result",
    "capacity": "cbsim.studies.capacity",
    "compare": "cbsim.studies.compare",
    "load_run": "cbsim.results.result",
    "run": "cbsim.studies.run",
    "sweep": "cbsim.studies.sweep",
}

__all__ = [
    "CalibrationError",
    "CbsimError",
    "ConfigError",
    "Experiment",
    "PluginError",
    "Result",
    "WorkloadError",
    "__version__",
    "capacity",
    "compare",
    "load_run",
    "run",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that `import cbsim` stays quick."""
    if name == "__version__":
        from importlib.metadata import version

        return version("cbsim")
    if name not in _HOME:
        raise AttributeError(f"module 'cbsim' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


class _Package(ModuleType):
    """Keeps functions such as `cbsim.run` what they are when the modules of their names are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
