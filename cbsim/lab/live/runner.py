"""ModelRunner: the model and its KV cache on a device; computes one step, decodes alone as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cbsim.core.stepping import Slice
from cbsim.lab.kernels.attention_backends import DecodeBatch, LayerCache, make_backend
from cbsim.lab.kernels.decoder import Decoder, SequenceSlice, StepBatch, block_tables, decode_columns
from cbsim.lab.kernels.sampling import sample
from cbsim.lab.kernels.shard import Shard
from cbsim.lab.live.tokens import TokenBook
from cbsim.specs import ModelSpec

GRAPH_SIZES = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))
"""Batch sizes that vLLM captures by default."""
BlockedSlice = tuple[Slice, NDArray[np.int64]]
"""One request's share of a step, and the blocks it had when the step was decided."""


@dataclass(frozen=True, slots=True)
class Moves:
    """Blocks of requests, by index, whose KV goes to host memory, and then of those whose KV comes back."""

    out: dict[int, list[int]] = field(default_factory=dict)
    back: dict[int, list[int]] = field(default_factory=dict)


class ModelRunner:
    """A decoder with a paged KV cache of `num_blocks` blocks, one set of block numbers for all layers.

    `graph_decodes` is the most decodes of a step that is replayed as a CUDA graph once `warm_up` has captured
    it; 0 computes every step kernel by kernel.
    """

    def __init__(
        self,
        model: ModelSpec,
        device: torch.device,
        *,
        num_blocks: int,
        block_size: int,
        backend: str | None = None,
        seed: int = 0,
        max_positions: int | None = None,
        graph_decodes: int = 0,
    ) -> None:
        shard = Shard(model)
        self.device = device
        self.block_size = block_size
        self.max_positions = max_positions or model.max_model_len
        """Longest sequence that it can serve, tokens."""
        self.decoder = Decoder(
            shard, make_backend(backend, shard, device), device, max_positions=self.max_positions, seed=seed
        )
        self.caches = [
            LayerCache.allocate(shard, num_blocks + (graph_decodes > 0), block_size, device)
            for _ in self.decoder.layers
        ]
        self.graphs: DecodeGraphs | None = None
        if graph_decodes:
            self.graphs = DecodeGraphs(
                self.decoder,
                self.caches,
                max_decodes=graph_decodes,
                max_context=min(self.max_positions, num_blocks * block_size),
                spare_block=num_blocks,
            )
        self._host: dict[int, list[tuple[Tensor, Tensor]]] = {}

    @torch.inference_mode()
    def run(self, slices: Sequence[BlockedSlice], book: TokenBook) -> None:
        """Compute a step and put the sampled tokens into the book; returns when they are there."""
        parts = []
        for part, blocks in slices:
            tokens = book.slice(part.request, part.num_computed_tokens, part.num_tokens)
            parts.append(SequenceSlice(tokens, part.num_computed_tokens, blocks, part.emits))
        if self.graphs is not None and self.graphs.covers(parts):
            logits, emitting = self.graphs.logits(parts), [part.request for part, _ in slices]
        else:
            batch = StepBatch.build(parts, self.block_size, self.device)
            logits = self.decoder.logits(batch, self.caches)
            emitting = [slices[place][0].request for place in batch.emitting]
        if emitting:
            params = [book.sampling_of(request) for request in emitting]
            uniforms = [book.uniform(request) for request in emitting]
            for request, token in zip(emitting, sample(logits, params, uniforms).tolist(), strict=True):
                book.append(request, token)
        elif self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compute a small prompt and a decode on block 0 and capture graphs, for the first step to find."""
        for num_tokens in (min(8, self.block_size), 1):
            part = SequenceSlice([0] * num_tokens, 0, [0], True)
            self.decoder.logits(StepBatch.build([part], self.block_size, self.device), self.caches)
        if self.graphs is not None:
            self.graphs.capture()

    @torch.inference_mode()
    def move(self, moves: Moves) -> None:
        """Copy blocks to host memory, and back to the blocks that requests hold now."""
        for index, blocks in moves.out.items():
            at = torch.tensor(blocks, device=self.device)
            self._host[index] = [(cache.keys[at].cpu(), cache.values[at].cpu()) for cache in self.caches]
        for index, blocks in moves.back.items():
            at = torch.tensor(blocks, device=self.device)
            for cache, (keys, values) in zip(self.caches, self._host.pop(index), strict=True):
                cache.keys[at] = keys.to(self.device)
                cache.values[at] = values.to(self.device)


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
        self._spare = SequenceSlice([0], 0, [spare_block], True)
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
        padded = [*slices, *[self._spare] * (len(batch.token_ids) - len(slices))]
        token_ids, positions, slots = torch.from_numpy(decode_columns(padded, block_size)).to(self._device)
        tables = block_tables(padded, block_size, batch.decodes.block_tables.shape[1])
        batch.token_ids.copy_(token_ids)
        batch.positions.copy_(positions)
        batch.slots.copy_(slots)
        batch.decodes.context_lens.copy_(positions + 1)
        batch.decodes.block_tables.copy_(torch.from_numpy(tables))

    def _spare_batch(self, size: int) -> StepBatch:
        batch = StepBatch.build([self._spare] * size, self._caches[0].block_size, self._device)
        assert batch.decodes is not None
        shape = (size, -(-self._max_context // self._caches[0].block_size))
        tables = torch.zeros(shape, dtype=torch.int32, device=self._device)
        return replace(batch, decodes=DecodeBatch(tables, batch.decodes.context_lens, self._max_context))
