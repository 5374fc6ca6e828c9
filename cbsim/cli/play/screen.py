"""Screen: a session as lines of text of any size, from 60 x 18 on."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from rich.text import Text

from cbsim.base.units import format_seconds
from cbsim.cli.play.look import AGAIN, ALERT, DONE, FAINT, HERE, LEFT, NOW, TITLE, fitted, side_by_side, title
from cbsim.cli.play.panels import (
    HISTORY_HEIGHT,
    batch_panel,
    history_panel,
    kv_panel,
    link_panel,
    log_panel,
    queue_panel,
)
from cbsim.cli.play.replica import Replica
from cbsim.cli.play.session import Session
from cbsim.cli.play.settings import KEYS, LADDER
from cbsim.core.layout import DOWN, DRAINING, STARTING, STOPPED

MIN_WIDTH, MIN_HEIGHT = 60, 18
_TILE_WIDTH, _TILE_HEIGHT = 76, 14
"""Cells from which on there is room for another replica's panels."""
_TAB = "tab "
_STANDING_WIDTH = 38
"""Cells in which it is told how a replica stands."""
_STATES = {STARTING: "starts", DRAINING: "drains", STOPPED: "stopped", DOWN: "down"}
_LEFT_SHARE = 0.6
_USUAL_TOP = 14
"""Lines for batch and queue, where there is room; more where more requests may run."""
_HINTS = (
    ("s", "step"),
    ("r", "run"),
    ("u", "undo"),
    ("1-5", "scheduler"),
    ("tcnk", "limits"),
    ("a", "add"),
    ("w", "save"),
    ("+ -", "pace"),
    ("f", "to the end"),
    ("R", "restart"),
    (":", "any setting"),
)
"""From the most useful one."""
_LAST_HINTS = (("?", "help"), ("q", "quit"))
"""There is always room for these."""
_KEY_WIDTH = 10
_HELP = f"""\
# keys
space s   one step: decided, run and ended
r         run, or pause; + and - change the pace
f         go to the end; any key stops
u         undo the last step, change or addition
1 - 5     static, continuous, chunked_prefill, preemptive, vllm: those who run are preempted, and queue at \
the new scheduler
t c n     max_tokens_per_step, chunk_size, max_num_seqs
k         number of KV blocks of each replica; only free ones can go
:         any setting of the scheduler, as in policy=priority
a         add a request that arrives now
tab       show the next replica, {HERE}; settings are those of its pool
R         play from the start, with settings and requests as they are now
w         save that as an experiment for cbsim run
q         quit
# screen
batch     {DONE} before, {NOW} in the step, {LEFT} to come; again: preempted; kept: not fetched
queue     prompt+answer, time waited, prio if any, {AGAIN}2 if preempted twice
KV cache  A: a block of request A; a: reserved, or for KV on its way, empty
below it  tokens, blocks and queue of the last steps
replicas  how many run, wait, are kept until fetched, fetch; blocks in use
link      KV on its way from prefill to decode: bytes, layer, rate, time left
"""


@dataclass(slots=True)
class Status:
    """What the program shows of itself, beside the session."""

    pace: str = "paused"
    message: str = ""
    is_alert: bool = False
    """Whether the message is of something that went wrong."""
    prompt: str | None = None
    """What is being asked and typed; takes the place of the message."""
    shows_help: bool = False


def draw(session: Session, status: Status, width: int, height: int) -> list[Text]:
    """`height` lines of `width` cells."""
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        notice = f"{width} x {height} is too small: make it {MIN_WIDTH} x {MIN_HEIGHT}, or press q to quit"
        lines = [Text(line) for line in textwrap.wrap(notice, width)]
    elif status.shows_help:
        lines = [*_help_lines(width)[: height - 1], Text()]
    else:
        lines = _panels(session, status, width, height)
    lines += [Text()] * (height - len(lines))
    return [fitted(line, width) for line in lines[:height]]


