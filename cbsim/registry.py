"""Registry: from a `type:` name to a class, built in, from an entry point, or `module:Class`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Generic, TypeVar

from cbsim.culprit import told_in_one_line
from cbsim.errors import PluginError

T = TypeVar("T")


class Registry(Generic[T]):
    """The classes of one kind of part ("scheduler", "workload", "cost model"), imported when first asked for.

    `builtin` maps names to `module:Class`; third parties add names by an entry point in `group`, or are
    named directly as `module:Class`, a module of the current folder included.
    """

    def __init__(self, kind: str, group: str, base: type[T], builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._base = base
        self._builtin = dict(builtin)

    def names(self) -> list[str]:
        """Every name that `get` knows: the built-in ones in their order, then those of installed packages."""
        installed = sorted({point.name for point in self._entry_points()} - self._builtin.keys())
        return [*self._builtin, *installed]

    def builtin_names(self) -> list[str]:
        """The names of cbsim's own, whatever is installed beside it."""
        return list(self._builtin)

    def get(self, name: str) -> type[T]:
        """The class behind a name. Raises `PluginError` with the nearest name if there is none."""
        if name in self._builtin:
            return self._import(name, self._builtin[name])
        for point in self._entry_points():
            if point.name == name:
                return self._import(name, point.value)
        if ":" in name:
            here = str(Path.cwd())
            if here not in sys.path:  # as `python -m` would: a console script leaves it out
                sys.path.insert(0, here)
            return self._import(name, name)
        raise PluginError(f"unknown {self.kind} '{name}'{did_you_mean(name, self.names())}")

    def _entry_points(self) -> Iterable[EntryPoint]:
        return entry_points(group=self.group)

    def _import(self, name: str, target: str) -> type[T]:
        module_name, _, class_name = target.partition(":")
        told = f"{self.kind} '{name}'"
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise PluginError(f"{told}: can't import module '{module_name}': {error}") from error
        except Exception as error:  # whatever a third party's module does wrong is told in one line
            reason = told_in_one_line(error, module_name)
            raise PluginError(f"{told}: can't import module '{module_name}': {reason}") from error
        found = getattr(module, class_name, None)
        if found is None:
            raise PluginError(f"{told}: module '{module_name}' has no '{class_name}'")
        if not (isinstance(found, type) and issubclass(found, self._base)):
            raise PluginError(f"{told}: {target} is not a subclass of {self._base.__name__}")
        return found


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` for a near miss, else the names allowed: the end of an error line."""
    names = list(allowed)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; allowed: {', '.join(names)}"
