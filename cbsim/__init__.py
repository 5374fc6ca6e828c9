"""cbsim: what an LLM serving engine does with your traffic, simulated before any GPU hour is spent."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cbsim.base.moved_modules import find_moved_modules

if TYPE_CHECKING:
    from cbsim.base.errors import CalibrationError, CbsimError, ConfigError, PluginError, WorkloadError
    from cbsim.base.trust import no_plugins
    from cbsim.results.result import Result, load_run
    from cbsim.studies.capacity import capacity
    from cbsim.studies.compare import compare
    from cbsim.studies.experiment import Experiment
    from cbsim.studies.run import run
    from cbsim.studies.sweep import sweep
    from cbsim.studies.tune import tune

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
    "no_plugins": "cbsim.base.trust",
    "run": "cbsim.studies.run",
    "sweep": "cbsim.studies.sweep",
    "tune": "cbsim.studies.tune",
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
    "no_plugins",
    "run",
    "sweep",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that `import cbsim` stays quick."""
    if name == "__version__":
        from importlib.metadata import version

        return version("cbsim")
    if name not in _HOME:
        raise AttributeError(f"module 'cbsim' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)


find_moved_modules()
