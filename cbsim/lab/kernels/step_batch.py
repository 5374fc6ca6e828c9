"""StepBatch: the tensors of one step, decodes first, then prompt chunks, ragged and packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cbsim.lab.kernels.attention_backends import AttentionBackend, ChunkBatch, DecodeBatch, LayerCache


class SequenceSlice(NamedTuple):
    """One sequence's share of a step."""

    token_ids: Sequence[int] | NDArray[np.int64]
    """The tokens computed now."""
    num_computed: int
    """Tokens before them, whose keys and values are in the cache."""
    blocks: Sequence[int] | NDArray[np.int64]
    """The sequence's KV blocks in order of position; it may hold more than it fills."""
    emits: bool
    """Whether logits of its last token are wanted."""

    def filled_blocks(self, block_size: int) -> NDArray[np.int64]:
        """The blocks of its tokens, those computed now included."""
        num_blocks = -(-(self.num_computed + len(self.token_ids)) // block_size)
        return np.asarray(self.blocks[:num_blocks], np.int64)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step, ready for the decoder. Slices of one token are decodes, longer ones are chunks."""

    token_ids: Tensor
    """`(T,)` int64."""
    positions: Tensor
    """`(T,)` int64."""
    slots: Tensor
    """`(T,)` int64: where each token's keys and values go, block number x block size + offset."""
    logit_rows: Tensor
    """`(S,)` int64: the rows whose logits are wanted."""
    decodes: DecodeBatch | None
    chunks: ChunkBatch | None
    emitting: tuple[int, ...]
    """Which of the slices given each row of logits belongs to."""

    @property
    def num_decodes(self) -> int:
        """Leading tokens that are decodes."""
        return 0 if self.decodes is None else self.decodes.context_lens.shape[0]

    def attend(
        self, backend: AttentionBackend, query: Tensor, keys: Tensor, values: Tensor, cache: LayerCache
    ) -> Tensor:
        """One layer's attention: decodes by the one kernel, chunks by the other."""
        parts, start = [], self.num_decodes
        if self.decodes is not None:
            parts.append(backend.decode(query[:start], cache, self.decodes))
        if self.chunks is not None:
            chunks = query[start:], keys[start:], values[start:]
            parts.append(backend.prefill(*chunks, cache, self.chunks))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @classmethod
    def build(cls, slices: Sequence[SequenceSlice], block_size: int, device: torch.device) -> StepBatch:
        """Pack slices, given in any order."""
        order = sorted(range(len(slices)), key=lambda i: len(slices[i].token_ids) > 1)
        num_decodes = sum(len(part.token_ids) == 1 for part in slices)
        decodes = [slices[i] for i in order[:num_decodes]]
        chunks = [slices[i] for i in order[num_decodes:]]
        parts = [_chunk_columns(part, block_size) for part in chunks]
        columns = np.concatenate([decode_columns(decodes, block_size), *parts], axis=1)
        token_ids, positions, slots = _int64(columns, device)
        last_rows = [*range(num_decodes), *(num_decodes - 1 + np.cumsum([part.shape[1] for part in parts]))]
        emitting = [place for place, i in enumerate(order) if slices[i].emits]
        return cls(
            token_ids=token_ids,
            positions=positions,
            slots=slots,
            logit_rows=_int64(np.array([last_rows[place] for place in emitting], np.int64), device),
            decodes=_decode_batch(decodes, block_size, device) if decodes else None,
            chunks=_chunk_batch(chunks, block_size, device) if chunks else None,
            emitting=tuple(order[place] for place in emitting),
        )


def decode_columns(slices: Sequence[SequenceSlice], block_size: int) -> NDArray[np.int64]:
    """`(3, decodes)`: the token of each, its position, and the slot of its keys and values."""
    columns = np.empty((3, len(slices)), np.int64)
    columns[0] = [part.token_ids[0] for part in slices]
    columns[1] = [part.num_computed for part in slices]
    blocks = [part.blocks[part.num_computed // block_size] for part in slices]
    columns[2] = np.array(blocks, np.int64) * block_size + columns[1] % block_size
    return columns


def _chunk_columns(part: SequenceSlice, block_size: int) -> NDArray[np.int64]:
    """`(3, tokens)`: each token of a chunk, its position, and the slot of its keys and values."""
    positions = np.arange(part.num_computed, part.num_computed + len(part.token_ids))
    slots = part.filled_blocks(block_size)[positions // block_size] * block_size + positions % block_size
    return np.stack([np.asarray(part.token_ids, np.int64), positions, slots])


def block_tables(slices: Sequence[SequenceSlice], block_size: int, width: int = 0) -> NDArray[np.int32]:
    """`(slices, width)`: the filled blocks of each, then zeros; by default as wide as the longest."""
    blocks = [part.filled_blocks(block_size) for part in slices]
    tables = np.zeros((len(slices), width or max(map(len, blocks))), np.int32)
    for row, own in zip(tables, blocks, strict=True):
        row[: len(own)] = own
    return tables


def _decode_batch(slices: Sequence[SequenceSlice], block_size: int, device: torch.device) -> DecodeBatch:
    lengths = [part.num_computed + 1 for part in slices]
    tables = torch.from_numpy(block_tables(slices, block_size)).to(device)
    return DecodeBatch(tables, torch.tensor(lengths, dtype=torch.int32, device=device), max(lengths))


def _chunk_batch(slices: Sequence[SequenceSlice], block_size: int, device: torch.device) -> ChunkBatch:
    num_tokens = [len(part.token_ids) for part in slices]
    tables = [_int64(part.filled_blocks(block_size), device) for part in slices]
    return ChunkBatch.build(num_tokens, [part.num_computed for part in slices], tables, device)


def _int64(values: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.int64)).to(device)
