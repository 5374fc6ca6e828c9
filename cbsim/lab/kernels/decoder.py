"""Decoder: the whole model, from the tokens of a ragged step to logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cbsim.lab.kernels.attention_backends import AttentionBackend, LayerCache
from cbsim.lab.kernels.dense import DenseLayer, Rotary, random_matrix
from cbsim.lab.kernels.lm_head import LmHead
from cbsim.lab.kernels.shard import Shard
from cbsim.lab.kernels.step_batch import StepBatch


class Decoder:
    """A decoder-only transformer of a `ModelSpec`'s shape over a paged KV cache.

    Weights are random from `seed` until loaded. Run it under `torch.inference_mode`.
    """

    def __init__(
        self,
        shard: Shard,
        backend: AttentionBackend,
        device: torch.device,
        *,
        max_positions: int,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        model = shard.model
        self.shard = shard
        self.backend = backend
        self.rotary = Rotary(shard, max_positions, device)
        self.embedding = random_matrix(model.vocab_size, model.hidden_size, shard.dtype, device, generator)
        self.layers = [DenseLayer(shard, device, generator) for _ in range(model.num_layers)]
        tied = self.embedding if model.tie_embeddings else None
        self.head = LmHead(shard, device, generator, tied)

    def logits(self, batch: StepBatch, caches: Sequence[LayerCache]) -> Tensor:
        """Compute a step, writing to `caches`, one a layer; returns `(S, vocab_size)` float32."""
        hidden = self.embedding[batch.token_ids]
        for layer, cache in zip(self.layers, caches, strict=True):
            query, keys, values = layer.project(hidden, batch.positions, self.rotary)
            cache.write(keys, values, batch.slots)
            hidden = layer.merge(hidden, attend(self.backend, query, keys, values, cache, batch))
        return self.head.logits(hidden[batch.logit_rows])


def attend(
    backend: AttentionBackend,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    cache: LayerCache,
    batch: StepBatch,
) -> Tensor:
    """Attention of a whole step: decodes by the one kernel, chunks by the other."""
    num_decodes = batch.num_decodes
    if batch.chunks is None and batch.decodes is not None:
        return backend.decode(query, cache, batch.decodes)
    if batch.decodes is None and batch.chunks is not None:
        return backend.prefill(query, keys, values, cache, batch.chunks)
    if batch.decodes is None or batch.chunks is None:
        raise ValueError("a step without tokens")
    out = query.new_empty(query.shape)
    out[:num_decodes] = backend.decode(query[:num_decodes], cache, batch.decodes)
    out[num_decodes:] = backend.prefill(
        query[num_decodes:], keys[num_decodes:], values[num_decodes:], cache, batch.chunks
    )
    return out
