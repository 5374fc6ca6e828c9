"""Panels of the replica: who holds which KV block, figures of the last steps, the last events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text

from cbsim.cli.play.look import ALERT, FAINT, badge, letter, num_cells, title
from cbsim.cli.play.replica import UNLIMITED, Event, Replica
from cbsim.core.layout import NOBODY
from cbsim.core.pool import blocks_for
from cbsim.workload.request import Request, RequestState

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
        for position, block in enumerate(stepper.blocks_of(request)):
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
