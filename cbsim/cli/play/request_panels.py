"""Panels of requests: the batch, what its step computed of whom; the queue, and why its first one waits."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from rich.text import Text

from cbsim.base.units import format_seconds
from cbsim.cli.play.look import AGAIN, FAINT, TITLE, badge, bar, title
from cbsim.cli.play.replica import UNLIMITED, Replica
from cbsim.core.stepping import Slice
from cbsim.workload.request import Request, RequestState

_MAX_BAR = 60
_MAX_NAME = 9
_BESIDE = 13
"""Cells of a row of the batch beside name, count, bar and standing."""
T = TypeVar("T")


class _Row(NamedTuple):
    """A request of the batch, or one that runs and got nothing."""

    request: Request
    part: Slice | None

    @property
    def kind(self) -> str:
        """What the step did for it."""
        request, part = self
        if part is None:
            return "nothing"
        if not part.is_prefill:
            return "decode"
        if part.num_preemptions:
            return "again"
        is_whole = part.emits and part.num_computed_tokens <= request.num_cached_tokens
        return "prompt" if is_whole else "chunk"

    @property
    def num_tokens(self) -> str:
        """Tokens computed in the step."""
        return f"+{self.part.num_tokens}" if self.part else ""

    @property
    def standing(self) -> str:
        """Tokens of the prompt that are computed, tokens of the answer that are out."""
        request = self.request
        if request.state == RequestState.FINISHED:
            return "ended"
        prompt = f"{min(request.num_computed_tokens, request.num_prompt_tokens)}/{request.num_prompt_tokens}"
        return f"{prompt} {request.num_generated_tokens:>2}/{request.num_output_tokens}"

    def progress(self, width: int) -> str:
        """Two bars, prompt and answer, as long as they have tokens."""
        request, part = self
        num_prompt, num_output = request.num_prompt_tokens, request.num_output_tokens
        num_before = request.num_computed_tokens if part is None else part.num_computed_tokens
        num_after = num_before + (0 if part is None else part.num_tokens)
        num_before, num_after = min(num_before, num_prompt), min(num_after, num_prompt)
        num_emitted = int(part is not None and part.emits)
        share = min(max(round((width - 1) * num_prompt / (num_prompt + num_output)), 2), width - 3)
        prompt = bar(num_before, num_after - num_before, num_prompt, share)
        answer = bar(request.num_generated_tokens - num_emitted, num_emitted, num_output, width - 1 - share)
        return f"{prompt}│{answer}"


def batch_panel(replica: Replica, width: int, height: int) -> list[Text]:
    """What the last step computed of whom, and how far everybody is: at most `height` lines."""
    step = replica.last_step
    if step is None:
        return [title("batch", width), Text("no step yet: press space for the first", FAINT)]
    note = format_seconds(step.end_s - step.start_s)
    if step.num_padding_tokens:
        note += f", {step.num_padding_tokens} tokens of padding"
    if step.transfer_s:
        note += f", {format_seconds(step.transfer_s)} of it moving KV"
    rows = [_Row(part.request, part) for part in replica.last_slices]
    served = {row.request.index for row in rows}
    rows += [_Row(request, None) for request in replica.stepper.running if request.index not in served]
    lines = [title(f"batch of step {step.number}", width, note), _budget(replica, width)]
    shown, rest = _cut(rows, height - len(lines))
    name = _name_width(row.request for row in shown)
    count = max((len(row.num_tokens) for row in shown), default=0)
    standing = max((len(row.standing) for row in shown), default=0)
    bar_width = min(_MAX_BAR, width - name - count - standing - _BESIDE)
    for row in shown:
        line = badge(row.request)
        line.append(f" {row.request.request_id[:name]:<{name}} {row.kind:<7} {row.num_tokens:>{count}} ")
        line.append(f"{row.progress(bar_width)} " if bar_width >= 8 else "")
        lines.append(line.append(f"{row.standing:>{standing}}"))
    return lines + rest


def _budget(replica: Replica, width: int) -> Text:
    num_prefill = sum(part.num_tokens for part in replica.last_slices if part.is_prefill)
    num_decodes = sum(part.num_tokens for part in replica.last_slices if not part.is_prefill)
    split = f"{num_decodes} decodes, {num_prefill} prefill"
    max_tokens = replica.last_step.budget + num_decodes + num_prefill
    if max_tokens >= UNLIMITED:
        return Text(f"no token budget: {split}")
    text = f"budget {num_decodes + num_prefill}/{max_tokens} "
    cells = min(_MAX_BAR, width - len(text) - len(split) - 1)
    return Text(f"{text}{bar(num_decodes, num_prefill, max_tokens, cells)} {split}")


def queue_panel(replica: Replica, width: int, height: int) -> list[Text]:
    """Who waits, in the order in which the last decision found them: at most `height` lines."""
    waiting = replica.stepper.waiting(replica.stepper.decided_at_s)
    lines = [title(f"queue: {len(waiting)}", width)]
    if not waiting:
        at_s = replica.next_arrival_s
        note = "nobody will come" if at_s is None else f"the next comes at {format_seconds(at_s)}"
        return [*lines, Text(note, FAINT)]
    reason = textwrap.wrap(_reason(replica, waiting[0]), width, max_lines=3, placeholder=" …")
    lines += [Text(line, TITLE) for line in reason]
    shown, rest = _cut(waiting, height - len(lines))
    name = _name_width(shown)
    prompt = max((len(str(request.num_prompt_tokens)) for request in shown), default=0)
    for request in shown:
        tokens = f"{request.num_prompt_tokens:>{prompt}}+{request.num_output_tokens}"
        line = badge(request).append(f" {request.request_id[:name]:<{name}} {tokens}")
        lines.append(line.append(_remarks(request, replica.now_s), FAINT))
    return lines + rest


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


def _cut(rows: Sequence[T], height: int) -> tuple[Sequence[T], list[Text]]:
    """The rows that are shown, and a line on how many are not, if there are more than `height`."""
    if len(rows) <= height:
        return rows, []
    shown = rows[: max(0, height - 1)]
    return shown, [Text(f"and {len(rows) - len(shown)} more", FAINT)]


def _name_width(requests: Iterable[Request]) -> int:
    return min(_MAX_NAME, max((len(request.request_id) for request in requests), default=0))
