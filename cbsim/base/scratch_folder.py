"""Scratch folders: where something is written before it takes its place, whole."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SUFFIX = ".partial"


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A new hidden folder beside `target`, on the same file system, removed at the end.

    Those that killed processes have left behind for the same target are removed too: a folder in use is
    locked, and a process loses its locks with its life. Raises `OSError`.
    """
    for folder in target.parent.glob(f".{target.name}.*{_SUFFIX}"):
        with suppress(OSError), _locked(folder):
            shutil.rmtree(folder)
    folder = Path(tempfile.mkdtemp(_SUFFIX, f".{target.name}.", target.parent))
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; raises `BlockingIOError` if another process does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
