"""A ragged step as tensors, and the whole decoder over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear

from cbsim.lab.kernels.attention_backends import (
    AttentionBackend,
    ChunkBatch,
    DecodeBatch,
    LayerCache,
    SdpaBackend,
)
from cbsim.lab.kernels.feed_forward import Experts, GatedMlp, Maker
from cbsim.lab.kernels.layer_ops import LayerOps, layer_ops
from cbsim.lab.kernels.shard import Shard
from cbsim.specs.model import PartName


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


class Rotary:
    """Rotary positions (RoFormer, arXiv:2104.09864), the halves of a head being the pairs, as in Llama.

    The table holds cosine and sine of `position / theta**(2i/head_size)` for positions below `max_positions`.
    """

    def __init__(self, shard: Shard, max_positions: int, device: torch.device) -> None:
        exponent = torch.arange(0, shard.head_size, 2, dtype=torch.float64, device=device) / shard.head_size
        frequency = shard.model.rope_theta**-exponent
        angle = torch.arange(max_positions, dtype=torch.float64, device=device)[:, None] * frequency
        self.cos = angle.cos().to(shard.dtype)
        self.sin = angle.sin().to(shard.dtype)


class DecoderLayer:
    """One layer's weights, random until loaded, and its two halves around attention.

    Norms and biases follow Llama: RMSNorm before each half, no biases, SwiGLU; queries and keys are
    normalised per head if the model says so. A layer with experts has an MLP if every token goes to some.
    """

    def __init__(self, make: Maker, has_experts: bool, routes_evenly: bool) -> None:
        shard = make.shard
        model = shard.model
        self.shard, self.ops = shard, make.ops
        self.eps = model.norm_eps
        attention_size = shard.num_heads * shard.head_size
        qkv_size = attention_size + 2 * shard.num_kv_heads * shard.head_size
        self.input_norm = make.ones(model.hidden_size)
        self.qkv = make.matrix("attention", qkv_size, model.hidden_size)
        self.query_norm = make.ones(shard.head_size) if model.qk_norm else None
        self.key_norm = make.ones(shard.head_size) if model.qk_norm else None
        self.o = make.matrix("attention", model.hidden_size, attention_size)
        self.mlp_norm = make.ones(model.hidden_size)
        mlp_size = shard.shared_size if has_experts else shard.intermediate_size
        part: PartName = "shared_experts" if has_experts else "mlp"
        self.mlp = GatedMlp(make, part, mlp_size) if mlp_size else None
        self.experts = Experts(make, routes_evenly) if has_experts else None

    def project(
        self, hidden: Tensor, delta: Tensor | None, positions: Tensor, rotary: Rotary
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Before attention: `(T, hidden_size)`, and what the layer before adds to it, to their sum and the
        query, keys and values of `(T, heads, head_size)`.
        """
        shard = self.shard
        hidden, normed = self.ops.add_norm(hidden, delta, self.input_norm, self.eps)
        heads = self.ops.product(normed, self.qkv).view(hidden.shape[0], -1, shard.head_size)
        norms = None
        if self.query_norm is not None and self.key_norm is not None:
            norms = self.query_norm, self.key_norm
        counts = shard.num_heads, shard.num_kv_heads
        query, keys = self.ops.rotate(heads, positions, rotary.cos, rotary.sin, *counts, norms, self.eps)
        return hidden, query, keys, heads[:, sum(counts) :]

    def merge(self, hidden: Tensor, attended: Tensor) -> tuple[Tensor, Tensor | None]:
        """After attention: `(T, heads, head_size)` through o, added to `hidden`; then what the MLP and the
        experts add to that, which the next norm does.
        """
        hidden, delta, normed = self.merge_dense(hidden, attended)
        if self.experts is None:
            return hidden, delta
        routed = self.experts(normed)
        return hidden, routed if delta is None else delta + routed

    def merge_dense(self, hidden: Tensor, attended: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """The same without routed experts, and what those are given."""
        update = self.ops.product(attended.flatten(1), self.o)
        hidden, normed = self.ops.add_norm(hidden, update, self.mlp_norm, self.eps)
        return hidden, None if self.mlp is None else self.mlp(normed), normed


class LmHead:
    """The final RMSNorm and the LM head; `weight` is the embedding table itself where the model ties them."""

    def __init__(self, shard: Shard, weight: Tensor, ops: LayerOps) -> None:
        self.eps = shard.model.norm_eps
        self.norm = torch.ones(shard.model.hidden_size, dtype=shard.dtype, device=weight.device)
        self.weight = weight
        self.ops = ops

    def normed(self, hidden: Tensor, delta: Tensor | None = None) -> Tensor:
        """`(S, hidden_size)`, and what the last layer adds to it, normalised."""
        return self.ops.add_norm(hidden, delta, self.norm, self.eps)[1]

    def logits(self, normed: Tensor) -> Tensor:
        """`(S, hidden_size)`, normalised, to `(S, vocab_size)`, float32."""
        return linear(normed, self.weight).float()


class Decoder:
    """A decoder-only transformer of a `ModelSpec`'s shape over a paged KV cache.

    Weights are random from `seed` until loaded. With `routes_evenly` tokens are dealt out to experts in turn.
    Layers with a window attend by torch, whatever the `backend`; `ops` are those that suit the device unless
    given. Run it under `torch.inference_mode`.
    """

    def __init__(
        self,
        shard: Shard,
        backend: AttentionBackend,
        device: torch.device,
        max_positions: int,
        seed: int = 0,
        routes_evenly: bool = False,
        ops: LayerOps | None = None,
    ) -> None:
        model = shard.model
        self.shard = shard
        self.backend = backend
        self.sliding = SdpaBackend(shard, device, model.window)
        self.ops = ops or layer_ops(device)
        self.rotary = Rotary(shard, max_positions, device)
        make = Maker(shard, device, torch.Generator(device).manual_seed(seed), self.ops)
        self.embedding = make.random(model.vocab_size, model.hidden_size)
        self.layers = [
            DecoderLayer(make, shard.has_experts(number), routes_evenly) for number in range(model.num_layers)
        ]
        tied = model.tie_embeddings
        weight = self.embedding if tied else make.random(shard.vocab_size, model.hidden_size)
        self.head = LmHead(shard, weight, self.ops)

    def logits(self, batches: StepBatch | Sequence[StepBatch], caches: Sequence[LayerCache]) -> Tensor:
        """A step's logits, `(S, vocab_size)` float32; see `hidden`."""
        return self.head.logits(self.hidden(batches, caches))

    def hidden(self, batches: StepBatch | Sequence[StepBatch], caches: Sequence[LayerCache]) -> Tensor:
        """Compute a step, writing to `caches`, one a layer; returns what the LM head is given, `(S, hidden)`.

        Where layers have KV blocks of their own, `batches` has the step for each layer, equal but for blocks.
        """
        if isinstance(batches, StepBatch):
            batches = [batches] * len(self.layers)
        hidden: Tensor = self.embedding[batches[0].token_ids]
        delta: Tensor | None = None
        for number, (layer, batch, cache) in enumerate(zip(self.layers, batches, caches, strict=True)):
            hidden, query, keys, values = layer.project(hidden, delta, batch.positions, self.rotary)
            self.ops.write(cache, keys, values, batch.slots)
            backend = self.sliding if self.shard.window_of(number) else self.backend
            hidden, delta = layer.merge(hidden, batch.attend(backend, query, keys, values, cache))
        rows = batches[0].logit_rows
        return self.head.normed(hidden[rows], None if delta is None else delta[rows])
