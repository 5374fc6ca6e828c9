"""The log panel: the last things that happened to requests and settings."""

from __future__ import annotations

from rich.text import Text

from cbsim.cli.play.event_log import Event
from cbsim.cli.play.look import ALERT, FAINT, badge, title
from cbsim.cli.play.replica import Replica

_WIDE = 44
"""Cells from which on each line has room for its time."""


def log_panel(replica: Replica, width: int, height: int) -> list[Text]:
    """At most `height` lines, the latest last."""
    room = max(0, height - 1)
    events = replica.log.events[-room:] if room else []
    return [title("events", width), *(_line(event, width) for event in events)]


def _line(event: Event, width: int) -> Text:
    step = f"{event.step:>4}" if event.step >= 0 else " " * 4
    line = Text().append(f"{step} ", FAINT)
    if width >= _WIDE:
        line.append(f"{event.time_s:>10,.4f} s ", FAINT)
    if event.request is None:
        line.append(event.detail)
        return line
    line.append_text(badge(event.request))
    line.append(f" {event.request.request_id} ")
    line.append(event.what, ALERT if event.what in ("preempted", "rejected") else "")
    if event.detail:
        line.append(f": {event.detail}" if event.what == "rejected" else f", {event.detail}")
    return line
