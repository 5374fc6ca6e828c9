"""The queue panel: who waits, and why the first of them does."""

from __future__ import annotations

import textwrap

from rich.text import Text

from cbsim.base.units import format_seconds
from cbsim.cli.play.look import AGAIN, FAINT, TITLE, badge, title
from cbsim.cli.play.replica import Replica
from cbsim.workload.request import Request

_MAX_NAME = 9


def queue_panel(replica: Replica, width: int, height: int) -> list[Text]:
    """At most `height` lines; the queue is in the order in which the last decision found it."""
    waiting = replica.stepper.waiting(replica.decided_at_s)
    lines = [title(f"queue: {len(waiting)}", width)]
    if not waiting:
        at_s = replica.next_arrival_s
        note = "nobody will come" if at_s is None else f"the next comes at {format_seconds(at_s)}"
        return [*lines, Text(note, FAINT)]
    reason = textwrap.wrap(_reason(replica, waiting[0]), width, max_lines=3, placeholder=" …")
    lines += [Text(line, TITLE) for line in reason]
    room = height - len(lines)
    shown = waiting if len(waiting) <= room else waiting[: max(0, room - 1)]
    name = min(_MAX_NAME, max((len(request.request_id) for request in shown), default=0))
    prompt = max((len(str(request.num_prompt_tokens)) for request in shown), default=0)
    for request in shown:
        line = badge(request)
        line.append(f" {request.request_id[:name]:<{name}} {request.num_prompt_tokens:>{prompt}}")
        line.append(f"+{request.num_output_tokens}")
        line.append(_remarks(request, replica.now_s), FAINT)
        lines.append(line)
    if len(shown) < len(waiting):
        lines.append(Text(f"and {len(waiting) - len(shown)} more", FAINT))
    return lines


def _reason(replica: Replica, head: Request) -> str:
    if replica.head_reason is not None and replica.head_reason[0] is head:
        return f"{head.request_id} waits: {replica.head_reason[1]}"
    return f"{head.request_id} waits for the next decision"


def _remarks(request: Request, now: float) -> str:
    remarks = f" {format_seconds(now - request.waiting_since_s)}"
    if request.priority:
        remarks += f" prio {request.priority}"
    if request.num_preemptions:
        remarks += f" {AGAIN}{request.num_preemptions}"
    return remarks
