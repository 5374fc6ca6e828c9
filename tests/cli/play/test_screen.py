"""The screen says what the session is, at any size, and without any colour."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
from rich.text import Text

from cbsim.cli.play.look import bar, letter
from cbsim.cli.play.panels import columns, history_panel, kv_panel
from cbsim.cli.play.screen import MIN_HEIGHT, MIN_WIDTH, Status, draw
from cbsim.cli.play.session import Session
from cbsim.core.layout import NOBODY
from tests.cli.play.games import SCHEDULERS, experiment

SIZES = [(60, 18), (80, 24), (81, 25), (140, 45), (300, 90)]


SHOWN = """\
cbsim play  experiment  4 preemptive  2 steps  5.0000 s  paused
t max_tokens_per_step 24  c chunk_size 16  n max_num_seqs 4  k blocks 32
─ batch of step 1 2.50 s ────────────────────── ─ queue: 2 ─────────────────────
budget 24/24 ▓▓▓▓▓▓▓▓▓▓▓▓ 0 decodes, 24 prefill r3 waits: no budget: all 24
A r0 chunk   +16 ██████▓▓▓▓▓░░░│░░░ 32/40  0/10 tokens are taken
B r1 chunk    +4 ████▓▓│▓░░░░░░░░░░ 12/12  1/24 D r3 24+18 2.50 s
C r2 chunk    +4 ▓░░░░░░░░░░░░│░░░░  4/48  0/14 E r4  8+30 2.00 s prio 1



─ KV cache 12/32 blocks of 4 tokens ─────────── ─ events ───────────────────────
 0 A A A A B B A A A A B C · · · ·                 0 A r0 admitted
16 · · · · · · · · · · · · · · · ·                 0 B r1 admitted
A filled  · free                                   1 C r2 admitted



0/6 finished  TTFT 5.00 s  TPOT -  0 preemptions  KV 38%

