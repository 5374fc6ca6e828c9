"""Help: what each key does, and how to read the screen."""

from __future__ import annotations

from rich.text import Text

from cbsim.play.look import AGAIN, DONE, FAINT, LEFT, NOW, TITLE, title

_HINTS = (
    ("space", "step"),
    ("r", "run"),
    ("u", "undo"),
    ("1-5", "scheduler"),
    ("t c n k", "limits"),
    ("a", "add"),
    ("w", "save"),
    ("?", "help"),
    ("q", "quit"),
    ("+ -", "pace"),
    ("f", "to the end"),
    ("R", "restart"),
    (":", "any setting"),
)
"""From the most useful one."""

_KEYS = (
    ("space s", "one step: decided, run and ended"),
    ("r", "run, or pause; + and - change the pace"),
    ("f", "go to the end; any key stops"),
    ("u", "undo the last step, change or addition"),
    ("1 - 5", "static, continuous, chunked_prefill, preemptive, vllm: those who run"),
    ("", "are preempted, and queue at the new scheduler"),
    ("t c n", "max_tokens_per_step, chunk_size, max_num_seqs"),
    ("k", "number of KV blocks; only free ones can go"),
    (":", "any setting of the scheduler, as in policy=priority"),
    ("a", "add a request that arrives now"),
    ("R", "play from the start, with settings and requests as they are now"),
    ("w", "save that as an experiment for cbsim run"),
    ("q", "quit"),
)
_SCREEN = (
    ("batch", f"{DONE} before the step, {NOW} in the step, {LEFT} to come; prompt│answer"),
    ("", "prompt: a whole one; chunk: a part; again: after a preemption"),
    ("queue", f"prompt+answer, time waited, prio if any, {AGAIN}2 if preempted twice"),
    ("KV cache", "A: a block of request A; a: reserved for it, still empty"),
)


def hints(width: int) -> Text:
    """The keys that fit into one line."""
    line = Text()
    for key, meaning in _HINTS:
        gap = "  " if line else ""
        if line.cell_len + len(f"{gap}{key} {meaning}") > width:
            break
        line.append(f"{gap}{key}", TITLE)
        line.append(f" {meaning}", FAINT)
    return line


def help_lines(width: int) -> list[Text]:
    """The help, from the top."""
    lines = [title("keys", width)]
    lines += [_line(key, meaning) for key, meaning in _KEYS]
    lines.append(title("screen", width))
    lines += [_line(key, meaning) for key, meaning in _SCREEN]
    lines.append(Text("any key goes back", FAINT))
    return lines


def _line(key: str, meaning: str) -> Text:
    line = Text(f"{key:<10}", TITLE)
    line.append(meaning)
    return line
