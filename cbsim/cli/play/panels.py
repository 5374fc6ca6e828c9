"""Panels of a replica, the batch, the queue, KV blocks and events; and of what is between replicas."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from math import inf
from typing import Any, NamedTuple, TypeVar

from rich.text import Text

from cbsim.base.units import GIGA, format_bytes, format_seconds
from cbsim.cli.play.fleet import Fleet, Transfer
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
    planned: Request
    """The request as it came; another replica may have begun it."""

    @property
    def kind(self) -> str:
        """What the step did for it."""
        request, part, _ = self
        if part is None and request.state == RequestState.HANDED_OVER:
            return "kept"
        if part is None:
            return "in step" if request.num_launched_tokens else "nothing"
        if not part.is_prefill:
            return "decode"
        if part.num_preemptions:
            return "again"
        is_whole = part.emits and part.num_computed_tokens <= request.num_cached_tokens
        return "prompt" if is_whole else "chunk"

    @property
    def num_tokens(self) -> str:
        """Tokens computed in the step, or in one under way."""
        return f"+{self.num_now}" if self.num_now else ""

    @property
    def num_now(self) -> int:
        """See `num_tokens`."""
        return self.request.num_launched_tokens if self.part is None else self.part.num_tokens

    @property
    def standing(self) -> str:
        """Tokens of the prompt that are computed, tokens of the answer that are out."""
        request, num_prompt = self.request, self.planned.num_prompt_tokens
        if request.state == RequestState.HANDED_OVER:
            return f"{request.num_blocks} blocks" if request.num_blocks else "handed over"
        if request.state == RequestState.FINISHED:
            return "ended"
        prompt = f"{min(request.num_computed_tokens, num_prompt)}/{num_prompt}"
        return f"{prompt} {self.num_generated:>2}/{self.planned.num_output_tokens}"

    @property
    def num_generated(self) -> int:
        """Tokens of the answer that are out, on all replicas."""
        num_before = self.request.num_prompt_tokens - self.planned.num_prompt_tokens
        return num_before + self.request.num_generated_tokens

    def progress(self, width: int) -> str:
        """Two bars, prompt and answer, as long as they have tokens."""
        request, part, planned = self
        num_prompt, num_output = planned.num_prompt_tokens, planned.num_output_tokens
        num_before = request.num_computed_tokens - self.num_now if part is None else part.num_computed_tokens
        num_after = num_before + self.num_now
        num_before, num_after = min(num_before, num_prompt), min(num_after, num_prompt)
        num_emitted = int(part is not None and part.emits)
        share = min(max(round((width - 1) * num_prompt / (num_prompt + num_output)), 2), width - 3)
        prompt = bar(num_before, num_after - num_before, num_prompt, share)
        answer = bar(self.num_generated - num_emitted, num_emitted, num_output, width - 1 - share)
        return f"{prompt}│{answer}"


def batch_panel(replica: Replica, width: int, height: int, name: str = "") -> list[Text]:
    """What the last step computed of whom, and how far everybody is: at most `height` lines.

    `name`, of the replica, is told where there are several.
    """
    step, prefix = replica.last_step, f"{name}: " if name else ""
    if step is None:
        told = "no step yet" if name else "no step yet: press space for the first"
        return [title(f"{prefix}batch", width), Text(told, FAINT)]
    note = format_seconds(step.end_s - step.start_s)
    if step.num_padding_tokens:
        note += f", {step.num_padding_tokens} tokens of padding"
    if step.transfer_s:
        note += f", {format_seconds(step.transfer_s)} of it moving KV"
    rows = [_Row(part.request, part, replica.origin(part.request)) for part in replica.last_slices]
    served = {row.request.index for row in rows}
    others = [*replica.stepper.running, *replica.sending]
    rows += [_Row(other, None, replica.origin(other)) for other in others if other.index not in served]
    lines = [title(f"{prefix}batch of step {step.number}", width, note), _budget(replica, width)]
    shown, rest = _cut(rows, height - len(lines))
    chars = _name_width(row.request for row in shown)
    count = max((len(row.num_tokens) for row in shown), default=0)
    standing = max((len(row.standing) for row in shown), default=0)
    bar_width = min(_MAX_BAR, width - chars - count - standing - _BESIDE)
    for row in shown:
        line = badge(row.request)
        line.append(f" {row.request.request_id[:chars]:<{chars}} {row.kind:<7} {row.num_tokens:>{count}} ")
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


def queue_panel(
    replica: Replica, next_arrival_s: float | None, transfers: Sequence[Transfer], width: int, height: int
) -> list[Text]:
    """Who waits, in the order in which the last decision found them: at most `height` lines.

    Before them those whose KV comes, over `transfers`. If nobody waits, when the next one comes, seconds.
    """
    waiting, holding = replica.waiting, replica.holding
    note = f"fetching KV: {len(holding)}" if holding else ""
    lines = [title(f"queue: {len(waiting)}", width, note)]
    if not waiting and not holding:
        told = "nobody will come"
        if replica.setup.role == "decode":
            told = "nobody waits"
        elif next_arrival_s is not None:
            told = f"the next comes at {format_seconds(next_arrival_s)}"
        return [*lines, Text(told, FAINT)]
    if waiting:
        reason = textwrap.wrap(_reason(replica, waiting[0]), width, max_lines=3, placeholder=" …")
        lines += [Text(line, TITLE) for line in reason]
    moved = {of.request: f" KV {of.share:.0%}" for of in transfers}
    remarks = {request: moved.get(request, _arrived(replica, request)) for request in holding}
    remarks |= {request: _remarks(request, replica.now_s) for request in waiting}
    shown, rest = _cut([*holding, *waiting], height - len(lines))
    name = _name_width(shown)
    planned = [replica.origin(request) for request in shown]
    prompt = max((len(str(request.num_prompt_tokens)) for request in planned), default=0)
    for request, origin in zip(shown, planned, strict=True):
        tokens = f"{origin.num_prompt_tokens:>{prompt}}+{origin.num_output_tokens}"
        line = badge(request).append(f" {request.request_id[:name]:<{name}} {tokens}")
        lines.append(line.append(remarks[request], FAINT))
    return lines + rest


def _arrived(replica: Replica, request: Request) -> str:
    """A remark on KV that is not on the link: it has come, and is known at a step's end, or can't yet."""
    extra = replica.stepper.records.extras[request.index]
    return " the link is down" if extra.transfer_end_s == inf else " KV is here"


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
    note = f"{stepper.num_blocks_used}/{own.num_blocks} blocks"
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
    note += f", {step} a cell" if step > 1 else f" of {own.block_size} tokens"
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
        is_filled = request.state in (RequestState.RUNNING, RequestState.HANDED_OVER)
        num_filled = blocks_for(stepper.records, request.num_computed_tokens) if is_filled else 0
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
    if replica.setup.role == "decode":
        parts.append("a for KV to come")
    parts.append(f"{FREE} free")
    if replica.setup.pool.prefix_caching:
        parts += [f"{CACHED} free, cached", f"{SHARED} shared"]
    return Text("  ".join(parts), FAINT)


def history_panel(replica: Replica, width: int) -> list[Text]:
    """A blank line, then tokens, KV blocks and queue: a column for each of the last steps.

    Columns reach up to the figure's limit or, without one, its maximum.
    """
    label = 7
    log = replica.stepper.world.records.log
    latest = (log.steps[row] for row in range(log.lengths.steps - 1, -1, -1))
    past = list(islice((step for step in latest if step.replica == replica.number), width - label))[::-1]
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


# Between replicas


def link_panel(fleet: Fleet, width: int, height: int) -> list[Text]:
    """KV caches on their way from prefill to decode: `height` lines; none where nothing is handed over."""
    if not fleet.is_staged:
        return []
    link, transfers = fleet.world.records.link, fleet.transfers
    told = f"{link.bytes_per_s / GIGA:.3g} GB/s a replica" + (", layer by layer" if link.is_layered else "")
    told += ", down" if link.is_down else ""
    if fleet.held:
        told += f", {len(fleet.held)} wait for a replica"
    lines = [title(f"link: {len(transfers)} under way", width, told)]
    shown, rest = _cut(transfers, height - 1) if height > 2 else (transfers[:1], [])
    rows = [_standing(transfer, link) for transfer in shown]
    name = _name_width(of.request for of in shown)
    ways = [f"{of.sender.name} → {of.receiver.name}" for of in shown]
    way, standing = (max(map(len, texts), default=0) for texts in (ways, rows))
    bar_width = min(_MAX_BAR, width - name - way - standing - 5)
    for of, led, told in zip(shown, ways, rows, strict=True):
        line = badge(of.request).append(f" {of.request.request_id[:name]:<{name}} {led:<{way}} ")
        moved, total = round(of.moved_bytes), round(of.total_bytes)
        line.append(f"{bar(moved, 0, total, bar_width)} " if bar_width >= 8 else "")
        lines.append(line.append(f"{told:>{standing}}"))
    lines += rest
    return lines + [Text()] * (height - len(lines))


def _standing(of: Transfer, link: Any) -> str:
    """Bytes moved of how many, which layer, the rate, and how long the rest takes at that."""
    moved, total = format_bytes(of.moved_bytes), format_bytes(of.total_bytes)
    moved = f"{moved.removesuffix(total[total.index(' ') :])}/{total}"
    layer = "" if of.layer is None else f", layer {of.layer}/{link.num_layers}"
    left_s = (of.total_bytes - of.moved_bytes) / of.bytes_per_s
    return f"{moved}{layer}, {of.bytes_per_s / GIGA:.3g} GB/s, {format_seconds(left_s)} left"
