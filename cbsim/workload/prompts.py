"""Prompts told by ids, of hash blocks or of tokens: how many tokens a block has, and what prompts share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cbsim.base.errors import WorkloadError, refusals
from cbsim.config.bounds import MAX_TOKENS
from cbsim.workload.formats import LOG_NAMES, PROMPT_KINDS
from cbsim.workload.request import ObjectColumn, Segments
from cbsim.workload.table import Mistakes, Table, is_parquet, open_table
from cbsim.workload.values import (
    SEGMENTS,
    TEXT,
    TOKEN_IDS,
    TOKENS_PER_ID,
    Kind,
    PromptIds,
    read_columns,
    whole,
)

USUAL_BLOCK_TOKENS = 512
"""Prompt tokens of a hash block, where nothing says otherwise: Mooncake's."""


class PromptRow(NamedTuple):
    """What a row of a file says of a prompt."""

    line: int
    content: Segments | PromptIds | None
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class BlockSize:
    """Prompt tokens that a hash block has."""

    num_tokens: int
    is_found: bool = False
    """Whether the number of ids told it, not a setting or the format."""

    def note(self, column: str) -> list[str]:
        """How it was found, if it was."""
        if not self.is_found:
            return []
        told = "by their number; hash_block_tokens sets it"
        return [f"one of {column} stands for {self.num_tokens:,} prompt tokens ({told})"]


