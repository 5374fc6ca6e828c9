"""Registry: from a `type:` name to a class, built in, from an entry point, or `module:Class`."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from cbsim.base.errors import PluginError, told_in_one_line
from cbsim.base.trust import check_plugin

T = TypeVar("T")


class Registry(Generic[T]):
    """The classes of one kind of part ("scheduler", "workload", "cost model"), imported when first asked for.

    `builtin` maps names to `module:Class`; third parties add names by an entry point in `group`, or are
    named directly: `module:Class` for a module that Python finds, from the current folder too, and
    `folder/module:Class` for one elsewhere.
    """

    def __init__(self, kind: str, group: str, base: type[T], builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self._group = group
        self._base = base
        self._builtin = dict(builtin)

    def names(self) -> list[str]:
        """Every name that `get` knows: the built-in ones in their order, then those of installed packages."""
        installed = sorted(entry_points(group=self._group).names - self._builtin.keys())
        return [*self._builtin, *installed]

    def builtin_names(self) -> list[str]:
        """The names of cbsim's own, whatever is installed beside it."""
        return list(self._builtin)

    def get(self, name: str, folder: Path | None = None) -> type[T]:
        """The class behind a name. Raises `PluginError` with the nearest name if there is none.

        That of a plug-in is imported, which runs its module: only where that is trusted (`cbsim.base.trust`).
        `folder` is one where `located` has looked, for the words of that error.
        """
        if name in self._builtin:
            module, _, class_name = self._builtin[name].rpartition(":")
            own: type[T] = getattr(importlib.import_module(module), class_name)
            return own
        for point in entry_points(group=self._group, name=name):
            check_plugin(f"{self.kind} '{name}'", is_installed=True)
            return self._import(name, point.value)
        if ":" in name:
            check_plugin(f"{self.kind} '{name}'", is_installed=False)
            return self._import(name, name, folder)
        raise PluginError(f"unknown {self.kind} '{name}'{did_you_mean(name, self.names())}")

    def _import(self, name: str, target: str, folder: Path | None = None) -> type[T]:
        location, _, class_name = target.rpartition(":")
        own_folder, _, module_name = location.rpartition("/")
        told = f"{self.kind} '{name}'"
        try:
            module = _import_from(own_folder or None, module_name)
        except Exception as error:  # whatever a third party's module does wrong is told in one line
            reason = str(error) if isinstance(error, ImportError) else told_in_one_line(error, module_name)
            if isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]:
                looked_in = [Path(own_folder)] if own_folder else [folder or Path.cwd(), Path.cwd()]
                folders = dict.fromkeys(str(each.resolve()) for each in looked_in)
                reason += f"; looked in {', '.join(folders)} and among what is installed"
            raise PluginError(f"{told}: can't import module '{module_name}': {reason}") from error
        if own_folder and not _lies_in(module, Path(own_folder)):
            raise PluginError(
                f"{told}: another module '{module_name}' is loaded already, {module.__file__}; allowed: "
                "modules of different names"
            )
        found = getattr(module, class_name, None)
        if found is None:
            raise PluginError(f"{told}: module '{module_name}' has no '{class_name}'")
        if not (isinstance(found, type) and issubclass(found, self._base)):
            base = f"{self._base.__module__}.{self._base.__name__}"
            raise PluginError(f"{told}: {target} is not a subclass of {base}")
        return found


def located(name: str, folder: Path) -> str:
    """A part named `module:Class` with the whole path of its module's folder, if that is `folder`.

    What is named otherwise, or lies elsewhere, is given back as it is; a folder before the module is looked
    up from `folder`, then from the current one.
    """
    location, colon, class_name = name.rpartition(":")
    own_folder, slash, module = location.rpartition("/")
    for base in (folder / own_folder, Path(own_folder)) if slash else (folder,):
        path = base / module.replace(".", "/")
        if colon and any(os.path.isfile(file) for file in (f"{path}.py", path / "__init__.py")):  # noqa: PTH113
            return f"{base.resolve().as_posix()}/{module}:{class_name}"
    return name


def located_from_here(name: str, folder: Path) -> str:
    """`located`, with the module's folder relative to the current folder."""
    found = located(name, folder)
    here = f"{Path.cwd().as_posix()}/"
    return found.removeprefix(here) if found != name else name


def _import_from(folder: str | None, module_name: str) -> ModuleType:
    """A module, looked for in a folder, else in the current one, before anywhere else."""
    if folder is None:
        here = str(Path.cwd())
        if here not in sys.path:  # as `python -m` would: a console script leaves it out
            sys.path.insert(0, here)
        return importlib.import_module(module_name)
    first = str(Path(folder).resolve())
    sys.path.insert(0, first)
    try:
        return importlib.import_module(module_name)
    finally:
        sys.path.remove(first)
        if first not in sys.path:  # for what it imports later; last, so that it hides nothing
            sys.path.append(first)


def _lies_in(module: ModuleType, folder: Path) -> bool:
    return module.__file__ is not None and Path(module.__file__).resolve().is_relative_to(folder.resolve())


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` for a near miss, else the names allowed: the end of an error line."""
    names = list(allowed)
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; allowed: {', '.join(names)}"
