"""The program on a real pseudo-terminal: it draws in place, takes keys, and leaves all as it was."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import termios
from pathlib import Path

import pytest
from click.testing import CliRunner

from cbsim.cli import main
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import run_experiment
from tests.cli.play.terminals import PLAY, Window

ENTER_OTHER, LEAVE_OTHER = b"\x1b[?1049h", b"\x1b[?1049l"
HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"


def assert_left_clean(game: Window) -> None:
    assert termios.tcgetattr(game.inner_fd) == game.modes_before
    assert game.sent.count(ENTER_OTHER) == game.sent.count(LEAVE_OTHER) > 0
    assert game.sent.rindex(SHOW_CURSOR) > game.sent.rindex(HIDE_CURSOR)


def test_a_game_from_the_start_to_a_saved_experiment(tmp_path: Path) -> None:
    with Window(tmp_path, *PLAY) as game:
        game.wait_for("no step yet: press space for the first")
        assert "4 preemptive  0 steps" in game.text
        assert termios.tcgetattr(game.inner_fd)[3] & (termios.ECHO | termios.ICANON) == 0
        game.type(" ", "1 steps")
        game.type("s\x1b[C", "3 steps")
        game.type("u", "2 steps")
        game.type("t48", "max_tokens_per_step, now 32: 48")
        game.type("\r", "max_tokens_per_step 32 -> 48")
        assert "t max_tokens_per_step 48" in game.text
        game.type("a20 5\r", "added-1 arrives with 20 + 5 tokens")
        game.type("3", "3 chunked_prefill")
        game.type("?", "one step: decided, run and ended")
        game.type(" ", "KV cache")
        game.resize(120, 40)
        game.type("s", "3 steps")
        game.wait_for("f to the end")  # a hint for which a narrow screen has no room
        game.type("r", "5 steps/s")
        game.type("r", "paused")
        game.type("f", "13/13 finished")
        game.type("w", "save as (play-played.yaml)")
        game.type("\r", "written to play-played.yaml and play-played.jsonl")
        os.write(game.fd, b"q")
        assert game.end() == 0
        assert_left_clean(game)
    saved = Experiment.load(tmp_path / "play-played.yaml")
    assert saved.scheduler.type == "chunked_prefill"
    assert run_experiment(saved).summary["num_finished"] == 13


def test_a_signal_that_ends_it_leaves_the_terminal_clean(tmp_path: Path) -> None:
    with Window(tmp_path, *PLAY, "--seed", "3") as game:
        game.wait_for("no step yet")
        game.process.send_signal(signal.SIGTERM)
        assert game.end() == 128 + signal.SIGTERM
        assert_left_clean(game)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_a_shell_stops_it_and_goes_on_with_it(tmp_path: Path) -> None:
    with Window(tmp_path, "bash", "--norc", "--noprofile", "-i") as shell:
        shell.type(f"{shlex.join(PLAY)}\r", "no step yet")
        shell.type("ss\x1a", "Stopped")
        assert shell.sent.count(ENTER_OTHER) == shell.sent.count(LEAVE_OTHER) == 1
        shell.type("echo back; fg\r", "2 steps")
        shell.type("s", "3 steps")
        os.write(shell.fd, b"q")
        shell.wait_for_bytes(LEAVE_OTHER, 2)
        shell.type("echo it ended with $?\r", "it ended with 0")
        assert shell.sent.count(ENTER_OTHER) == 2


def test_without_a_terminal_it_says_what_to_do() -> None:
    ran = CliRunner().invoke(main, ["play"], input="q")
    assert ran.exit_code == 2
    assert ran.output == (
        "cbsim play: needs a terminal to draw on and read keys from; --script KEYS prints the screen\n"
    )
