"""DecodeGraphs: steps of decodes alone, replayed as CUDA graphs of a few batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cbsim.lab.kernels.attention_backends import DecodeBatch, LayerCache
from cbsim.lab.kernels.decoder import Decoder
from cbsim.lab.kernels.step_batch import SequenceSlice, StepBatch, decode_columns

GRAPH_SIZES = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))
"""Batch sizes that vLLM captures by default."""


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
        self._captured: dict[int, tuple[StepBatch, Callable[[], Tensor]]] = {}
        """By size: the batch whose tensors are written before each step, and what computes its logits."""

    def capture(self) -> None:
        """Capture every size, the largest first, so that the smaller ones find memory to share."""
        pool = torch.cuda.graph_pool_handle() if self._device.type == "cuda" else None
        for size in reversed(self.sizes):
            batch = self._spare_batch(size)
            compute = partial(self._decoder.logits, batch, self._caches)
            # A CPU has no graphs: there the same padded batch is computed as it is.
            self._captured[size] = batch, compute if pool is None else self._graph_of(compute, pool)

    def _graph_of(self, compute: Callable[[], Tensor], pool: Any) -> Callable[[], Tensor]:
        compute()
        torch.cuda.synchronize(self._device)
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            logits = compute()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay

    def covers(self, slices: Sequence[SequenceSlice]) -> bool:
        """Whether a step is decodes alone, and not too many."""
        are_decodes = all(len(part.token_ids) == 1 and part.emits for part in slices)
        return are_decodes and len(slices) <= self.sizes[-1]

    def logits(self, slices: Sequence[SequenceSlice]) -> Tensor:
        """Logits of each slice in order, `(S, vocab_size)` float32, good until the next call."""
        batch, compute = self._captured[next(size for size in self.sizes if size >= len(slices))]
        self._fill(batch, slices)
        return compute()[: len(slices)]

    def _fill(self, batch: StepBatch, slices: Sequence[SequenceSlice]) -> None:
        assert batch.decodes is not None
        block_size = self._caches[0].block_size
        spare = SequenceSlice([0], 0, [self._spare_block], True)
        padded = [*slices, *[spare] * (len(batch.token_ids) - len(slices))]
        token_ids, positions, slots = torch.from_numpy(decode_columns(padded, block_size)).to(self._device)
        tables = np.full(batch.decodes.block_tables.shape, self._spare_block, np.int32)
        for row, part in zip(tables, padded, strict=True):
            num_blocks = part.num_computed // block_size + 1
            row[:num_blocks] = part.blocks[:num_blocks]
        batch.token_ids.copy_(token_ids)
        batch.positions.copy_(positions)
        batch.slots.copy_(slots)
        batch.decodes.context_lens.copy_(positions + 1)
        batch.decodes.block_tables.copy_(torch.from_numpy(tables))

    def _spare_batch(self, size: int) -> StepBatch:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self._device)

        num_blocks = -(-self._max_context // self._caches[0].block_size)
        tables, lens = zeros(size, num_blocks, dtype=torch.int32), zeros(size, dtype=torch.int32)
        batch = StepBatch(
            token_ids=zeros(size),
            positions=zeros(size),
            slots=zeros(size),
            logit_rows=torch.arange(size, device=self._device),
            decodes=DecodeBatch(tables, lens, self._max_context),
            chunks=None,
            emitting=tuple(range(size)),
        )
        self._fill(batch, ())
        return batch
