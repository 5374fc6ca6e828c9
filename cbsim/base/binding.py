"""Rules are plain functions; binding puts some of them together and compiles them where that is wanted.

A rule calls others by the names its module imports. `Bound` makes a copy of a function and of all that it
calls, in which some names stand for other functions (this scheduler's `decide`, that cost model's `step_s`).
Interpreted, the copies are what runs; compiled, numba translates the same copies. No rule imports numba.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, TypeVar

from cbsim.base.machine_code import MachineCode, host, kind_of, read_code, write_code
from cbsim.base.paths import cache_folder

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])

TRANSLATED_BY = ("machine_code.py", "record_types.py", "translation.py")
"""The modules, beside this one, on which machine code depends."""
OWN = "cbsim"
"""The package whose functions nobody can change."""
NEEDS_MEMORY = "NRT required but not enabled"
PLACE = re.compile(r'File "([^"]+)", line (\d+)|at (\S+\.py) \((\d+)\)')
"""How numba names a line."""
Finish = Callable[[FunctionType, bool], Callable[..., Any]]
"""Called with a copy of a function and whether it is the outermost; gives what stands for it."""
Kept = dict[tuple[FunctionType, frozenset[Any]], Callable[..., Any]]
"""What was made of functions, by all that they reach."""


class CannotCompile(Exception):
    """numba could not translate a rule; the text begins with the file and line that prevent it."""


def apart(function: AnyFunction) -> AnyFunction:
    """Mark a rule that runs seldom: compiled, it is called instead of pasted into its callers.

    Pasting takes time to compile, anew at each place that calls it.
    """
    function.is_apart = True  # type: ignore[attr-defined]
    return function


class Bound:
    """A function with all that it calls, names in `parts` replaced by what they stand for.

    `parts` maps the name that callers use to the function to be called instead, whoever defines it; `instead`
    maps a function to another one that is called wherever it would be. Raises nothing: whether the whole can
    be compiled shows when `compiled` is called for the first time.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        parts: Mapping[str, Callable[..., Any]],
        instead: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
    ) -> None:
        self._function = function
        self._parts = dict(parts)
        self._instead = dict(instead or {})
        self._copies: dict[FunctionType, Callable[..., Any]] = {}

    @cached_property
    def interpreted(self) -> Callable[..., Any]:
        """The function as Python runs it."""
        return self._twin(_plainly, self._copies)

    @cached_property
    def compiled(self) -> Compiled:
        """The function as numba compiles it, or loads it from the user's cache folder; once a process."""
        if self.key not in _COMPILED:
            _COMPILED[self.key] = Compiled(self)
        return _COMPILED[self.key]

    @cached_property
    def key(self) -> str:
        """A hash of the code of every function that takes part, their constants, and versions."""
        return (_key_of if self.is_own else _key_of.__wrapped__)(self.functions)

    @property
    def is_own(self) -> bool:
        """Whether all functions that take part are cbsim's."""
        return all(map(_is_own, self.functions))

    def other(self, function: Callable[..., Any]) -> Bound:
        """Another function in which the same names stand for the same functions."""
        other = Bound(function, self._parts, self._instead)
        other._copies = self._copies
        return other

    @property
    def folder(self) -> Path:
        """Where the compiled form is kept between processes."""
        return cache_folder() / "compiled" / self.key

    @property
    def is_cached(self) -> bool:
        """Whether some process has compiled the same functions before. Does not import numba."""
        return any(self.folder.glob("*.code"))

    @cached_property
    def functions(self) -> tuple[FunctionType, ...]:
        """The originals of all functions that take part, each once, in the order in which they are met."""
        return tuple(self._reached(self._outermost()))

    def names(self) -> set[str]:
        """All names of attributes and globals in the code of functions that take part."""
        return {name for function in self.functions for name in _names_of(function)}

    def calls(self) -> dict[str, FunctionType]:
        """Every name by which a function that takes part calls another, and what it is there."""
        return {name: called for function in self.functions for name, called in _called(function)}

    def _outermost(self) -> FunctionType:
        return self._stands_for(self._function.__name__, self._function)

    def _stands_for(
        self, name: str, function: Callable[..., Any], caller: FunctionType | None = None
    ) -> FunctionType:
        """What a caller calls by a name; who calls by the very name that it stands for means the original."""
        chosen = self._parts.get(name, function)
        if chosen is caller:
            chosen = function
        chosen = self._instead.get(chosen, chosen)
        assert isinstance(chosen, FunctionType), f"{chosen!r} is no plain function"
        return chosen

    def _reached(self, function: FunctionType) -> dict[FunctionType, tuple[FunctionType, ...]]:
        """A function and all that it calls, in the order in which they are met, with what each calls."""
        found: dict[FunctionType, tuple[FunctionType, ...]] = {}
        waiting = [function]
        while waiting:
            caller = waiting.pop()
            if caller not in found:
                found[caller] = tuple(self._stands_for(name, each, caller) for name, each in _called(caller))
                waiting.extend(found[caller])
        return found

    def _translated(self, finish: Finish) -> Callable[..., Any]:
        """A copy for numba. Functions of cbsim that reach the same ones as before were translated then."""
        return self._twin(finish, {}, _TRANSLATED)

    def _twin(
        self, finish: Finish, done: dict[FunctionType, Callable[..., Any]], kept: Kept | None = None
    ) -> Callable[..., Any]:
        def twin(function: FunctionType, is_outermost: bool) -> Callable[..., Any]:
            if function in done:
                return done[function]
            reached = {} if kept is None or is_outermost else self._reached(function)
            key = (function, frozenset(reached.items()))
            if kept and key in kept:
                return kept[key]
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
            if kept is not None and reached and all(map(_is_own, reached)):
                kept[key] = done[function]
            return done[function]

        return twin(self._outermost(), True)


