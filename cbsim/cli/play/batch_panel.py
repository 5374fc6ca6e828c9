"""The batch panel: what the last step computed of whom, and how far everybody is."""

from __future__ import annotations

from typing import NamedTuple

from rich.text import Text

from cbsim.base.units import format_seconds
from cbsim.cli.play.look import FAINT, badge, bar, title
from cbsim.cli.play.replica import Outcome, Replica
from cbsim.core.stepping import Slice
from cbsim.workload.request import Request, RequestState

_MAX_BAR = 60
_MAX_NAME = 9
_BESIDE = 13
"""Cells of a row beside name, count, bar and standing."""
_UNLIMITED = 2**31
"""The token budget of a scheduler that has none."""


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
        after = request.num_computed_tokens
        if part is not None:
            after = part.num_computed_tokens + part.num_tokens
        before = after if part is None else part.num_computed_tokens
        emitted = int(part is not None and part.emits)
        share = round((width - 1) * num_prompt / (num_prompt + num_output))
        share = min(max(share, 2), width - 3)
        prompt = bar(
            min(before, num_prompt), min(after, num_prompt) - min(before, num_prompt), num_prompt, share
        )
        answer = bar(request.num_generated_tokens - emitted, emitted, num_output, width - 1 - share)
        return f"{prompt}│{answer}"


def batch_panel(replica: Replica, width: int, height: int) -> list[Text]:
    """At most `height` lines."""
    step = replica.last_step
    if step is None:
        return [title("batch", width), Text("no step yet: press space for the first", FAINT)]
    note = format_seconds(step.end_s - step.start_s)
    if step.num_padding_tokens:
        note += f", {step.num_padding_tokens} tokens of padding"
    if step.transfer_s:
        note += f", {format_seconds(step.transfer_s)} of it moving KV"
    rows = [_Row(part.request, part) for part in step.slices]
    served = {row.request.index for row in rows}
    rows += [_Row(request, None) for request in replica.stepper.running if request.index not in served]
    lines = [title(f"batch of step {step.number}", width, note), _budget(step, width)]
    return [*lines, *_table(rows, width, height - len(lines))]


def _table(rows: list[_Row], width: int, height: int) -> list[Text]:
    shown = rows if len(rows) <= height else rows[: max(0, height - 1)]
    name = min(_MAX_NAME, max((len(row.request.request_id) for row in shown), default=0))
    count = max((len(row.num_tokens) for row in shown), default=0)
    standing = max((len(row.standing) for row in shown), default=0)
    bar_width = min(_MAX_BAR, width - name - count - standing - _BESIDE)
    lines = []
    for row in shown:
        line = badge(row.request)
        line.append(f" {row.request.request_id[:name]:<{name}} {row.kind:<7} {row.num_tokens:>{count}} ")
        if bar_width >= 8:
            line.append(f"{row.progress(bar_width)} ")
        line.append(f"{row.standing:>{standing}}")
        lines.append(line)
    if len(shown) < len(rows):
        lines.append(Text(f"and {len(rows) - len(shown)} more", FAINT))
    return lines


def _budget(step: Outcome, width: int) -> Text:
    num_prefill = sum(part.num_tokens for part in step.slices if part.is_prefill)
    num_decodes = sum(part.num_tokens for part in step.slices if not part.is_prefill)
    split = f"{num_decodes} decodes, {num_prefill} prefill"
    if step.max_tokens >= _UNLIMITED:
        return Text(f"no token budget: {split}")
    text = f"budget {num_decodes + num_prefill}/{step.max_tokens} "
    cells = min(_MAX_BAR, width - len(text) - len(split) - 1)
    return Text(f"{text}{bar(num_decodes, num_prefill, step.max_tokens, cells)} {split}")
