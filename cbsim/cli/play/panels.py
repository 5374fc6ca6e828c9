"""Panels of requests: the batch, what its step computed of whom; the queue, and why its first one waits."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from rich.text import Text

from cbsim.base.units import format_seconds
from cbsim.cli.play.look import AGAIN, ALERT, FAINT, TITLE, badge, bar, letter, num_cells, title
from cbsim.cli.play.replica import UNLIMITED, Event, Replica
from cbsim.core.layout import NOBODY
from cbsim.core.pool import blocks_for
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


def queue_panel(replica: Replica, next_arrival_s: float | None, width: int, height: int) -> list[Text]:
    """Who waits, in the order in which the last decision found them: at most `height` lines.

    If nobody does, when the next one comes, seconds.
    """
    waiting = replica.stepper.waiting(replica.stepper.decided_at_s)
    lines = [title(f"queue: {len(waiting)}", width)]
    if not waiting:
        note = "nobody will come"
        if next_arrival_s is not None:
            note = f"the next comes at {format_seconds(next_arrival_s)}"
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


HISTORY_HEIGHT = 4
_LEVELS = " ▁▂▃▄▅▆▇█"
_WIDE = 44
"""Cells from which on each event has room for its time."""
FREE, CACHED, SHARED = "·", "=", "&"
_GROUP = 8
"""Cells in a row are a multiple of this, where there is room."""


class _Cell(NamedTuple):
    """What a block is: free, or held by a request, with tokens in it or only reserved."""

    owner: Request | None
    mark: str


def kv_panel(replica: Replica, width: int, height: int) -> list[Text]:
    """A cell for each KV block, with the letter of the request that holds it: at most `height` lines.

    Where there are more blocks than cells, each cell stands for several.
    """
    stepper, own = replica.stepper, replica.stepper.own
    note = f"{stepper.num_blocks_used}/{own.num_blocks} blocks of {own.block_size} tokens"
    cells = _cells(replica)
    digits = len(str(own.num_blocks))
    columns, room = width - digits - 1, max(1, height - 2)
    per_row = _in_groups(columns // 2)
    is_wide = len(cells) <= per_row * room
    if not is_wide:
        per_row = _in_groups(columns)
    step = max(1, -(-len(cells) // (per_row * room)))
    if step > 1:
        cells = [_summary(cells[i : i + step]) for i in range(0, len(cells), step)]
        note += f", {step} a cell"
    lines = [title("KV cache", width, note)]
    for start in range(0, len(cells), per_row):
        row = [_shown(cell, is_wide) for cell in cells[start : start + per_row]]
        lines.append(Text.assemble((f"{start * step:>{digits}} ", FAINT), *row))
    return [*lines, _legend(replica)]


def _in_groups(num_cells: int) -> int:
    return num_cells - num_cells % _GROUP if num_cells >= _GROUP else max(1, num_cells)


def _cells(replica: Replica) -> list[_Cell]:
    stepper, own = replica.stepper, replica.stepper.own
    blocks = stepper.records.blocks[: own.num_blocks]
    cells = [_Cell(None, FREE if block.key == NOBODY else CACHED) for block in blocks]
    for request in replica.present:
        is_running = request.state == RequestState.RUNNING
        num_filled = blocks_for(stepper.records, request.num_computed_tokens) if is_running else 0
        for held in stepper.blocks_by_group(request):
            for position, block in enumerate(held):
                if block != NOBODY:
                    mark = letter(request) if position < num_filled else letter(request).lower()
                    cells[block] = _Cell(request, SHARED if blocks[block].num_holders > 1 else mark)
    return cells


def _summary(cells: list[_Cell]) -> _Cell:
    """One cell for several: of those held, the holder of most."""
    held = [cell for cell in cells if cell.owner is not None]
    if not held:
        return cells[0]
    most = Counter(cell.owner for cell in held).most_common(1)[0][0]
    return next(cell for cell in held if cell.owner is most)


def _shown(cell: _Cell, is_wide: bool) -> Text:
    mark = f"{cell.mark} " if is_wide else cell.mark
    return Text(mark, FAINT) if cell.owner is None else badge(cell.owner, mark)


def _legend(replica: Replica) -> Text:
    parts = ["A filled"]
    if replica.setup.rung.reserves_ahead:
        parts.append("a reserved")
    parts.append(f"{FREE} free")
    if replica.setup.pool.prefix_caching:
        parts += [f"{CACHED} free, content cached", f"{SHARED} shared"]
    return Text("  ".join(parts), FAINT)


def history_panel(replica: Replica, width: int) -> list[Text]:
    """A blank line, then tokens, KV blocks and queue: a column for each of the last steps.

    Columns reach up to the figure's limit or, without one, its maximum.
    """
    label = 7
    log = replica.stepper.world.records.log
    past = log.steps[max(0, log.lengths.steps - (width - label)) : log.lengths.steps]
    budget = replica.stepper.records.config.max_tokens_per_step
    tokens = [step.num_prefill_tokens + step.num_decode_seqs for step in past]
    rows: dict[str, tuple[list[int], int | None]] = {
        "tokens": (tokens, None if budget >= UNLIMITED else budget),
        "KV": ([step.kv_blocks_used for step in past], replica.stepper.own.num_blocks),
        "queue": ([step.num_waiting for step in past], None),
    }
    lines = [Text()]
    for name, (values, limit) in rows.items():
        line = Text().append(f"{name:<{label}}", FAINT)
        lines.append(line.append(columns(values, max(values, default=0) if limit is None else limit)))
    return lines


def columns(values: Sequence[int], limit: int) -> str:
    """A column for each value, empty for 0 alone, full at `limit` or beyond."""
    return "".join(_LEVELS[num_cells(value, limit, len(_LEVELS) - 1)] for value in values)


def log_panel(replica: Replica, width: int, height: int) -> list[Text]:
    """The last events, the latest last: at most `height` lines."""
    room = max(0, height - 1)
    events = replica.log.events[-room:] if room else []
    return [title("events", width), *(_line(event, width) for event in events)]


def _line(event: Event, width: int) -> Text:
    step = f"{event.step:>4} " if event.step >= 0 else " " * 5
    when = (f"{step}{event.time_s:>10,.4f} s " if width >= _WIDE else step, FAINT)
    if event.request is None:
        return Text.assemble(when, event.detail)
    style = ALERT if event.what in ("preempted", "rejected") else ""
    separator = ": " if event.what == "rejected" else ", "
    detail = separator + event.detail if event.detail else ""
    request = event.request
    return Text.assemble(when, badge(request), f" {request.request_id} ", (event.what, style), detail)
