"""Attention over a paged KV cache: what a step asks for, and the backends that compute it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from operator import add

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from cbsim.base.registry import Registry
from cbsim.lab.kernels.kernel_choice import KernelChoice
from cbsim.lab.kernels.shard import Shard

MIN_SLAB = 256
"""Queries, at least, that attend to their windows together."""


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The paged keys and values of one layer, `(num_blocks, block_size, num_kv_heads, head_size)` each."""

    keys: Tensor
    values: Tensor

    @classmethod
    def allocate(cls, shard: Shard, num_blocks: int, block_size: int, device: torch.device) -> LayerCache:
        """An empty cache; zeros, so that what was never written is finite."""
        shape = (num_blocks, block_size, shard.num_kv_heads, shard.head_size)
        return cls(*(torch.zeros(shape, dtype=shard.kv_dtype, device=device) for _ in range(2)))

    @property
    def block_size(self) -> int:
        """Tokens a block."""
        return self.keys.shape[1]

    def write(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Store `(T, num_kv_heads, head_size)` at `slots`, `(T,)` int64: block x block size + offset."""
        for held, new in ((self.keys, keys), (self.values, values)):
            _indexable(held.flatten(0, 1)).index_copy_(0, slots, _indexable(new.to(held.dtype)))

    def gather(
        self, block_table: Tensor, num_tokens: int | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of blocks: `(*any, n)` gives `(*any, n x block_size, heads, head_size)`.

        With `num_tokens`, and for the blocks of one sequence, only those of its first tokens; as `dtype`
        where the cache holds another.
        """
        parts = (self.keys, self.values)
        found = (_indexable(part)[block_table].view(part.dtype) for part in parts)
        keys, values = (part.flatten(-4, -3) for part in found)
        keys, values = keys[:num_tokens], values[:num_tokens]
        return (keys, values) if dtype is None else (keys.to(dtype), values.to(dtype))


def _indexable(part: Tensor) -> Tensor:
    """The same bytes as numbers that torch can index everywhere, which it can't floats of 8 bits."""
    return part.view(torch.uint8) if part.element_size() == 1 else part


@dataclass(frozen=True, slots=True)
class ChunkBatch:
    """The prompt chunks of a step, their tokens packed one chunk after another."""

    num_tokens: tuple[int, ...]
    contexts: tuple[int, ...]
    """Tokens before each chunk, whose keys and values are in the cache."""
    block_tables: tuple[Tensor, ...]
    """Of each chunk the blocks of its context and itself, int64."""
    token_starts: Tensor
    """`(chunks + 1,)` int32: where each chunk's queries start."""
    key_starts: Tensor
    """`(chunks + 1,)` int32: where each chunk's keys, context included, start when packed."""
    key_lens: Tensor
    """`(chunks,)` int32: the keys of each chunk, context included."""
    tables: Tensor
    """`(chunks, most blocks)` int32: the block tables, padded by blocks that don't count."""

    @classmethod
    def build(
        cls, num_tokens: list[int], contexts: list[int], block_tables: list[Tensor], device: torch.device
    ) -> ChunkBatch:
        """Put chunks together; `block_tables` are on the device already."""

        def starts(counts: Iterable[int]) -> Tensor:
            return torch.tensor([0, *accumulate(counts)], dtype=torch.int32, device=device)

        lengths = list(map(add, num_tokens, contexts))
        return cls(
            tuple(num_tokens),
            tuple(contexts),
            tuple(block_tables),
            starts(num_tokens),
            starts(lengths),
            torch.tensor(lengths, dtype=torch.int32, device=device),
            pad_sequence(block_tables, batch_first=True).int(),
        )


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """The decodes of a step: one query token each."""

    block_tables: Tensor
    """`(decodes, most blocks)` int32; entries beyond a context must be blocks too, but don't count."""
    context_lens: Tensor
    """`(decodes,)` int32: tokens each attends to, the one computed now included."""
    max_context: int
    """The longest of them."""


class AttentionBackend(ABC):
    """Computes one layer's causal grouped-query attention, the step's keys and values being cached already.

    Stateless between calls, free of host synchronisation, and so fit for CUDA graphs. `prefill` also gets the
    chunks' own keys and values, for chunks without context need nothing from the cache.
    """

    choice: KernelChoice | None = None
    """Which kernels it takes, and how they cut their work; None where there is nothing to choose."""
    prefill_names: tuple[str, ...] = ()
    """The kernels for chunks that it can choose from."""

    def __init__(self, shard: Shard, device: torch.device) -> None:
        self.shard = shard
        self.device = device
        self.scale = shard.head_size**-0.5

    @abstractmethod
    def prefill(
        self, query: Tensor, keys: Tensor, values: Tensor, cache: LayerCache, batch: ChunkBatch
    ) -> Tensor:
        """Packed `(T, num_heads, head_size)` queries, `(T, num_kv_heads, head_size)` keys and values.

        Returns `(T, num_heads, head_size)`. Token j of a chunk attends to its context and to tokens 0..j.
        """

    @abstractmethod
    def decode(self, query: Tensor, cache: LayerCache, batch: DecodeBatch) -> Tensor:
        """`(decodes, num_heads, head_size)` queries; returns the same shape."""

    def with_choice(self, choice: KernelChoice) -> AttentionBackend:
        """The same backend with other choices, if it has any."""
        return self

    def describe(self) -> str:
        """Which kernels are used, for `meta.json`."""
        return type(self).__name__


class SdpaBackend(AttentionBackend):
    """Attention by torch alone: the path of CPUs, the one that others are checked against, and that of layers
    with a window on any device, which it cuts out of the context by blocks and masks where it ends in one.
    """

    def __init__(self, shard: Shard, device: torch.device, window: int = 0) -> None:
        """`window`: tokens that it reaches back, the present one included; 0 for all."""
        super().__init__(shard, device)
        self.window = window

    def prefill(
        self, query: Tensor, keys: Tensor, values: Tensor, cache: LayerCache, batch: ChunkBatch
    ) -> Tensor:
        """See `AttentionBackend.prefill`: one call a chunk."""
        parts = []
        start = 0
        chunks = zip(batch.num_tokens, batch.contexts, batch.block_tables, strict=True)
        for num_tokens, context, table in chunks:
            own = slice(start, start + num_tokens)
            start += num_tokens
            if context:
                num_behind = max(0, context + 1 - self.window) // cache.block_size if self.window else 0
                num_seen = context + num_tokens - num_behind * cache.block_size
                seen = cache.gather(table[num_behind:], num_seen, query.dtype)
            else:
                seen = keys[own], values[own]
            parts.append(self._chunk(query[own], *seen))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def decode(self, query: Tensor, cache: LayerCache, batch: DecodeBatch) -> Tensor:
        """See `AttentionBackend.decode`: the query heads of a group are the rows of one product.

        `(B, num_kv_heads, group, head_size)` is 2 to 3 times as fast as `enable_gqa` in fp32 on a CPU,
        and over ten times in bf16.
        """
        num_decodes, lengths = query.shape[0], batch.context_lens[:, None]
        tables = batch.block_tables[:, : -(-batch.max_context // cache.block_size)].long()
        first: Tensor | int = 0
        if self.window:
            first = (lengths - self.window).clamp(min=0) // cache.block_size
            num_blocks = -(-(self.window - 1) // cache.block_size) + 1
            held = first + torch.arange(num_blocks, device=query.device)
            tables = tables.gather(1, held.clamp(max=tables.shape[1] - 1))
        keys, values = cache.gather(tables, dtype=query.dtype)
        places = torch.arange(keys.shape[1], device=query.device, dtype=torch.int32)
        places = places + first * cache.block_size
        seen = places < lengths
        if self.window:
            seen &= places >= lengths - self.window
        packed = query.view(num_decodes, self.shard.num_kv_heads, self.shard.group_size, self.shard.head_size)
        out = scaled_dot_product_attention(
            packed,
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=seen[:, None, None, :],
            scale=self.scale,
        )
        return out.reshape(query.shape)

    def describe(self) -> str:
        """See `AttentionBackend.describe`."""
        return "prefill: scaled_dot_product_attention; decode: gathered blocks, scaled_dot_product_attention"

    def _chunk(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One chunk: `(q, heads, size)` against `(k, kv_heads, size)`, aligned at the last token of both.

        With a window, by slabs of queries, so that long chunks take time in proportion to their length.
        """
        num_queries, num_keys, window = query.shape[0], keys.shape[0], self.window
        if not window or num_keys <= window:
            return self._attended(query, keys, values, causal_lower_right(num_queries, num_keys))
        parts = []
        for start in range(0, num_queries, max(window, MIN_SLAB)):
            slab = query[start : start + max(window, MIN_SLAB)]
            last = num_keys - num_queries + start + len(slab)
            seen = slice(max(0, last - len(slab) - window + 1), last)
            lead = last - seen.start - len(slab)
            mask = torch.ones(len(slab), last - seen.start, dtype=torch.bool, device=query.device)
            mask = mask.tril_(lead).triu_(lead - window + 1)
            parts.append(self._attended(slab, keys[seen], values[seen], mask))
        return torch.cat(parts)

    def _attended(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (part.transpose(0, 1)[None] for part in (query, keys, values))
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=self.scale, enable_gqa=self.shard.group_size > 1
        )
        return out[0].transpose(0, 1)


ATTENTION_BACKENDS: Registry[AttentionBackend] = Registry(
    "attention backend",
    "cbsim.attention_backends",
    AttentionBackend,  # type: ignore[type-abstract]
    {
        "sdpa": "cbsim.lab.kernels.attention_backends:SdpaBackend",
        "triton": "cbsim.lab.kernels.triton_backend:TritonBackend",
    },
)


def make_backend(name: str | None, shard: Shard, device: torch.device) -> AttentionBackend:
    """The backend of a name, by default `triton` on CUDA, else `sdpa`. Raises `PluginError` for others."""
    default = "triton" if device.type == "cuda" else "sdpa"
    return ATTENTION_BACKENDS.get(name or default)(shard, device)
