"""Audience: the observers of a run, told what happens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from cbsim.base.errors import CbsimError, PluginError, told_in_one_line
from cbsim.base.paths import FILE_NAME, is_file_name
from cbsim.observers.observer import STEP_HOOKS, Needs, ObservedRun, Observer
from cbsim.observers.views import StepView
from cbsim.workload.request import Request

Hook = Literal[
    "on_request_arrived",
    "on_admitted",
    "on_first_token",
    "on_preempted",
    "on_finished",
    "before_step",
    "after_step",
]
HOOKS: tuple[Hook, ...] = get_args(Hook)
_HOOK_OF_EVENT: dict[str, Hook] = {
    "admitted": "on_admitted",
    "resumed": "on_admitted",
    "preempted": "on_preempted",
    "finished": "on_finished",
}


class Audience:
    """Tells every observer that listens; what one of them raises becomes a `PluginError`."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        """Raises `PluginError` for what is no observer."""
        for observer in observers:
            if not isinstance(observer, Observer):
                raise PluginError(f"observers: got {observer!r}; expected instances of Observer")
        self.observers = tuple(observers)
        self.needs = max(map(_needs, observers), default=Needs.REQUESTS)
        """What the most demanding of them needs."""
        self._listeners = {hook: list(_listeners(observers, hook)) for hook in HOOKS}

    def hears(self, *hooks: Hook) -> bool:
        """Whether anybody listens to one of these."""
        return any(self._listeners[hook] for hook in hooks)

    @property
    def hears_steps(self) -> bool:
        """Whether anybody is to be told of steps."""
        return self.hears("before_step", "after_step")

    def started(self, run: ObservedRun) -> None:
        """Nothing has happened yet."""
        for observer in self.observers:
            _call(observer, "on_run_start", 0.0, run)

    def tell(self, hook: Hook, now: float, subject: Request | StepView, replica: int) -> None:
        """A request or a step has come so far, at `now` seconds."""
        for observer, listen in self._listeners[hook]:
            try:
                listen(now, subject, replica)
            except Exception:
                with _blamed(observer, f"failed in {hook} at {now:.6g} s"):
                    raise
        if isinstance(subject, StepView):
            subject.shut()

    def tell_event(self, event: str, now: float, request: Request, replica: int) -> None:
        """Tell of an event by its name in the record, if there is a hook for it."""
        hook = _HOOK_OF_EVENT.get(event)
        if hook is not None:
            self.tell(hook, now, request, replica)

    def ended(self, now: float) -> None:
        """Nothing more will happen."""
        for observer in self.observers:
            _call(observer, "on_run_end", now, now)

    def check_files(self, reserved: Iterable[str]) -> None:
        """Raise `PluginError` for every file that can't be written beside the run's own ones."""
        taken = dict.fromkeys(reserved, "the run itself")
        problems = []
        for observer in self.observers:
            for name in _files(observer):
                told = f"observer {_name(observer)}: file {name!r}"
                if not isinstance(name, str) or not is_file_name(name):
                    problems.append(f"{told}: expected a file's name: {FILE_NAME}")
                elif name in taken:
                    problems.append(f"{told} is written by {taken[name]} too")
                taken.setdefault(name, f"observer {_name(observer)}")
        if problems:
            raise PluginError(*problems)


def write_files(observers: Iterable[Observer], folder: Path) -> list[str]:
    """Have observers write their files into a folder; returns the names, sorted.

    Raises `PluginError` for what an observer raises, `OSError` where the folder can't be written.
    """
    names = []
    for observer in observers:
        for name, write in _files(observer).items():
            with _blamed(observer, f"can't write {name}", passes=(OSError,)):
                write(folder / name)
            if not (folder / name).is_file():
                raise PluginError(f"observer {_name(observer)} has not written {name}")
            names.append(name)
    return sorted(names)


def _listeners(observers: Iterable[Observer], hook: Hook) -> Iterator[tuple[Observer, Callable[..., None]]]:
    for observer in observers:
        if observer.overrides(hook) and (hook not in STEP_HOOKS or observer.needs >= Needs.STEPS):
            yield observer, getattr(observer, hook)


def _call(observer: Observer, hook: str, now: float, *arguments: Any) -> Any:
    with _blamed(observer, f"failed in {hook} at {now:.6g} s"):
        return getattr(observer, hook)(*arguments)


def _files(observer: Observer) -> Mapping[str, Callable[[Path], None]]:
    try:
        files = _call(observer, "files", 0.0)
    except PluginError as error:
        if isinstance(error.__cause__, CbsimError):  # a mistake in its settings
            raise PluginError(f"observer {_name(observer)}: {error.__cause__}") from error.__cause__
        raise
    if not isinstance(files, Mapping):
        raise PluginError(f"observer {_name(observer)}: files gave {files!r}; expected a mapping")
    return files


def _needs(observer: Observer) -> Needs:
    with _blamed(observer, "has no needs"):
        return Needs(observer.needs)


@contextmanager
def _blamed(observer: Observer, of: str, passes: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """What an observer raises becomes a `PluginError`, but for what `passes`."""
    try:
        yield
    except passes:
        raise
    except Exception as error:
        told = told_in_one_line(error, type(observer).__module__)
        raise PluginError(f"observer {_name(observer)} {of}: {told}") from error


def _name(observer: Observer) -> str:
    return type(observer).__name__