class Compiled:
    """A bound function as machine code; `seconds` and `was_cached` tell of the last `prepare`.

    The code lies in a file of the cache folder, and whoever finds it there needs no numba, which takes half a
    second and 80 MB to be ready.
    """

    def __init__(self, bound: Bound) -> None:
        self.seconds = 0.0
        """Seconds spent on compiling or loading, with numba's own import."""
        self.was_cached = False
        self._bound = bound
        self._codes: dict[str, MachineCode] = {}

    def prepare(self, *arguments: Any) -> None:
        """Compile for the types of these arguments, or load what is cached. Raises `CannotCompile`."""
        began = time.perf_counter()
        self._code_for(arguments)
        self.seconds = time.perf_counter() - began

    def __call__(self, *arguments: Any) -> Any:
        """Run it."""
        return self.bound_to(*arguments)()

    def bound_to(self, *arguments: Any) -> Callable[[], Any]:
        """It without arguments, for whoever calls it with the same ones again and again."""
        return self._code_for(arguments).bound_to(arguments)

    def _code_for(self, arguments: tuple[Any, ...]) -> MachineCode:
        kind = kind_of(arguments)
        if kind not in self._codes:
            path = self._bound.folder / f"{hashlib.sha256((kind + host()).encode()).hexdigest()[:24]}.code"
            kept = read_code(path)
            self.was_cached = kept is not None
            if kept is None:
                kept = self._compile(arguments)
                write_code(path, kept)
            self._codes[kind] = MachineCode(*kept)
        return self._codes[kind]

    def _compile(self, arguments: tuple[Any, ...]) -> tuple[str, str, bytes]:
        """Name, type of result and object code, as `MachineCode` takes them."""
        try:
            from cbsim.base.translation import translate

            return translate(self._bound._translated, _is_pasted, arguments)
        except Exception as error:  # numba's own errors, what its analysis stumbles over, another numba
            raise CannotCompile(_first_cause(str(error), self._bound.functions)) from error


_COMPILED: dict[str, Compiled] = {}
_TRANSLATED: Kept = {}
"""What numba made of cbsim's functions in this process; most reach the same under every scheduler."""


@cache
def _key_of(functions: Sequence[FunctionType]) -> str:
    """See `Bound.key`. Constants of a third party's module may change between two runs of a process."""
    digest = hashlib.sha256()
    for version in (
        sys.version,
        platform.machine(),
        _version("numba"),
        _version("llvmlite"),
        _version("numpy"),
    ):
        digest.update(version.encode())
    digest.update(_translator())
    values: list[tuple[object, ...]] = []
    for function in functions:
        digest.update(_hash_of(function))
        values.append((function.__module__, function.__qualname__))
        for name in _names_of(function):
            value = function.__globals__.get(name)
            if isinstance(value, (bool, int, float, str, tuple, type(None))):
                values.append((name, value))
    digest.update(repr(values).encode())
    return digest.hexdigest()[:24]


def can_compile() -> bool:
    """Whether numba is installed here."""
    return bool(_version("numba"))


def _is_own(function: FunctionType) -> bool:
    return function.__module__.partition(".")[0] == OWN


def _is_pasted(function: FunctionType) -> bool:
    """Whether a function becomes part of its callers; of others LLVM decides that by their size."""
    takes_records = function.__code__.co_varnames[:1] in (("self",), ("world",), ("cost",))
    return takes_records and not getattr(function, "is_apart", False)


def _plainly(copy: FunctionType, is_outermost: bool) -> Callable[..., Any]:
    return copy


def _called(function: FunctionType) -> tuple[tuple[str, FunctionType], ...]:
    """The Python functions that a function's code names, by those names."""
    return (_called_of if _is_own(function) else _called_of.__wrapped__)(function)


@cache
def _called_of(function: FunctionType) -> tuple[tuple[str, FunctionType], ...]:
    """See `_called`. Functions of a third party's module may change between two runs of a process."""
    named = ((name, function.__globals__.get(name)) for name in _names_of(function))
    return tuple((name, value) for name, value in named if isinstance(value, FunctionType))


@cache
def _names_of(function: FunctionType) -> tuple[str, ...]:
    """The names of globals and attributes in a function's code, each once."""
    return tuple(dict.fromkeys(_names(function.__code__)))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


@cache
def _hash_of(function: FunctionType) -> bytes:
    """A hash of what a function does. Code itself is no key: Python hashes all of it at every look."""
    return hashlib.sha256(_text_of(function.__code__).encode()).digest()


def _text_of(code: CodeType) -> str:
    """What a function does, without where it stands."""
    constants = [_text_of(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return repr((code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars))


@cache
def _translator() -> bytes:
    """A hash of what makes machine code and runs it."""
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in TRANSLATED_BY)).digest()


@cache
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
    is_own = {str(Path(each.__code__.co_filename).resolve()): _is_own(each) for each in functions}
    found = [
        (str(Path(name or other).resolve()), line or at) for name, line, other, at in PLACE.findall(text)
    ]
    places = [place for place in found if place[0] in is_own]
    foreign = [place for place in places if not is_own[place[0]]]
    return ": ".join([*(f"{Path(name).name}:{line}" for name, line in (foreign or places)[:1]), what])
