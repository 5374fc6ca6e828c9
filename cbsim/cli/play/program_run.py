"""Run: a program on a terminal, or driven by a script."""

from __future__ import annotations

import os
import sys
import time

from cbsim.base.errors import CbsimError
from cbsim.cli.play.keys import read_script
from cbsim.cli.play.program import Program
from cbsim.cli.play.screen import MIN_HEIGHT, MIN_WIDTH
from cbsim.cli.play.terminal import Terminal


def play_on_terminal(program: Program) -> None:
    """Until the player quits. Raises `CbsimError` where there is no terminal to play on."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") == "dumb":
        raise CbsimError(
            "cbsim play: needs a terminal to draw on and read keys from; --script KEYS prints the screen"
        )
    with Terminal(sys.stdin.fileno(), sys.stdout.fileno()) as terminal:
        due_s = time.monotonic()
        while not program.is_done:
            terminal.draw(program.frame(*terminal.size))
            pace_s = program.seconds_a_step
            left_s = None if pace_s is None else max(0.0, due_s - time.monotonic())
            for key in terminal.keys(left_s):
                if key == "ctrl-z":
                    terminal.suspend()
                elif key == "ctrl-l":
                    terminal.redraw()
                else:
                    program.press(key)
            if pace_s is None:
                due_s = time.monotonic()
            elif time.monotonic() >= due_s:
                program.tick()
                due_s = time.monotonic() + pace_s


def play_script(program: Program, script: str, size: str) -> str:
    """The screen after the keys of a script, plain, `size` as in `80x24`; raises `CbsimError`."""
    width, height = _read_size(size)
    program.run_script(read_script(script))
    return "\n".join(line.plain.rstrip() for line in program.frame(width, height))


def _read_size(size: str) -> tuple[int, int]:
    width, _, height = size.partition("x")
    try:
        columns, lines = int(width), int(height)
    except ValueError:
        columns = lines = 0
    if columns < MIN_WIDTH or lines < MIN_HEIGHT:
        raise CbsimError(f"--size: got '{size}'; allowed: COLUMNSxLINES, {MIN_WIDTH}x{MIN_HEIGHT} or more")
    return columns, lines
