"""DecodeGraphs: steps of decodes alone, replayed as CUDA graphs of a few batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cbsim.lab.kernels.attention_backends import DecodeBatch, LayerCache
from cbsim.lab.kernels.decoder import Decoder
from cbsim.lab.kernels.step_batch import SequenceSlice, StepBatch, decode_columns

GRAPH_SIZES = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))
"""Batch sizes that vLLM captures by default."""


@dataclass(slots=True)
class _Captured:
    """One batch size: the batch whose tensors are written before each replay, and what the replay fills."""

    batch: StepBatch
    graph: Any
    """None on a CPU, where the same padded batch is computed as it is."""
    logits: Tensor | None = None


class DecodeGraphs:
    """Computes a step of up to `max_decodes` decodes at the next larger captured size.

    Rows beyond the step's own attend to one token of `spare_block`, a block that nobody else has. The host
    then launches one graph instead of some twenty kernels a layer.
    """

    def __init__(
        self,
        decoder: Decoder,
        caches: Sequence[LayerCache],
        *,
        max_decodes: int,
        max_context: int,
        spare_block: int,
    ) -> None:
        self.sizes = [size for size in GRAPH_SIZES if size < max_decodes] + [max_decodes]
        self._decoder = decoder
        self._caches = caches
        self._max_context = max_context
        self._spare_block = spare_block
        self._device = decoder.embedding.device
        self._captured: dict[int, _Captured] = {}

    def capture(self) -> None:
        """Capture every size, the largest first, so that the smaller ones find memory to share."""
        pool = torch.cuda.graph_pool_handle() if self._device.type == "cuda" else None
        for size in reversed(self.sizes):
            captured = _Captured(self._empty_batch(size), None)
            if pool is not None:
                captured.logits = self._decoder.logits(captured.batch, self._caches)
                torch.cuda.synchronize(self._device)
                captured.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(captured.graph, pool=pool):
                    captured.logits = self._decoder.logits(captured.batch, self._caches)
            self._captured[size] = captured

    def covers(self, slices: Sequence[SequenceSlice]) -> bool:
        """Whether a step is decodes alone, and not too many."""
        return len(slices) <= self.sizes[-1] and all(
            len(part.token_ids) == 1 and part.emits for part in slices
        )

    def logits(self, slices: Sequence[SequenceSlice]) -> Tensor:
        """Logits of each slice in order, `(S, vocab_size)` float32, good until the next call."""
        captured = self._captured[next(size for size in self.sizes if size >= len(slices))]
        self._fill(captured.batch, slices)
        if captured.graph is None:
            captured.logits = self._decoder.logits(captured.batch, self._caches)
        else:
            captured.graph.replay()
        assert captured.logits is not None
        return captured.logits[: len(slices)]

    def _fill(self, batch: StepBatch, slices: Sequence[SequenceSlice]) -> None:
        assert batch.decodes is not None
        size = len(batch.token_ids)
        block_size = self._caches[0].block_size
        columns = np.zeros((3, size), np.int64)
        columns[2] = self._spare_block * block_size
        tables = np.full(batch.decodes.block_tables.shape, self._spare_block, np.int32)
        columns[:, : len(slices)] = decode_columns(slices, block_size)
        for row, part in zip(tables, slices, strict=False):
            num_blocks = part.num_computed // block_size + 1
            row[:num_blocks] = part.blocks[:num_blocks]
        token_ids, positions, slots = torch.from_numpy(columns).to(self._device)
        batch.token_ids.copy_(token_ids)
        batch.positions.copy_(positions)
        batch.slots.copy_(slots)
        batch.decodes.context_lens.copy_(positions + 1)
        batch.decodes.block_tables.copy_(torch.from_numpy(tables))

    def _empty_batch(self, size: int) -> StepBatch:
        block_size = self._caches[0].block_size

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self._device)

        decodes = DecodeBatch(
            block_tables=zeros(size, -(-self._max_context // block_size), dtype=torch.int32)
            + self._spare_block,
            context_lens=zeros(size, dtype=torch.int32) + 1,
            max_context=self._max_context,
        )
        return StepBatch(
            token_ids=zeros(size),
            positions=zeros(size),
            slots=zeros(size) + self._spare_block * block_size,
            logit_rows=torch.arange(size, device=self._device),
            decodes=decodes,
            chunks=None,
            emitting=tuple(range(size)),
        )
