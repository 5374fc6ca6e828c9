"""The errors a user can cause, a line per mistake, and which third party's part an error comes from."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


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


@contextmanager
def refusals(path: Path, done: str, error_class: type[CbsimError] = CbsimError) -> Iterator[None]:
    """Raise an error of ours for what the system says against a path being read, written, removed."""
    try:
        yield
    except OSError as error:
        raise error_class(f"{path}: can't be {done}: {error.strerror or error}") from error


OWN = "cbsim"
"""The package whose errors are nobody else's."""


def told_in_one_line(error: BaseException, module: str) -> str:
    """An error's type and message with the innermost line of `module`'s package that it passed through.

    As in `KeyError: 'r3' (shortest.py:28)`; without a line where the error passed through none. The words
    of a `CbsimError` are kept as they are.
    """
    if isinstance(error, CbsimError):
        return " ".join(str(error).split())
    told = " ".join(f"{type(error).__name__}: {error}".split())
    places = [
        f"{Path(frame.f_code.co_filename).name}:{line}"
        for frame, line in _frames(error)
        if _package(frame.f_globals.get("__name__", "")) == _package(module)
    ]
    return f"{told} ({places[-1]})" if places else told


def plugin_error(error: Exception, parts: Mapping[str, type], when: str = "") -> PluginError | None:
    """The error as one of the part it comes from; `None` where all parts are cbsim's own.

    `parts` maps kinds ("scheduler", "cost model") to classes. Of several by third parties the one of which a
    method was entered last is named, and the first where none was under way: it may have handed over what the
    error is about. `when` follows "failed".
    """
    frames = [frame for frame, _ in _frames(error)]

    def depth(named: tuple[str, type]) -> int:
        return max((place for place, frame in enumerate(frames) if _is_of(frame, named[1])), default=-1)

    foreign = [(kind, part) for kind, part in parts.items() if _package(part.__module__) != OWN]
    if not foreign:
        return None
    kind, part = max(foreign, key=depth)
    return PluginError(f"{kind} {part.__name__} failed{when}: {told_in_one_line(error, part.__module__)}")


@contextmanager
def blaming(kind: str, part: type) -> Iterator[None]:
    """What a third party's part raises in here becomes a `PluginError`; an `OSError` stays what it is."""
    try:
        yield
    except (CbsimError, OSError):
        raise
    except Exception as error:
        failure = plugin_error(error, {kind: part})
        if failure is None:
            raise
        raise failure from error


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """Each frame that the error passed through, with the line, the innermost last."""
    frames = list(traceback.walk_tb(error.__traceback__))
    # SimPy raises a copy of what a process raised, from the original.
    return frames + _frames(error.__cause__) if error.__cause__ else frames


def _is_of(frame: FrameType, part: type) -> bool:
    """Whether a frame is a method's of an instance, or runs a plain function that stands in the class."""
    return isinstance(frame.f_locals.get("self"), part) or any(
        getattr(value, "__code__", None) is frame.f_code
        for each in part.__mro__
        for value in vars(each).values()
    )


def _package(module: str) -> str:
    return module.partition(".")[0]


def damage() -> tuple[type[Exception], ...]:
    """What reading a damaged Parquet file raises; names in it may be no text."""
    import pyarrow as pa

    return OSError, pa.ArrowException, UnicodeDecodeError
