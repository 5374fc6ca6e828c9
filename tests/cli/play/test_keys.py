"""Bytes of a terminal and scripts become keys."""

from __future__ import annotations

import pytest

from cbsim.base.errors import CbsimError
from cbsim.cli.play.terminal import decode, read_script


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        ("s q", ["s", " ", "q"]),
        ("\x1b[A\x1bOB\x1b[C\x1b[D", ["up", "down", "right", "left"]),
        ("\x1b", ["esc"]),
        ("12\r", ["1", "2", "enter"]),
        ("\x7f\x15\x03\x1a", ["backspace", "ctrl-u", "ctrl-c", "ctrl-z"]),
        ("\x1b[200~a\x1b[201~\x1b[1;5C\x1b[15~", ["a"]),
        ("\x01\x00é", ["é"]),
    ],
)
def test_what_a_terminal_sends(sent: str, keys: list[str]) -> None:
    assert list(decode(sent)) == keys


def test_a_script_names_keys_without_a_character() -> None:
    assert read_script("s t48<enter><esc> <") == ["s", " ", "t", "4", "8", "enter", "esc", " ", "<"]


def test_a_wrong_name_is_told_with_the_nearest() -> None:
    with pytest.raises(CbsimError, match="--script: unknown key '<entr>'; did you mean 'enter'"):
        read_script("t4<entr>")