def find_block_size(
    rows: Iterable[PromptRow],
    column: str,
    mistakes: Mistakes,
    *,
    usual: int = USUAL_BLOCK_TOKENS,
    given: int | None = None,
    order: int = 0,
) -> BlockSize:
    """How many tokens an id of a column stands for; adds a mistake for each row that has too many of them.

    `given` holds, else the `usual` number unless another power of two, and not that one, agrees with all
    rows: as many ids as a prompt has whole blocks, or one more for the rest of it. Ids made of tokens have
    `TOKENS_PER_ID`. `order` is the column's place among the mistakes of a line.
    """
    known = [
        (row, row.content) for row in rows if isinstance(row.content, PromptIds) and len(row.content.ids)
    ]
    if known and known[0][1].num_tokens is not None:
        for row, content in known:
            if (num := content.num_tokens or 0) > row.num_prompt_tokens:
                told = f"at most {row.num_prompt_tokens:,}, the prompt's tokens"
                mistakes.add(row.line, order, f"{column}: got {num:,} token ids; allowed: {told}")
        return BlockSize(TOKENS_PER_ID)
    num_ids = np.array([len(content.ids) for _, content in known], np.int64)
    lengths = np.array([row.num_prompt_tokens for row, _ in known], np.int64)

    def agrees(block: int) -> bool:
        return bool(((num_ids >= lengths // block) & (num_ids <= -(-lengths // block))).all())

    size = BlockSize(given or usual)
    if given is None and not agrees(usual) and (others := [2**n for n in range(17) if agrees(2**n)]):
        fullest = max(others, key=lambda each: int((num_ids == -(-lengths // each)).sum()))
        size = BlockSize(fullest, is_found=True)
    hint = "" if given else " (hash_block_tokens sets another size)"
    for (row, _), num in zip(known, num_ids.tolist(), strict=True):
        if num > (most := -(-row.num_prompt_tokens // size.num_tokens)):
            of = f"{row.num_prompt_tokens:,} prompt tokens in blocks of {size.num_tokens:,}"
            mistakes.add(
                row.line, order, f"{column}: got {num:,} ids; allowed: at most {most:,} for {of}{hint}"
            )
    return size


def segments_of(
    content: Segments | PromptIds | None, num_prompt_tokens: int, name: str, block_tokens: int
) -> Segments | None:
    """Ids as segments: equal ids are equal tokens; what no id covers is the named request's alone."""
    if not isinstance(content, PromptIds):
        return content
    segments = []
    left = num_prompt_tokens
    for block in content.ids.tolist():
        segments.append((f"h:{block}", min(left, block_tokens)))
        left -= block_tokens
    if left > 0:
        segments.append((f"p:{name}", left))
    return tuple(segments)


def check_segments(row: PromptRow, mistakes: Mistakes, order: int) -> None:
    """Add a mistake if a prompt's segments don't add up to its tokens."""
    assert not isinstance(row.content, PromptIds)
    length = row.num_prompt_tokens
    got = length if row.content is None else sum(number for _, number in row.content)
    if got != length:
        text = f"prompt: got segments of {got:,} tokens; allowed: num_prompt_tokens, {length:,}"
        mistakes.add(row.line, order, text)


PROMPT_COLUMNS: dict[str, Kind] = {
    "prompt": SEGMENTS,
    **{name: kind for what, kind in PROMPT_KINDS.items() for name in LOG_NAMES[what]},
    "token_ids": TOKEN_IDS,
}
"""Columns of a file of prompts that say what they hold, best first."""
BLOCK_COLUMNS = ("block_tokens", "hash_block_tokens")
"""Columns of it that say how many tokens a hash block has."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What some requests' prompts hold."""

    segments: ObjectColumn
    """In the order of the requests asked for; None where nothing is known."""
    notes: tuple[str, ...] = ()


def read_prompts(
    path: Path, request_ids: Sequence[str], num_prompt_tokens: Sequence[int], block_tokens: int | None = None
) -> Prompts:
    """Read what requests' prompts hold from a file with a row a request: JSONL, CSV or Parquet.

    A row has a request's id and `hash_ids`, token ids or `prompt`, perhaps its `num_prompt_tokens` and the
    tokens of a hash block, which `block_tokens` sets. Raises `WorkloadError` with a line for each mistake.
    """
    with refusals(path, "read", WorkloadError):
        return _read_prompts(path, request_ids, num_prompt_tokens, block_tokens)


def _read_prompts(
    path: Path, request_ids: Sequence[str], num_prompt_tokens: Sequence[int], given: int | None
) -> Prompts:
    mistakes = Mistakes(str(path), "row " if is_parquet(path) else "")
    table = open_table(path, mistakes)
    names = _names_of(table, mistakes) if table else {}
    if table is None or mistakes:
        raise mistakes.error()
    columns, lines = read_columns(table, names, mistakes)
    if not lines and not mistakes:
        mistakes.add(0, 0, "holds no prompts")
    if mistakes:
        raise mistakes.error()
    block_tokens = _block_tokens_of(columns, names, lines, given, mistakes)
    lengths = dict(zip(request_ids, num_prompt_tokens, strict=True))
    rows = _rows_of(columns, names, lines, lengths, mistakes)
    name, kind = names["content"]
    size = BlockSize(block_tokens or USUAL_BLOCK_TOKENS)
    if kind is SEGMENTS:
        for row in rows.values():
            check_segments(row, mistakes, 1)
    else:
        size = find_block_size(rows.values(), name, mistakes, given=block_tokens, order=1)
    if mistakes:
        raise mistakes.error()
    segments = np.full(len(request_ids), None, np.object_)
    for place, request_id in enumerate(request_ids):
        if request_id in rows:
            row = rows[request_id]
            segments[place] = segments_of(row.content, row.num_prompt_tokens, f"r{place}", size.num_tokens)
    notes = [*table.notes, *size.note(name)]
    if num_unknown := sum(each is None for each in segments):
        notes.append(
            f"{num_unknown:,} of {len(segments):,} requests have no prompt there: they share nothing"
        )
    return Prompts(segments, tuple(f"{path.name}: {note}" for note in notes))


Names = Mapping[str, tuple[str, Kind]]
"""The column of a file of prompts, and what may stand in it, for each thing that a row says."""


def _names_of(table: Table, mistakes: Mistakes) -> Names:
    """The columns that a file of prompts has; adds a mistake for each that it must have and lacks."""
    count = whole(1, MAX_TOKENS, absent=0)
    known: dict[str, Mapping[str, Kind]] = {
        "request": dict.fromkeys(LOG_NAMES["request_id"], TEXT),
        "content": PROMPT_COLUMNS,
        "block": dict.fromkeys(BLOCK_COLUMNS, count),
        "length": dict.fromkeys(LOG_NAMES["prompt_tokens"], count),
    }
    names = {}
    for what, kinds in known.items():
        found = next((name for name in kinds if name in table.names), None)
        if found is not None:
            names[what] = (found, kinds[found])
        elif what in ("request", "content"):
            told = f"got columns {', '.join(table.names) or 'nothing'}; allowed: one of {', '.join(kinds)}"
            mistakes.add(table.header_line, 0, f"no column for the {what} of a prompt: {told}")
    return names


def _block_tokens_of(
    columns: Mapping[str, Any], names: Names, lines: Sequence[int], given: int | None, mistakes: Mistakes
) -> int | None:
    """What a file of prompts says of its hash blocks: one size in all rows, that which was `given` if any."""
    block = given
    for line, got in zip(lines, columns.get("block", np.empty(0)).tolist(), strict=False):
        block = block or got or None
        if got not in (0, block):
            where = "hash_block_tokens of the workload" if given else "as in the rows before"
            mistakes.add(line, 2, f"{names['block'][0]}: got {got:,}; allowed: {block:,}, {where}")
    return block


def _rows_of(
    columns: Mapping[str, Any],
    names: Names,
    lines: Sequence[int],
    lengths: Mapping[str, int],
    mistakes: Mistakes,
) -> dict[str, PromptRow]:
    """The rows of a file of prompts by request, of those requests whose prompt tokens are in `lengths`."""
    name = names["request"][0]
    line_of: dict[str, int] = {}
    rows = {}
    told = columns.get("length", np.zeros(len(lines), np.int64)).tolist()
    for line, request_id, content, length in zip(
        lines, columns["request"].tolist(), columns["content"], told, strict=True
    ):
        if request_id is None:
            mistakes.add(line, 0, f"{name}: got nothing; allowed: {TEXT.allowed}")
        elif (first := line_of.setdefault(request_id, line)) != line:
            mistakes.add(line, 0, f"{name}: got {request_id}, as in line {first}; allowed: each id once")
        elif request_id in lengths:
            rows[request_id] = PromptRow(line, content, lengths[request_id])
            if length not in (0, lengths[request_id]):
                allowed = f"{lengths[request_id]:,}, as the log has for {request_id}"
                mistakes.add(line, 3, f"{names['length'][0]}: got {length:,}; allowed: {allowed}")
    if not mistakes and not rows:
        ids = f"got {next(iter(line_of))}, ...; allowed: {next(iter(lengths))}, ..."
        mistakes.add(0, 0, f"{name}: no request of the log is here: {ids}")
    return rows