def _panels(session: Session, status: Status, width: int, height: int) -> list[Text]:
    fleet = session.fleet
    lines = [_header(session, status), _settings(session), *_standings(session, width, height // 6)]
    lines += link_panel(fleet, width, 2 + (height - MIN_HEIGHT) // 6)
    message = Text(status.message, ALERT if status.is_alert else TITLE)
    if status.prompt is not None:
        message = Text.assemble(status.prompt, (" ", ALERT))
    last = [_figures(session), message, _hints(width)]
    room, several = height - len(lines) - len(last), len(fleet.replicas)
    columns = min(several, max(1, width // _TILE_WIDTH))
    rows = min(-(-several // columns), max(1, room // _TILE_HEIGHT))
    first = session.replica.number // (columns * rows) * columns * rows
    shown = fleet.replicas[first : first + columns * rows]
    tile_width = (width - columns + 1) // columns
    for row in range(rows):
        tile_height = room // rows + (row < room % rows)
        beside = shown[row * columns : (row + 1) * columns]
        tiles = [_tile(session, replica, tile_width, tile_height) for replica in beside]
        lines += tiles[0]
        for tile in tiles[1:]:
            left = lines[-tile_height:]
            widths = (left[0].cell_len, tile_width)
            lines[-tile_height:] = side_by_side(left, tile, widths, tile_height)
    return [*lines, *last]


def _tile(session: Session, replica: Replica, width: int, height: int) -> list[Text]:
    """A replica's panels: `height` lines of `width` cells."""
    fleet, left = session.fleet, round((width - 1) * _LEFT_SHARE)
    widths = (left, width - 1 - left)
    top = min(height // 2, max(_USUAL_TOP, getattr(replica.experiment.scheduler, "max_num_seqs", 0) + 3))
    name = ""
    if len(fleet.replicas) > 1:
        name = f"{HERE} {replica.name}" if replica is session.replica else replica.name
    batch = batch_panel(replica, widths[0], top, name)
    queue = queue_panel(replica, fleet.next_arrival_s, fleet.transfers, widths[1], top)
    lines = [*side_by_side(batch, queue, widths, top), Text(" " * width)]
    bottom = height - top - 1
    history = history_panel(replica, widths[0]) if bottom >= 2 * HISTORY_HEIGHT else []
    blocks = kv_panel(replica, widths[0], bottom - len(history)) + history
    return lines + side_by_side(blocks, log_panel(replica, widths[1], bottom), widths, bottom)


def _header(session: Session, status: Status) -> Text:
    name = session.experiment.scheduler.type
    rung = f"{LADDER.index(name) + 1} " if name in LADDER else ""
    under_way = len(session.replica.stepper.under_way)
    return Text.assemble(
        ("cbsim play  ", FAINT),
        session.experiment.name,
        (f"  {rung}{name}", TITLE),
        f"  {session.num_steps:,} steps  {session.fleet.now_s:,.4f} s",
        (f"  {under_way} under way" if under_way else "", FAINT),
        (f"  {status.pace}", TITLE),
    )


def _settings(session: Session) -> Text:
    scheduler = session.replica.experiment.scheduler
    line = Text()
    for key, name in KEYS.items():
        if hasattr(scheduler, name):
            line.append(f"{key} ", TITLE).append(f"{name} {getattr(scheduler, name)}  ")
    return line.append("k ", TITLE).append(f"blocks {session.replica.stepper.own.num_blocks}")


def _standings(session: Session, width: int, height: int) -> list[Text]:
    """How all replicas stand, the one that is shown in bold; nothing where there is one.

    At most `height` lines, then those of others around it.
    """
    replicas = session.fleet.replicas
    if len(replicas) == 1:
        return []
    lines = []
    per_line = max(1, (width - len(_TAB)) // _STANDING_WIDTH)
    num_before = max(0, session.replica.number // per_line + 1 - height) * per_line
    for first in range(num_before, min(len(replicas), num_before + height * per_line), per_line):
        line = Text(" " * len(_TAB) if first > num_before else _TAB, TITLE)
        for replica in replicas[first : first + per_line]:
            told = Text(_standing(replica), TITLE if replica is session.replica else FAINT)
            line.append_text(fitted(told, _STANDING_WIDTH - 1)).append(" ")
        lines.append(line)
    return lines


def _standing(replica: Replica) -> str:
    own = replica.stepper.own
    told = f"{own.num_running} run {own.num_waiting} wait"
    if replica.setup.role == "prefill":
        told += f" {own.num_sending} kept"
    if replica.setup.role == "decode":
        told += f" {own.num_holding} fetch"
    told = _STATES.get(own.state, told)
    return f"{replica.name}: {told} {replica.stepper.num_blocks_used / own.num_blocks:.0%}"


def _figures(session: Session) -> Text:
    replicas, score, stepper = session.fleet.replicas, session.fleet.score, session.replica.stepper
    share = f"  KV {stepper.num_blocks_used / stepper.own.num_blocks:.0%}" if len(replicas) == 1 else ""
    total = session.num_requests
    ended = f"{score.num_finished}{'' if total is None else f'/{total}'} finished"
    if score.num_rejected:
        ended += f", {score.num_rejected} rejected"
    count = sum(replica.log.num_preemptions for replica in replicas)
    preemptions = "1 preemption" if count == 1 else f"{count} preemptions"
    return Text(
        f"{ended}  TTFT {format_seconds(score.mean_ttft_s)}  TPOT {format_seconds(score.mean_tpot_s)}  "
        f"{preemptions}{share}"
    )


def _hints(width: int) -> Text:
    """As many as there is room for."""
    for shown in range(len(_HINTS), -1, -1):
        line = Text()
        for key, meaning in (*_HINTS[:shown], *_LAST_HINTS):
            line.append(f"{'  ' if line else ''}{key}", TITLE).append(f" {meaning}", FAINT)
        if line.cell_len <= width:
            break
    return line


def _help_lines(width: int) -> list[Text]:
    lines = []
    for entry in _HELP.splitlines():
        if entry.startswith("# "):
            lines.append(title(entry[2:], width))
            continue
        first, *others = textwrap.wrap(entry, width, subsequent_indent=" " * _KEY_WIDTH)
        lines.append(Text.assemble((first[:_KEY_WIDTH], TITLE), first[_KEY_WIDTH:]))
        lines += map(Text, others)
    return [*lines, Text("any key goes back", FAINT)]
