"""Rules are plain functions; binding puts some of them together and compiles them where that is wanted.

A rule calls others by the names its module imports. `Bound` makes a copy of a function and of all that it
calls, in which some names stand for other functions (this scheduler's `decide`, that cost model's `step_s`).
Interpreted, the copies are what runs; compiled, numba translates the same copies. No rule imports numba.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeVar

import numpy as np

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])

NUMBA_OPTIONS = {"boundscheck": True, "error_model": "python", "_nrt": False, "no_cfunc_wrapper": True}
"""`_nrt=False` with `forceinline` makes the core some twenty times as fast as plain `njit`: without reference
counts, LLVM keeps records in registers. Rules therefore allocate nothing."""


OWN = "cbsim"
"""The package whose functions nobody can change."""
NEEDS_MEMORY = "NRT required but not enabled"
PLACE = re.compile(r'File "([^"]+)", line (\d+)|at (\S+\.py) \((\d+)\)')
"""How numba names a line."""


class CannotCompile(Exception):
    """numba could not translate a rule; the text begins with the file and line that prevent it."""


def view(function: AnyFunction) -> AnyFunction:
    """Mark a rule that returns a tuple of arrays: compiled, it is pasted into its callers."""
    function.is_view = True  # type: ignore[attr-defined]
    return function


class Bound:
    """A function with all that it calls, names in `parts` replaced by what they stand for.

    `parts` maps the name that callers use to the function to be called instead. Raises nothing: whether the
    whole can be compiled shows when `compiled` is called for the first time.
    """

    def __init__(self, function: Callable[..., Any], parts: Mapping[str, Callable[..., Any]]) -> None:
        self._function = function
        self._parts = dict(parts)

    @cached_property
    def interpreted(self) -> Callable[..., Any]:
        """The function as Python runs it."""
        return self._twin(_plainly)

    @cached_property
    def compiled(self) -> Compiled:
        """The function as numba compiles it, or loads it from the user's cache folder; once a process."""
        if self.key not in _COMPILED:
            _COMPILED[self.key] = Compiled(self)
        return _COMPILED[self.key]

    @cached_property
    def key(self) -> str:
        """A hash of the code of every function that takes part, their constants, and versions."""
        digest = hashlib.sha256()
        for version in (
            sys.version,
            platform.machine(),
            _version("numba"),
            _version("llvmlite"),
            _version("numpy"),
        ):
            digest.update(version.encode())
        digest.update(repr(sorted(NUMBA_OPTIONS.items())).encode())
        for function in self.functions():
            digest.update(repr((function.__module__, function.__qualname__)).encode())
            digest.update(_text_of(function.__code__).encode())
            for name in _names(function.__code__):
                value = function.__globals__.get(name)
                if isinstance(value, (bool, int, float, str, tuple, type(None))):
                    digest.update(repr((name, value)).encode())
        return digest.hexdigest()[:24]

    def other(self, function: Callable[..., Any]) -> Bound:
        """Another function in which the same names stand for the same functions."""
        return Bound(function, self._parts)

    @property
    def folder(self) -> Path:
        """Where the compiled form is kept between processes."""
        return cache_folder() / self.key

    @property
    def is_cached(self) -> bool:
        """Whether some process has compiled the same functions before. Does not import numba."""
        return any(self.folder.glob("**/*.nbc"))

    def functions(self) -> list[FunctionType]:
        """The originals of all functions that take part, each once, in the order in which they are met."""
        found: dict[FunctionType, None] = {}
        waiting = [self._outermost()]
        while waiting:
            function = waiting.pop()
            if function not in found:
                found[function] = None
                waiting.extend(self._stands_for(name, called, function) for name, called in _called(function))
        return list(found)

    def calls(self) -> dict[str, FunctionType]:
        """Every name by which a function that takes part calls another, and what it is there."""
        return {name: called for function in self.functions() for name, called in _called(function)}

    def _outermost(self) -> FunctionType:
        return self._stands_for(self._function.__name__, self._function)

    def _stands_for(
        self, name: str, function: Callable[..., Any], caller: FunctionType | None = None
    ) -> FunctionType:
        """What a caller calls by a name; who calls by the very name that it stands for means the original."""
        chosen = self._parts.get(name, function)
        if chosen is caller:
            chosen = function
        assert isinstance(chosen, FunctionType), f"{chosen!r} is no plain function"
        return chosen

    def _twin(self, finish: Callable[[FunctionType, bool], Callable[..., Any]]) -> Callable[..., Any]:
        done: dict[FunctionType, Callable[..., Any]] = {}

        def twin(function: FunctionType, is_outermost: bool) -> Callable[..., Any]:
            if function not in done:
                scope = dict(function.__globals__)
                copy = FunctionType(
                    function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
                )
                copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
                copy.__dict__.update(function.__dict__)
                done[function] = copy
                for name, called in _called(function):
                    scope[name] = twin(self._stands_for(name, called, function), False)
                done[function] = finish(copy, is_outermost)
            return done[function]

        return twin(self._outermost(), True)


