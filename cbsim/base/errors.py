"""The errors a user can cause. Each carries a line per mistake; the command line prints them and exits 2."""

from __future__ import annotations


class CbsimError(Exception):
    """A mistake that the user can mend: `problems` holds one complete line for each."""

    def __init__(self, *problems: str) -> None:
        self.problems: tuple[str, ...] = problems
        super().__init__("\n".join(problems))

    def __reduce__(self) -> tuple[type[CbsimError], tuple[str, ...]]:
        """Pickle by problems, so that a worker process can raise it too."""
        return type(self), self.problems


class ConfigError(CbsimError):
    """An experiment, a configuration file or an override is wrong."""


class WorkloadError(CbsimError):
    """A trace or a generator's settings are wrong."""


class CalibrationError(CbsimError):
    """Timings, a fitted cost model or the device asked for are wrong."""


class PluginError(CbsimError):
    """A scheduler, workload, cost model or observer of a third party can't be loaded or broke its word."""
