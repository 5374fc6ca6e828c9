"""Paths: the data folders, what a name on the command line means, and files written whole or not at all."""

from __future__ import annotations

import glob
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Literal

from cbsim.base.errors import ConfigError, refusals
from cbsim.base.registry import did_you_mean

try:
    import fcntl
except ImportError:  # of Windows
    fcntl = None  # type: ignore[assignment]

DataFolder = Literal["workloads", "configs", "experiments", "calibration"]

YAML_SUFFIXES = (".yaml", ".yml")


@cache
def data_folder(kind: DataFolder) -> Path:
    """The folder of shipped data: the checkout's if cbsim runs from one, else the wheel's copy of it."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent
    if is_file(checkout / "pyproject.toml") and is_folder(checkout / kind):
        return checkout / kind
    return package / "_data" / kind


def install_extra(extra: str) -> str:
    """The command that installs what an optional part of cbsim needs, into a checkout's or else a wheel's."""
    root = data_folder("configs").parent
    return f"pip install 'cbsim[{extra}]'" if root.name == "_data" else f"pip install -e '{root}[{extra}]'"


def cache_folder() -> Path:
    """The user's cache folder, for compiled rules and DataFrames; `CBSIM_CACHE_DIR` names another."""
    named = os.environ.get("CBSIM_CACHE_DIR")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else _home() / ".cache") / "cbsim"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        return Path(tempfile.gettempdir())


def is_file(path: str | Path) -> bool:
    """Whether a file is there; at a name that no file can have there is none."""
    return os.path.isfile(path)  # noqa: PTH113 - `Path.is_file` raises for a name that is too long


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there; at a name that no folder can have there is none."""
    return os.path.isdir(path)  # noqa: PTH112 - as in `is_file`


def yaml_names(folder: Path) -> list[str]:
    """The names of the YAML files in a folder, sorted; empty if there is no such folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_experiment(name: str) -> Path:
    """The experiment file meant by a path or by the name of a shipped one (`quickstart`).

    Raises `ConfigError` with the nearest name if there is neither.
    """
    path = Path(name)
    if is_file(path):
        return path
    folder = data_folder("experiments")
    shipped = folder / f"{name}.yaml"
    if path.name == name and is_file(shipped):
        return display_path(shipped)
    if is_folder(path):
        raise ConfigError(f"{name}: is a folder; expected an experiment file")
    if path.name == name and path.suffix not in YAML_SUFFIXES:
        names = yaml_names(folder)
        hint = did_you_mean(name, names) if names else ""
        raise ConfigError(f"{name}: no such file, and no experiment of that name{hint}")
    siblings = [str(near) for near in path.parent.glob("*") if near.suffix in YAML_SUFFIXES]
    hint = did_you_mean(name, siblings)
    raise ConfigError(f"{name}: no such file{hint if 'did you mean' in hint else ''}")


def display_path(path: Path) -> Path:
    """The path as a user would type it here: relative to the current folder if it lies below."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path


FILE_NAME = "up to 100 letters, digits, blanks and any of _.+=,-"
"""Names that every system can give to a file or a folder."""
_FILE_NAME = re.compile(r"\w([\w .+=,-]{0,98}[\w+=,-])?")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)( *\..*)?", re.IGNORECASE)
"""What Windows takes for a device in any folder."""


def is_file_name(name: str) -> bool:
    """Whether a text can be a file's or a folder's name on any system: it leads nowhere else either."""
    return bool(_FILE_NAME.fullmatch(name)) and not _DEVICE.fullmatch(name)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises `CbsimError` if it can't be written."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A hidden file beside `path`, this thread's own, to be written: in the end it takes its place.

    What killed processes left of the same file is removed, as in `scratch_folder`. Raises `CbsimError` if it
    can't be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{threading.get_native_id()}{_SUFFIX}")
    try:
        with refusals(path, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in _left_of(path):
                with suppress(OSError), _locked(left):
                    left.unlink()
            partial.unlink(missing_ok=True)  # a link that stands there would lead elsewhere
            partial.touch()
            with _locked(partial):
                yield partial
                partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


_SUFFIX = ".partial"


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A new hidden folder beside `target`, on the same file system, removed at the end.

    Those that killed processes have left behind for the same target are removed too: a folder in use is
    locked, and a process loses its locks with its life. They stay where the system has no such locks. Raises
    `OSError`.
    """
    for folder in _left_of(target):
        with suppress(OSError), _locked(folder):
            shutil.rmtree(folder)
    folder = Path(tempfile.mkdtemp(_SUFFIX, f".{target.name}.", target.parent))
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder)


def _left_of(target: Path) -> list[Path]:
    """What processes, killed ones perhaps, have of a file or a folder; nothing where there are no locks."""
    return [*target.parent.glob(f".{glob.escape(target.name)}.*{_SUFFIX}")] if fcntl else []


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file or a folder; raises `BlockingIOError` if another process does."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
