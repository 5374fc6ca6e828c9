"""Spool: text that grows during a run, kept in memory or, if it is much, in a nameless temporary file."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import SpooledTemporaryFile

from cbsim.base.units import MIB

MAX_IN_MEMORY = 16 * MIB


class Spool:
    """Text to be written to a file once it is known that there is to be one, and where."""

    def __init__(self, max_in_memory: int = MAX_IN_MEMORY) -> None:
        """Beyond `max_in_memory` bytes it moves to disk."""
        self._file = SpooledTemporaryFile(max_in_memory)  # noqa: SIM115 - lives as long as the spool

    def write(self, text: str) -> None:
        """Add text."""
        self._file.write(text.encode("utf-8"))

    def text(self) -> str:
        """All of it."""
        self._file.seek(0)
        return self._file.read().decode("utf-8")

    def write_to(self, path: Path) -> None:
        """Copy all of it to a file, which is replaced."""
        self._file.seek(0)
        with path.open("wb") as target:
            shutil.copyfileobj(self._file, target)

    def close(self) -> None:
        """Let go of it."""
        self._file.close()

    def __del__(self) -> None:
        self.close()