class Compiled:
    """A bound function as numba runs it; `seconds` and `was_cached` tell of the last `prepare`."""

    def __init__(self, bound: Bound) -> None:
        import numba
        from numba.core import config as numba_config

        config: Any = numba_config

        self.seconds = 0.0
        """Seconds spent on compiling or loading, with numba's own import the first time."""
        self.was_cached = False
        self._bound, self._config, self._jit = bound, config, numba.njit
        began = time.perf_counter()
        folder = bound.folder
        self._dispatcher = self._made(folder if _is_writable(folder) else None)
        self._import_s = time.perf_counter() - began

    def prepare(self, *arguments: Any) -> None:
        """Compile for the types of these arguments, or load what is cached. Raises `CannotCompile`."""
        began = time.perf_counter()
        num_before = len(self._dispatcher.overloads)
        types = tuple(map(self._dispatcher.typeof_pyval, arguments))
        try:
            self._dispatcher.compile(types)
        except (pickle.UnpicklingError, EOFError):  # a file of the cache is damaged: without it
            shutil.rmtree(self._bound.folder, ignore_errors=True)
            self._dispatcher = self._made(None)
            self._dispatcher.compile(types)
        except Exception as error:  # numba's own errors, and what its analysis stumbles over
            raise CannotCompile(_first_cause(str(error), self._bound.functions())) from error
        self.was_cached = bool(self._dispatcher.stats.cache_hits)
        self.seconds = time.perf_counter() - began
        if num_before == 0:
            self.seconds += self._import_s

    def repeated(self, *arguments: Any) -> Callable[[], Any]:
        """A call with these arguments, to be made many times; compiled for them if it isn't yet.

        Records may change between two calls, as their memory is shared. A plain call of the core takes 25 us
        before its first line is reached, in which numba looks at each argument; this one takes 2.
        """
        entry = self._dispatcher.compile(tuple(map(self._dispatcher.typeof_pyval, arguments)))
        return partial(entry, *map(_unpacked, arguments))

    def _made(self, folder: Path | None) -> Any:
        """A dispatcher that keeps what it compiles in a folder, if one is given."""

        def finish(copy: FunctionType, is_outermost: bool) -> Callable[..., Any]:
            options: dict[str, Any] = dict(NUMBA_OPTIONS)
            options["inline"] = "always" if getattr(copy, "is_view", False) else "never"
            options["forceinline"] = not is_outermost and _takes_many_arrays(copy)
            options["no_cpython_wrapper"] = not is_outermost
            options["cache"] = is_outermost and folder is not None
            made: Callable[..., Any] = self._jit(copy, **options)
            return made

        before = self._config.CACHE_DIR
        self._config.CACHE_DIR = "" if folder is None else str(folder)
        try:
            return self._bound._twin(finish)
        finally:
            self._config.CACHE_DIR = before

    def __call__(self, *arguments: Any) -> Any:
        """Run it."""
        return self._dispatcher(*arguments)


class _Memory:
    """Where a record lies. numba asks a record for its `data`; numpy's takes 1 us to describe its fields."""

    def __init__(self, record: np.void) -> None:
        self.data = np.frombuffer(record.data, np.uint8).data


def _unpacked(value: Any) -> Any:
    """A record, or a tuple with records in it, as compiled code reads it most quickly."""
    if isinstance(value, np.void):
        return _Memory(value)
    if isinstance(value, tuple):
        made = map(_unpacked, value)
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    return value


_COMPILED: dict[str, Compiled] = {}


def can_compile() -> bool:
    """Whether numba is installed here."""
    try:
        metadata.version("numba")
    except metadata.PackageNotFoundError:
        return False
    return True


def cache_folder() -> Path:
    """The user's cache folder for compiled rules; `CBSIM_CACHE_DIR` names another."""
    named = os.environ.get("CBSIM_CACHE_DIR")
    if named:
        return Path(named) / "compiled"
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else _home() / ".cache") / "cbsim" / "compiled"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        return Path(tempfile.gettempdir())


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _takes_many_arrays(function: FunctionType) -> bool:
    """Whether calling it would cost more than its work: a tuple of arrays is passed array by array."""
    return function.__code__.co_varnames[:1] in (("self",), ("world",), ("cost",))


def _plainly(copy: FunctionType, is_outermost: bool) -> Callable[..., Any]:
    return copy


def _called(function: FunctionType) -> Iterator[tuple[str, FunctionType]]:
    """The Python functions that a function's code names, by those names."""
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, FunctionType):
            yield name, value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _text_of(code: CodeType) -> str:
    """What a function does, without where it stands."""
    constants = [_text_of(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return repr((code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _first_cause(text: str, functions: Sequence[FunctionType]) -> str:
    """What numba could not do, in one line that begins with a place among these functions, `file.py:line`.

    That of the third party's line that led there, or else the innermost.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    what = next((line for line in lines if not line.startswith(("Failed in", "During:", "File "))), lines[0])
    if what == NEEDS_MEMORY:
        what = "needs memory of its own (a list, a set, a dictionary, a string), and rules allocate nothing"
    if what.endswith("for signature:"):
        what = " ".join([what, *(line for line in lines if line.startswith(">>> "))][:2])
    is_own = {
        str(Path(function.__code__.co_filename).resolve()): function.__module__.partition(".")[0] == OWN
        for function in functions
    }
    found = [
        (str(Path(name or other).resolve()), line or at) for name, line, other, at in PLACE.findall(text)
    ]
    places = [place for place in found if place[0] in is_own]
    foreign = [place for place in places if not is_own[place[0]]]
    return ": ".join([*(f"{Path(name).name}:{line}" for name, line in (foreign or places)[:1]), what])


def module_rules(module: ModuleType) -> dict[str, FunctionType]:
    """The functions that a module defines, by name: what it gives as `parts`."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, FunctionType) and value.__module__ == module.__name__
    }
