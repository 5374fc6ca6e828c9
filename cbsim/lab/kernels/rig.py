"""Rig: a model on a device, set up so that each part of a step can be called alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cbsim.base.errors import CalibrationError
from cbsim.lab.kernels.attention_backends import AttentionBackend, LayerCache, make_backend
from cbsim.lab.kernels.decoder import Decoder, DecoderLayer, SequenceSlice, StepBatch
from cbsim.lab.kernels.sampling import greedy
from cbsim.lab.kernels.shard import Shard
from cbsim.lab.kernels.timing import Call, Device

BLOCK_SIZE = 16
FILLED_BLOCKS = 4096
"""Blocks that get random content at a time, which not every dtype can be made of directly."""
Chunks = Sequence[tuple[int, int]]
"""Prompt chunks `(tokens, context)`."""


class Rig:
    """Random weights and random keys and values at a model's real shapes.

    One pool of KV blocks serves twice: whole for the attention of one layer, shared out over the layers for
    whole steps. Every call gets blocks of its own, scattered over the pool, and each call with weights those
    of another layer, so that calls in a row find caches cold. Tokens are dealt out to experts evenly.
    """

    def __init__(
        self,
        shard: Shard,
        device: Device,
        *,
        num_blocks: int,
        max_positions: int,
        backend: str | None = None,
        seed: int = 0,
    ) -> None:
        """`num_blocks` KV blocks of one layer in all. Raises `CalibrationError` if it doesn't fit."""
        self.shard = shard
        self.device = device.torch_device
        self.backend = make_backend(backend, shard, self.device)
        try:
            self.decoder = Decoder(
                shard, self.backend, self.device, max_positions=max_positions, seed=seed, routes_evenly=True
            )
            self.pool = LayerCache.allocate(shard, num_blocks, BLOCK_SIZE, self.device)
        except torch.OutOfMemoryError as error:
            problem = f"model {shard.model.name} doesn't fit on {device.name}: {error}"
            raise CalibrationError(problem) from error
        self._random = torch.Generator(self.device).manual_seed(seed)
        self._rng = np.random.Generator(np.random.PCG64(seed))
        num_layers = shard.model.num_layers
        per_layer = num_blocks // num_layers
        pools = self.pool.keys, self.pool.values
        for pool in pools:
            for piece in torch.split(pool, FILLED_BLOCKS):
                piece.copy_(self._normal(*piece.shape))
        parts = (torch.split(pool[: num_layers * per_layer], per_layer) for pool in pools)
        self.step_caches = [LayerCache(*part) for part in zip(*parts, strict=True)]
        self._scattered = {count: self._rng.permutation(count) for count in (num_blocks, per_layer)}
        self._next_block = 0

    def use(self, backend: AttentionBackend) -> None:
        """Compute attention by another backend, in whole steps too."""
        self.backend = self.decoder.backend = backend

    @property
    def mlp_layers(self) -> list[DecoderLayer]:
        """Layers without experts."""
        return [layer for layer in self.decoder.layers if layer.experts is None]

    @property
    def expert_layers(self) -> list[DecoderLayer]:
        """Layers with experts."""
        return [layer for layer in self.decoder.layers if layer.experts is not None]

    def dense(self, layers: Sequence[DecoderLayer], tokens: int, count: int) -> list[Call]:
        """Calls of one layer's work outside attention, KV write included, routed experts apart."""
        hidden, update = (self._normal(tokens, self.shard.model.hidden_size) for _ in range(2))
        attended = self._normal(tokens, self.shard.num_heads, self.shard.head_size)
        positions = torch.arange(tokens, device=self.device) % self.decoder.rotary.cos.shape[0]
        slots = torch.arange(tokens, device=self.device)

        def run(layer: DecoderLayer) -> Tensor:
            added, _, keys, values = layer.project(hidden, update, positions, self.decoder.rotary)
            self.decoder.ops.write(self.pool, keys, values, slots)
            return layer.merge_dense(added, attended)[0]

        return [partial(run, layer) for layer in islice(cycle(layers), count)]

    def experts(self, tokens: int, count: int) -> list[Call]:
        """Calls of one layer's routed experts and their router."""
        hidden = self._normal(tokens, self.shard.model.hidden_size)
        layers = [layer.experts for layer in self.decoder.layers if layer.experts is not None]
        return [partial(experts, hidden) for experts in islice(cycle(layers), count)]

    def logits(self, rows: int, count: int) -> list[Call]:
        """Calls of the final norm, the LM head and greedy sampling."""
        hidden, update = (self._normal(rows, self.shard.model.hidden_size) for _ in range(2))
        head = self.decoder.head
        return [lambda: greedy(head.logits(head.normed(hidden, update)))] * count

    def attention(
        self, chunks: Chunks, contexts: Sequence[int], count: int, *, slides: bool = False
    ) -> list[Call]:
        """Calls of one layer's attention: chunks, and decodes that attend to `contexts` tokens each.

        With `slides` of a layer with the model's window.
        """
        shard = self.shard
        tokens = len(contexts) + sum(n for n, _ in chunks)
        query = self._normal(tokens, shard.num_heads, shard.head_size)
        keys, values = (self._normal(tokens, shard.num_kv_heads, shard.head_size) for _ in range(2))
        batches = [self._batch(chunks, contexts, 0, self.pool) for _ in range(count)]
        backend = self.decoder.sliding if slides else self.backend
        return [partial(batch.attend, backend, query, keys, values, self.pool) for batch in batches]

    def step(self, chunks: Chunks, contexts: Sequence[int], num_finishing: int, count: int) -> list[Call]:
        """Calls of the whole model, from tokens to tokens; the first `num_finishing` chunks give logits."""

        def run(batch: StepBatch) -> Tensor:
            return greedy(self.decoder.logits(batch, self.step_caches))

        cache = self.step_caches[0]
        return [partial(run, self._batch(chunks, contexts, num_finishing, cache)) for _ in range(count)]

    def _batch(
        self, chunks: Chunks, contexts: Sequence[int], num_finishing: int, cache: LayerCache
    ) -> StepBatch:
        """Sequences on the next scattered blocks."""
        sizes = [(1, context - 1, True) for context in contexts]
        sizes += [(n, before, i < num_finishing) for i, (n, before) in enumerate(chunks)]
        slices = []
        for tokens, before, emits in sizes:
            token_ids = self._rng.integers(0, self.shard.model.vocab_size, tokens)
            blocks = self._take_blocks(-(-(before + tokens) // BLOCK_SIZE), cache.keys.shape[0])
            slices.append(SequenceSlice(token_ids, before, blocks, emits))
        return StepBatch.build(slices, BLOCK_SIZE, self.device)

    def _take_blocks(self, count: int, num_blocks: int) -> NDArray[np.int64]:
        places = np.arange(self._next_block, self._next_block + count) % num_blocks
        self._next_block += count
        return self._scattered[num_blocks][places]

    def _normal(self, *shape: int) -> Tensor:
        out = torch.empty(shape, dtype=self.shard.dtype, device=self.device)
        return out.normal_(generator=self._random)
