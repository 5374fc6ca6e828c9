"""Keys: from the bytes that a terminal sends, or a script that is typed, to keys by name."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cbsim.base.errors import CbsimError
from cbsim.base.registry import did_you_mean

_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|O[@-~])|[\s\S]")
_NAMES = {
    "\r": "enter",
    "\n": "enter",
    "\x1b": "esc",
    "\x7f": "backspace",
    "\b": "backspace",
    "\x03": "ctrl-c",
    "\x04": "ctrl-d",
    "\x0c": "ctrl-l",
    "\x15": "ctrl-u",
    "\x1a": "ctrl-z",
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1b[C": "right",
    "\x1b[D": "left",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1bOC": "right",
    "\x1bOD": "left",
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
