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
from cbsim.lab.kernels.graph_capture import CaptureFailed, captured
from cbsim.lab.kernels.kernel_choice import KernelChoice
from cbsim.lab.kernels.sampling import sample
from cbsim.lab.kernels.shard import Shard
from cbsim.lab.live.tokens import TokenBook
from cbsim.specs import ModelSpec

GRAPH_SIZES = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))
"""Batch sizes that vLLM captures by default."""
BlockedSlice = tuple[Slice, NDArray[np.int64]]
"""One request's share of a step, and the blocks it had when the step was decided, a row for each group."""


@dataclass(frozen=True, slots=True)
class Moves:
    """Blocks of requests, by index, whose KV goes to host memory, and then of those whose KV comes back."""

    out: dict[int, list[int]] = field(default_factory=dict)
    back: dict[int, list[int]] = field(default_factory=dict)


class ModelRunner:
    """A decoder with a paged KV cache of `num_blocks` blocks.

    `windows` has, for each group of layers that share blocks, the window behind which they are given back;
    one group of 0 has all layers and every token. The layers of a window are dealt out to its groups in turn,
    as `plan_kv_cache` does, and the n-th layers of all groups share a cache, of which a block is one group's.
    `graph_decodes` is the most decodes of a step that is replayed as a CUDA graph once `warm_up` has captured
    it; 0 computes every step kernel by kernel. `choice` says which kernels of the backend attend.
    """

    def __init__(
        self,
        model: ModelSpec,
        device: torch.device,
        *,
        num_blocks: int,
        block_size: int,
        backend: str | None = None,
        choice: KernelChoice | None = None,
        seed: int = 0,
        max_positions: int | None = None,
        graph_decodes: int = 0,
        windows: Sequence[int] = (0,),
    ) -> None:
        shard = Shard(model)
        self.device = device
        self.block_size = block_size
        self.max_positions = max_positions or model.max_model_len
        """Longest sequence that it can serve, tokens."""
        attention = make_backend(backend, shard, device)
        if choice is not None:
            attention = attention.with_choice(choice)
        self.decoder = Decoder(shard, attention, device, max_positions=self.max_positions, seed=seed)
        self.windows = tuple(windows)
        self.layer_groups, places = deal_layers(shard, windows)
        self.caches = [
            LayerCache.allocate(shard, num_blocks + (graph_decodes > 0), block_size, device)
            for _ in range(max(places) + 1)
        ]
        self._layer_caches = [self.caches[place] for place in places]
        self.graphs: DecodeGraphs | None = None
        self.notes: list[str] = []
        """What a reader of its times should know."""
        if graph_decodes:
            self.graphs = DecodeGraphs(
                self._compute,
                block_size,
                device,
                num_groups=len(windows),
                max_decodes=graph_decodes,
                max_context=min(self.max_positions, num_blocks * block_size),
                spare_block=num_blocks,
            )
        self._host: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def _compute(self, batches: Sequence[StepBatch]) -> Tensor:
        """The last layer's output where logits are wanted; a step is given for each group of layers."""
        return self.decoder.hidden([batches[group] for group in self.layer_groups], self._layer_caches)

    @torch.inference_mode()
    def run(self, slices: Sequence[BlockedSlice], book: TokenBook) -> None:
        """Compute a step and put the sampled tokens into the book; returns when they are there."""
        groups: list[list[SequenceSlice]] = [[] for _ in self.windows]
        for part, blocks in slices:
            tokens = book.slice(part.request, part.num_computed_tokens, part.num_tokens)
            for parts, own in zip(groups, blocks, strict=True):
                parts.append(SequenceSlice(tokens, part.num_computed_tokens, own, part.emits))
        if self.graphs is not None and self.graphs.covers(groups[0]):
            hidden, emitting = self.graphs.hidden(groups), [part.request for part, _ in slices]
        else:
            batches = [StepBatch.build(parts, self.block_size, self.device) for parts in groups]
            hidden = self._compute(batches)
            emitting = [slices[place][0].request for place in batches[0].emitting]
        if emitting:
            logits = self.decoder.head.logits(hidden)
            params = [book.sampling_of(request) for request in emitting]
            uniforms = [book.uniform(request) for request in emitting]
            for request, token in zip(emitting, sample(logits, params, uniforms).tolist(), strict=True):
                book.append(request, token)
        elif self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compute a small prompt and a decode on block 0 and capture graphs, for the first step to find.

        Without graphs where this GPU computes the model's experts with the host's help.
        """
        for num_tokens in (min(8, self.block_size), 1):
            part = SequenceSlice([0] * num_tokens, 0, [0], True)
            batches = [StepBatch.build([part], self.block_size, self.device)] * len(self.windows)
            self.decoder.head.logits(self._compute(batches))
        if self.graphs is not None and not self.graphs.capture():
            self.notes.append(
                f"steps were launched kernel by kernel: no CUDA graph could be made ({self.graphs.failure})"
            )
            self.graphs = None

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
    then launches one graph instead of every kernel of every layer. The LM head is no part of it, as in vLLM:
    each graph would keep its logits, gigabytes over all sizes.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[StepBatch]], Tensor],
        block_size: int,
        device: torch.device,
        *,
        num_groups: int,
        max_decodes: int,
        max_context: int,
        spare_block: int,
    ) -> None:
        self.sizes = [size for size in GRAPH_SIZES if size < max_decodes] + [max_decodes]
        self._compute = compute
        self._block_size, self._device = block_size, device
        self._num_groups = num_groups
        self._max_context = max_context
        self._spare = SequenceSlice([0], 0, [spare_block], True)
        self._captured: dict[int, tuple[list[StepBatch], Callable[[], Tensor]]] = {}
        """By size: the batches whose tensors are written before each step, and what computes it."""
        self.failure = ""
        """Why no graph could be captured."""

    def capture(self) -> bool:
        """Capture every size, the largest first, so that the smaller ones find memory to share.

        False if it can't be done.
        """
        pool = torch.cuda.graph_pool_handle() if self._device.type == "cuda" else None
        for size in reversed(self.sizes):
            batches = [self._spare_batch(size) for _ in range(self._num_groups)]
            compute: Callable[[], Tensor] = partial(self._compute, batches)
            # A CPU has no graphs: there the same padded batch is computed as it is.
            if pool is not None:
                try:
                    compute = self._graph_of(compute, pool)
                except CaptureFailed as error:
                    torch.cuda.synchronize(self._device)
                    self.failure = str(error)
                    return False
            self._captured[size] = batches, compute
        return True

    def _graph_of(self, compute: Callable[[], Tensor], pool: Any) -> Callable[[], Tensor]:
        compute()
        torch.cuda.synchronize(self._device)
        graph, hidden = captured(compute, pool)

        def replay() -> Tensor:
            graph.replay()
            return hidden

        return replay

    def covers(self, slices: Sequence[SequenceSlice]) -> bool:
        """Whether a step is decodes alone, and not too many."""
        are_decodes = all(len(part.token_ids) == 1 and part.emits for part in slices)
        return are_decodes and len(slices) <= self.sizes[-1]

    def hidden(self, groups: Sequence[Sequence[SequenceSlice]]) -> Tensor:
        """The last layer's output for each slice in order, `(S, hidden_size)`, good until the next call.

        Slices are given for each group of layers, equal but for their blocks.
        """
        num_slices = len(groups[0])
        batches, compute = self._captured[next(size for size in self.sizes if size >= num_slices)]
        for batch, slices in zip(batches, groups, strict=True):
            self._fill(batch, slices)
        return compute()[:num_slices]

    def _fill(self, batch: StepBatch, slices: Sequence[SequenceSlice]) -> None:
        assert batch.decodes is not None
        padded = [*slices, *[self._spare] * (len(batch.token_ids) - len(slices))]
        columns = torch.from_numpy(decode_columns(padded, self._block_size)).to(self._device)
        token_ids, positions, slots = columns
        tables = block_tables(padded, self._block_size, batch.decodes.block_tables.shape[1])
        batch.token_ids.copy_(token_ids)
        batch.positions.copy_(positions)
        batch.slots.copy_(slots)
        batch.decodes.context_lens.copy_(positions + 1)
        batch.decodes.block_tables.copy_(torch.from_numpy(tables))

    def _spare_batch(self, size: int) -> StepBatch:
        batch = StepBatch.build([self._spare] * size, self._block_size, self._device)
        assert batch.decodes is not None
        shape = (size, -(-self._max_context // self._block_size))
        tables = torch.zeros(shape, dtype=torch.int32, device=self._device)
        return replace(batch, decodes=DecodeBatch(tables, batch.decodes.context_lens, self._max_context))


def deal_layers(shard: Shard, windows: Sequence[int]) -> tuple[list[int], list[int]]:
    """Of each layer its group, of those with these windows, and its place among the group's layers."""
    groups: list[int] = []
    for layer in range(shard.model.num_layers):
        window = shard.window_of(layer) if len(windows) > 1 else windows[0]
        own = [group for group, reach in enumerate(windows) if reach == window]
        groups.append(min(own, key=groups.count))
    return groups, [groups[:layer].count(group) for layer, group in enumerate(groups)]