s step  r run  u undo  1-5 scheduler  tcnk limits  a add  w save  ? help  q quit"""


def text_of(lines: list[Text]) -> str:
    return "\n".join(line.plain.rstrip() for line in lines)


def played(folder: Path, scheduler: str, num_steps: int, **settings: object) -> Session:
    session = Session(experiment(folder, SCHEDULERS[scheduler], **settings))  # type: ignore[arg-type]
    for _ in range(num_steps):
        session.step()
    return session


def test_a_screen_worked_by_hand(tmp_path: Path) -> None:
    # Step 0: 16 tokens of r0 and 8 of r1 fill the budget of 24, in 1 + 24/16 s. Step 1: 16 and the last 4 of
    # r1, which emits, leave 4 for r2; r3 arrived at 2.5 s, and nothing is left for it.
    session = played(tmp_path, "preemptive", 2)
    assert text_of(draw(session, Status(), 80, 20)) == SHOWN


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_line_has_the_width_of_the_screen(
    scheduler: str, width: int, height: int, tmp_path: Path
) -> None:
    session = played(tmp_path, scheduler, 6)
    for status in (Status(), Status(shows_help=True), Status(prompt="x" * 400), Status(message="é" * 90)):
        lines = draw(session, status, width, height)
        assert len(lines) == height
        assert {line.cell_len for line in lines} == {width}
        assert not any("\n" in line.plain for line in lines)


@pytest.mark.parametrize(("width", "height"), [(MIN_WIDTH - 1, 24), (80, MIN_HEIGHT - 1), (1, 1)])
def test_a_small_terminal_says_so(width: int, height: int, tmp_path: Path) -> None:
    lines = draw(played(tmp_path, "vllm", 1), Status(), width, height)
    assert len(lines) == height
    assert all(line.cell_len == width for line in lines)
    assert f"{width} x {height} is too small"[:width] in lines[0].plain[:width] or width < 4


def test_a_tiny_terminal_has_room_for_what_to_do(tmp_path: Path) -> None:
    lines = draw(played(tmp_path, "vllm", 1), Status(), 20, 5)
    told = " ".join(line.plain.strip() for line in lines).strip()
    assert told == f"20 x 5 is too small: make it {MIN_WIDTH} x {MIN_HEIGHT}, or press q to quit"


@pytest.mark.parametrize("num_steps", [1, 3, 6, 9])
@pytest.mark.parametrize("scheduler", ["static", "chunked_prefill", "preemptive"])
def test_each_block_shows_the_letter_of_who_holds_it(scheduler: str, num_steps: int, tmp_path: Path) -> None:
    replica = played(tmp_path, scheduler, num_steps).replica
    expected = ["·"] * replica.stepper.own.num_blocks
    for request in replica.present:
        for position, block in enumerate(replica.stepper.blocks_of(request)):
            is_filled = position * replica.stepper.own.block_size < request.num_computed_tokens
            expected[block] = letter(request) if is_filled else letter(request).lower()
    rows = [line.plain for line in kv_panel(replica, 80, 12)][1:-1]
    cells = [cell for row in rows for cell in re.sub(r"^ *\d+ ", "", row).replace(" ", "")]
    assert cells == expected


def test_cached_and_shared_blocks_are_told_apart(tmp_path: Path) -> None:
    session = played(tmp_path, "preemptive", 2, shares_prefix=True)
    assert "&" in "".join(line.plain for line in kv_panel(session.replica, 80, 12)[1:-1])
    while session.step():
        pass
    marks = "".join(line.plain for line in kv_panel(session.replica, 80, 12)[1:-1])
    blocks = session.replica.stepper.records.blocks[:32]
    assert marks.count("=") == sum(block.key != NOBODY for block in blocks) > 0


def test_more_blocks_than_cells_share_them(tmp_path: Path) -> None:
    kv_cache = {"num_blocks": 27_000, "block_size": 16}
    session = played(tmp_path, "vllm", 2, kv_cache=kv_cache)
    lines = kv_panel(session.replica, 47, 9)
    assert len(lines) <= 9
    assert "97 a cell" in lines[0].plain
    assert lines[1].plain.startswith("    0 A")


def test_the_history_shows_each_step_in_a_column(tmp_path: Path) -> None:
    replica = played(tmp_path, "preemptive", 3).replica
    steps = replica.stepper.world.records.log.steps[:3]
    assert [step.num_prefill_tokens + step.num_decode_seqs for step in steps] == [24, 24, 24]
    assert [step.num_waiting for step in steps] == [0, 1, 2]
    rows = [line.plain for line in history_panel(replica, 47)]
    assert rows[1] == "tokens ███"
    assert rows[3] == "queue   ▄█"
    assert columns([0, 1, 50, 99, 100, 120], 100) == " ▁▄▇██"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ((0, 0, 10, 5), "░░░░░"),
        ((0, 1, 1000, 5), "▓░░░░"),
        ((999, 0, 1000, 5), "████░"),
        ((999, 1, 1000, 5), "████▓"),
        ((1000, 0, 1000, 5), "█████"),
        ((4, 4, 8, 4), "██▓▓"),
        ((1, 0, 0, 3), "░░░"),
        ((1, 1, 2, 0), ""),
        ((1, 1, 2, 1), "▓"),
    ],
)
def test_bars_hide_neither_what_is_there_nor_what_is_left(
    arguments: tuple[int, int, int, int], shown: str
) -> None:
    assert bar(*arguments) == shown


def test_a_colour_is_for_the_letter_alone(tmp_path: Path) -> None:
    session = played(tmp_path, "preemptive", 6)
    for line in draw(session, Status(), 80, 24)[2:12]:
        assert line.style == ""
        for span in line.spans:
            if getattr(span.style, "bgcolor", None) is not None:
                assert line.plain[span.start : span.end] in string.ascii_uppercase
