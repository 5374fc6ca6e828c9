"""Trust: what a configuration may do beyond describing a run: name code to be run, and files elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum
from pathlib import Path

from cbsim.base.errors import CbsimError, PluginError


class Trust(IntEnum):
    """Which plug-ins may be imported, and which files a configuration may name."""

    NOTHING = 0
    """No plug-in; files beside the configuration, and those shipped with cbsim."""
    INSTALLED = 1
    """Plug-ins that installed packages name by entry points; any file."""
    EVERYTHING = 2
    """`module:Class` too."""


_TRUST: ContextVar[Trust] = ContextVar("trust", default=Trust.EVERYTHING)


@contextmanager
def trusting(trust: Trust) -> Iterator[None]:
    """Trust so much in this thread while the block lasts, or less where there is less already."""
    token = _TRUST.set(min(trust, _TRUST.get()))
    try:
        yield
    finally:
        _TRUST.reset(token)


@contextmanager
def no_plugins() -> Iterator[None]:
    """While the block lasts, in this thread, configurations are strangers': `--no-plugins` in Python.

    Plug-ins, and files that are neither shipped nor beside the configuration, are refused with an error.
    """
    with trusting(Trust.NOTHING):
        yield


def check_plugin(told: str, *, is_installed: bool) -> None:
    """Raise `PluginError` unless a plug-in, as `told`, may be imported."""
    trust = _TRUST.get()
    if trust == Trust.NOTHING:
        raise PluginError(f"{told} is a plug-in, whose code would run; --no-plugins allows cbsim's own alone")
    if trust == Trust.INSTALLED and not is_installed:
        raise PluginError(
            f"{told} would run the code of a module, which this command does not do; allowed: --plugins, "
            "where you trust it"
        )


def check_path(path: Path, *folders: Path, error: type[CbsimError] = CbsimError) -> None:
    """Raise `error` if a configuration that nobody trusts names a file outside these folders.

    Links are followed first.
    """
    if _TRUST.get() == Trust.NOTHING and not any(
        path.resolve().is_relative_to(folder.resolve()) for folder in folders
    ):
        raise error(f"{path}: leads elsewhere; --no-plugins allows files beside the configuration alone")
