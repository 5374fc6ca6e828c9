"""Observer: what is told of a run while it goes on, and what it needs to be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar

from cbsim.config.section import ComponentConfig
from cbsim.observers.views import SchedulerView, StepView
from cbsim.workload.request import Request

STEP_HOOKS = ("before_step", "after_step")


class Needs(IntEnum):
    """Which hooks are called, all in order of time. A run that is told of requests alone goes much faster."""

    REQUESTS = 1
    """Those of requests alone, even if those of steps are overridden."""
    STEPS = 2
    """Those of steps too."""
    STATE = 3
    """The same: it says that the observer looks at schedulers, pools and running requests at each step. Those
    are true for everyone in any hook."""


@dataclass(frozen=True, slots=True)
class ObservedRun:
    """What an observer may look at, at any instant of the run: never to be changed."""

    name: str
    """The experiment's name."""
    model: str
    """The model's name."""
    schedulers: Sequence[SchedulerView]
    """One a replica, with its `pool`, `running` and `waiting`."""


class Observer:
    """Watches a run. A subclass overrides the hooks it wants; all instants are in seconds.

    What a hook raises ends the run with a `PluginError` that names observer, hook and instant. Observers look
    and never change anything: a run gives the same results with and without them.
    """

    Config: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init__(self, config: ComponentConfig | None = None, **settings: Any) -> None:
        """From an experiment with its section, else with the settings as keywords."""
        own_name = f"{type(self).__module__}:{type(self).__qualname__}"
        self.config = self.Config(type=own_name, **settings) if config is None else config

    @property
    def needs(self) -> Needs:
        """`STEPS` if a hook of steps is overridden, else `REQUESTS`; a subclass may say something else."""
        return Needs.STEPS if any(self.overrides(hook) for hook in STEP_HOOKS) else Needs.REQUESTS

    def overrides(self, hook: str) -> bool:
        """Whether a hook does anything here."""
        return getattr(type(self), hook) is not getattr(Observer, hook)

    def on_run_start(self, run: ObservedRun) -> None:
        """Nothing has happened yet. One observer may watch several runs, one after the other."""

    def on_request_arrived(self, now: float, request: Request, replica: int) -> None:
        """A request joins a replica's queue; if it can never be served its state is `REJECTED`."""

    def on_admitted(self, now: float, request: Request, replica: int) -> None:
        """A request begins to run, or goes on after a preemption (`num_preemptions` is above 0 then)."""

    def on_first_token(self, now: float, request: Request, replica: int) -> None:
        """The step has ended that brought a request's first output token."""

    def on_preempted(self, now: float, request: Request, replica: int) -> None:
        """A running request has lost its KV blocks and waits again."""

    def on_finished(self, now: float, request: Request, replica: int) -> None:
        """The step has ended that brought a request's last token."""

    def before_step(self, now: float, step: StepView, replica: int) -> None:
        """A step was decided, after its admissions and preemptions were told."""

    def after_step(self, now: float, step: StepView, replica: int) -> None:
        """A step has ended, after its first tokens and finished requests were told."""

    def on_run_end(self, now: float) -> None:
        """Nothing more will happen."""

    def files(self) -> Mapping[str, Callable[[Path], None]]:
        """What is saved with the run: names of files in its folder, and what writes each to a given path.

        The names are asked for before the run. They are written when the run's own files are, into a folder
        that takes its place when it is whole; a run that is not saved writes nothing.
        """
        return {}
