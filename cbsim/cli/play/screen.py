"""Screen: a session as lines of text of any size, from 60 x 18 on."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from rich.text import Text

from cbsim.base.units import format_seconds
from cbsim.cli.play.help import help_lines, hints
from cbsim.cli.play.look import ALERT, FAINT, TITLE, fitted, side_by_side
from cbsim.cli.play.replica_panels import HISTORY_HEIGHT, history_panel, kv_panel, log_panel
from cbsim.cli.play.request_panels import batch_panel, queue_panel
from cbsim.cli.play.session import Session
from cbsim.cli.play.settings import KEYS, LADDER

MIN_WIDTH, MIN_HEIGHT = 60, 18
_FRAME = 6
"""Lines beside the panels: two of settings, figures, message, keys, and a blank one."""
_LEFT_SHARE = 0.6
_USUAL_TOP = 14
"""Lines for batch and queue, where there is room; more where more requests may run."""


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
        lines = [*help_lines(width)[: height - 1], Text()]
    else:
        lines = _panels(session, status, width, height)
    lines += [Text()] * (height - len(lines))
    return [fitted(line, width) for line in lines[:height]]


def _panels(session: Session, status: Status, width: int, height: int) -> list[Text]:
    replica = session.replica
    left = round((width - 1) * _LEFT_SHARE)
    widths = (left, width - 1 - left)
    room = height - _FRAME
    top = min((room + 1) // 2, max(_USUAL_TOP, getattr(session.experiment.scheduler, "max_num_seqs", 0) + 3))
    lines = [_header(session, status), _settings(session)]
    lines += side_by_side(
        batch_panel(replica, widths[0], top), queue_panel(replica, widths[1], top), widths, top
    )
    lines.append(Text())
    bottom = room - top
    if bottom >= 2 * HISTORY_HEIGHT:
        blocks = [*kv_panel(replica, widths[0], bottom - HISTORY_HEIGHT), *history_panel(replica, widths[0])]
    else:
        blocks = kv_panel(replica, widths[0], bottom)
    lines += side_by_side(blocks, log_panel(replica, widths[1], bottom), widths, bottom)
    return [*lines, _figures(session), _message(status), hints(width)]


def _header(session: Session, status: Status) -> Text:
    name = session.experiment.scheduler.type
    rung = f"{LADDER.index(name) + 1} " if name in LADDER else ""
    line = Text().append("cbsim play  ", FAINT)
    line.append(session.experiment.name)
    line.append(f"  {rung}{name}", TITLE)
    line.append(f"  {session.num_steps:,} steps  {session.replica.now_s:,.4f} s")
    under_way = len(session.replica.stepper.under_way)
    if under_way:
        line.append(f"  {under_way} under way", FAINT)
    line.append(f"  {status.pace}", TITLE)
    return line


def _settings(session: Session) -> Text:
    scheduler = session.experiment.scheduler
    line = Text()
    for key, setting in KEYS.items():
        name = setting.rpartition(".")[2]
        if hasattr(scheduler, name):
            line.append(f"{key} ", TITLE)
            line.append(f"{name} {getattr(scheduler, name)}  ")
    line.append("k ", TITLE)
    line.append(f"blocks {session.replica.stepper.own.num_blocks}")
    return line


def _figures(session: Session) -> Text:
    replica, score, stepper = session.replica, session.replica.score, session.replica.stepper
    total = session.num_requests
    ended = (
        f"{score.num_finished}/{total} finished" if total is not None else f"{score.num_finished} finished"
    )
    if score.num_rejected:
        ended += f", {score.num_rejected} rejected"
    count = replica.log.num_preemptions
    preemptions = "1 preemption" if count == 1 else f"{count} preemptions"
    return Text(
        f"{ended}  TTFT {format_seconds(score.mean_ttft_s)}  TPOT {format_seconds(score.mean_tpot_s)}  "
        f"{preemptions}  KV {stepper.num_blocks_used / stepper.own.num_blocks:.0%}"
    )


def _message(status: Status) -> Text:
    if status.prompt is not None:
        line = Text(status.prompt)
        line.append(" ", ALERT)
        return line
    return Text(status.message, ALERT if status.is_alert else TITLE)
