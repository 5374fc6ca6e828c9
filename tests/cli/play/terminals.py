"""A real pseudo-terminal with a program in it, and an emulator that knows what is on its screen."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pyte

PATIENCE_S = 20.0
"""How long something may take on a busy machine before it counts as never."""
_START = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
"""Makes the pseudo-terminal the controlling one, as a window's is, and becomes the program."""


PLAY = (sys.executable, "-m", "cbsim", "play")


class Window:
    """A program on a terminal of its own: type keys, wait for what should appear."""

    def __init__(self, folder: Path, *command: str, size: tuple[int, int] = (80, 24)) -> None:
        self.screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self.screen)
        self.fd, self.inner_fd = os.openpty()
        self.resize(*size)
        self.modes_before = termios.tcgetattr(self.inner_fd)
        self.sent = b""
        """All that the program has written."""
        environment = {**os.environ, "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, *command],
            stdin=self.inner_fd,
            stdout=self.inner_fd,
            stderr=self.inner_fd,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self.fd)
        os.close(self.inner_fd)

    @property
    def text(self) -> str:
        """What is on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    def resize(self, columns: int, lines: int) -> None:
        """As when a window is dragged."""
        self.screen.resize(lines, columns)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: str, wait_for: str) -> None:
        """Type keys and wait until something is on the screen."""
        os.write(self.fd, keys.encode())
        self.wait_for(wait_for)

    def wait_for(self, text: str) -> None:
        """Read until something is on the screen."""
        self._wait(lambda: text in self.text, text)

    def wait_for_bytes(self, sent: bytes, count: int) -> None:
        """Read until something has been sent so many times."""
        self._wait(lambda: self.sent.count(sent) == count, repr(sent))

    def end(self) -> int:
        """Wait for the program to end; its exit code."""
        code = self.process.wait(PATIENCE_S)
        while self._read(timeout_s=0.0):
            pass
        return code

    def _wait(self, holds: Callable[[], bool], name: str) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < until_s, f"never saw {name}:\n{self.text}"
            self._read()

    def _read(self, timeout_s: float = 1.0) -> bool:
        if not select.select([self.fd], [], [], timeout_s)[0]:
            return False
        sent = os.read(self.fd, 65536)
        self.sent += sent
        self._stream.feed(sent)
        return True
