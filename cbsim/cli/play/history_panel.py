"""The history panel: tokens, KV blocks and queue of the last steps, a column each."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from cbsim.cli.play.look import FAINT
from cbsim.cli.play.replica import Replica

HEIGHT = 4
_LEVELS = " ▁▂▃▄▅▆▇█"
_UNLIMITED = 2**31
"""The token budget of a scheduler that has none."""


def history_panel(replica: Replica, width: int) -> list[Text]:
    """`HEIGHT` lines: a blank one, and one for each figure, up to its limit or, without one, its maximum."""
    label = 7
    past = replica.history[-(width - label) :]
    budget = replica.stepper.records.config.max_tokens_per_step
    rows: dict[str, tuple[list[int], int | None]] = {
        "tokens": ([step.num_tokens for step in past], None if budget >= _UNLIMITED else budget),
        "KV": ([step.num_blocks_used for step in past], replica.stepper.own.num_blocks),
        "queue": ([step.num_waiting for step in past], None),
    }
    lines = [Text()]
    for name, (values, limit) in rows.items():
        line = Text().append(f"{name:<{label}}", FAINT)
        line.append(columns(values, max(values, default=0) if limit is None else limit))
        lines.append(line)
    return lines


def columns(values: Sequence[int], limit: int) -> str:
    """A column for each value, empty for 0 alone, full at `limit` or beyond."""
    return "".join(_LEVELS[_level(value, limit)] for value in values)


def _level(value: int, limit: int) -> int:
    top = len(_LEVELS) - 1
    if value <= 0:
        return 0
    return top if value >= limit else min(max(1, round(top * value / limit)), top - 1)
