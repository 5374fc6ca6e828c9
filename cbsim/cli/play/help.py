"""Help: what each key does, and how to read the screen."""

from __future__ import annotations

import textwrap

from rich.text import Text

from cbsim.cli.play.look import AGAIN, DONE, FAINT, LEFT, NOW, TITLE, title

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
_KEYS = (
    ("space s", "one step: decided, run and ended"),
    ("r", "run, or pause; + and - change the pace"),
    ("f", "go to the end; any key stops"),
    ("u", "undo the last step, change or addition"),
    (
        "1 - 5",
        "static, continuous, chunked_prefill, preemptive, vllm: those who run are preempted, and queue at "
        "the new scheduler",
    ),
    ("t c n", "max_tokens_per_step, chunk_size, max_num_seqs"),
    ("k", "number of KV blocks; only free ones can go"),
    (":", "any setting of the scheduler, as in policy=priority"),
    ("a", "add a request that arrives now"),
    ("R", "play from the start, with settings and requests as they are now"),
    ("w", "save that as an experiment for cbsim run"),
    ("q", "quit"),
)
_SCREEN = (
    (
        "batch",
        f"{DONE} before the step, {NOW} in the step, {LEFT} to come; prompt│answer; "
        "again: after a preemption",
    ),
    ("queue", f"prompt+answer, time waited, prio if any, {AGAIN}2 if preempted twice"),
    ("KV cache", "A: a block of request A; a: reserved for it, still empty"),
    ("below it", "tokens, blocks and queue of the last steps"),
)


def hints(width: int) -> Text:
    """As many keys as fit into one line."""
    shown = len(_HINTS)
    while shown and _hint_line(shown).cell_len > width:
        shown -= 1
    return _hint_line(shown)


def _hint_line(shown: int) -> Text:
    line = Text()
    for key, meaning in (*_HINTS[:shown], *_LAST_HINTS):
        line.append(f"{'  ' if line else ''}{key}", TITLE)
        line.append(f" {meaning}", FAINT)
    return line


def help_lines(width: int) -> list[Text]:
    """The help, from the top."""
    lines = [title("keys", width)]
    for key, meaning in _KEYS:
        lines += _lines(key, meaning, width)
    lines.append(title("screen", width))
    for key, meaning in _SCREEN:
        lines += _lines(key, meaning, width)
    lines.append(Text("any key goes back", FAINT))
    return lines


def _lines(key: str, meaning: str, width: int) -> list[Text]:
    parts = textwrap.wrap(meaning, width - _KEY_WIDTH)
    lines = [Text().append(f"{key:<{_KEY_WIDTH}}", TITLE).append(parts[0])]
    return [*lines, *(Text(" " * _KEY_WIDTH + part) for part in parts[1:])]
