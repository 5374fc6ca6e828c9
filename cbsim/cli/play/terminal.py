"""Terminal: keys by name and full-screen drawing on a POSIX terminal, left as found; a program on it."""

from __future__ import annotations

import codecs
import io
import os
import re
import select
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from types import FrameType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from cbsim.base.errors import CbsimError
from cbsim.base.registry import did_you_mean
from cbsim.cli.play.program import Program

_SIGNALS = (signal.SIGWINCH, signal.SIGTERM, signal.SIGHUP)
_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|O[@-~])|[\s\S]")
_ARROWS = {"A": "up", "B": "down", "C": "right", "D": "left"}
_NAMES = {
    "\r": "enter",
    "\n": "enter",
    "\t": "tab",
    "\x1b": "esc",
    "\x7f": "backspace",
    "\b": "backspace",
    **{chr(ord(letter) - ord("a") + 1): f"ctrl-{letter}" for letter in "cdluz"},
    **{f"\x1b{kind}{letter}": arrow for kind in "[O" for letter, arrow in _ARROWS.items()},
}
_WRITTEN = re.compile(r"<([a-z-]+)>|[\s\S]")


def decode(text: str) -> Iterator[str]:
    """Keys by name, printable ones as they are; control sequences that mean nothing here are left out."""
    for sequence in _SEQUENCE.findall(text):
        if sequence in _NAMES:
            yield _NAMES[sequence]
        elif sequence.isprintable():
            yield sequence


def read_script(script: str) -> list[str]:
    """Keys as one types them, with `<enter>`, `<esc>` and other names for those without a character.

    Raises `CbsimError` for an unknown name.
    """
    keys = []
    known = sorted(set(_NAMES.values()))
    for found in _WRITTEN.finditer(script):
        name = found[1]
        if name is not None and name not in known:
            raise CbsimError(f"--script: unknown key '<{name}>'{did_you_mean(name, known)}")
        keys.append(name or found[0])
    return keys


class Terminal:
    """A terminal that is ours until it is closed: raw keys in, whole frames out.

    Keys that would send signals come as keys (`ctrl-c`), so that nothing stops half way; a signal that ends
    the process does so after the terminal is restored.
    """

    def __init__(self, input_fd: int) -> None:
        """Keys are read from `input_fd`; frames go to standard output."""
        self._in = input_fd
        self._console = Console()
        self._live = Live(
            console=self._console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._saved = termios.tcgetattr(input_fd)
        self._wake_in, self._wake_out = os.pipe()
        for number in _SIGNALS:
            signal.signal(number, self._take_signal)
        os.set_blocking(self._wake_out, False)
        signal.set_wakeup_fd(self._wake_out, warn_on_full_buffer=False)
        self._take()

    def close(self) -> None:
        """Leave the terminal as it was found."""
        self._give_back()
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.close(self._wake_in)
        os.close(self._wake_out)

    def keys(self, timeout_s: float | None) -> Iterator[str]:
        """Keys pressed by now; waits for some, for another size or `timeout_s` seconds (`None`: for ever).

        `ctrl-d` stands for the end of the input.
        """
        ready, _, _ = select.select([self._in, self._wake_in], [], [], timeout_s)
        if self._wake_in in ready:
            os.read(self._wake_in, io.DEFAULT_BUFFER_SIZE)
        if self._in in ready:
            try:
                sent = os.read(self._in, io.DEFAULT_BUFFER_SIZE)
            except OSError:  # the terminal is gone
                sent = b""
            yield from decode(self._decoder.decode(sent)) if sent else ["ctrl-d"]

    def draw(self, frame: Callable[[int, int], list[Text]]) -> None:
        """Show a frame, made for so many columns and lines."""
        self._console.size = size = os.get_terminal_size()  # whatever $COLUMNS said at the start
        self._live.update(Group(*frame(*size)), refresh=True)

    def suspend(self) -> None:
        """Stop as Ctrl-Z does elsewhere, with the terminal as it was; go on with it as ours."""
        self._give_back()
        os.kill(0, signal.SIGTSTP)
        self._take()

    def _take(self) -> None:
        modes = termios.tcgetattr(self._in)
        modes[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
        termios.tcsetattr(self._in, termios.TCSADRAIN, modes)
        self._live.start()

    def _give_back(self) -> None:
        self._live.stop()
        termios.tcsetattr(self._in, termios.TCSADRAIN, self._saved)

    def _take_signal(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGWINCH:
            raise SystemExit(128 + number)


def play_on_terminal(program: Program) -> None:
    """Until the player quits. Raises `CbsimError` where there is no terminal to play on."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") == "dumb":
        raise CbsimError(
            "cbsim play: needs a terminal to draw on and read keys from; --script KEYS prints the screen"
        )
    with closing(Terminal(sys.stdin.fileno())) as terminal:
        due_s = time.monotonic()
        while not program.is_done:
            terminal.draw(program.frame)
            pace_s = program.seconds_a_step
            left_s = None if pace_s is None else max(0.0, due_s - time.monotonic())
            for key in terminal.keys(left_s):
                if key == "ctrl-z":
                    terminal.suspend()
                elif key != "ctrl-l":  # which draws anew, as any key does
                    program.press(key)
            if pace_s is None:
                due_s = time.monotonic()
            elif time.monotonic() >= due_s:
                program.tick()
                due_s = time.monotonic() + pace_s
