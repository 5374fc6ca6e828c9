"""Moved modules: paths that scripts and plug-ins import from, and where those modules lie now."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "cbsim.experiment": "cbsim.studies.experiment",
    "cbsim.explain": "cbsim.studies.explain",
    "cbsim.live": "cbsim.lab.live",
    "cbsim.request": "cbsim.workload.request",
    "cbsim.workload.request_batch": "cbsim.workload.request",
    "cbsim.workload.trim": "cbsim.workload.request_source",
}
"""Old path -> new path; what lies below an old path is found below the new one."""


class MovedModules(MetaPathFinder, Loader):
    """Answers an import of an old path with the very module at the new one, never with a second copy."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder.find_spec`."""
        return ModuleSpec(fullname, self) if _old_path(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """See `importlib.abc.Loader.create_module`; the module keeps the spec that it was found by."""
        old = _old_path(spec.name)
        module = import_module(MOVED[old] + spec.name.removeprefix(old))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """See `importlib.abc.Loader.exec_module`: the module has run already."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def find_moved_modules() -> None:
    """Make the old paths importable in this process."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedModules())


def _old_path(name: str) -> str:
    """The old path that a module's name is, or lies below; empty if there is none."""
    return next((old for old in MOVED if name == old or name.startswith(f"{old}.")), "")
