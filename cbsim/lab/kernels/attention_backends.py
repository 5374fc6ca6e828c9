"""Attention over a paged KV cache: what a step asks for, and the backends that compute it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from operator import add

import torch
from torch import Tensor

from cbsim.base.registry import Registry
from cbsim.lab.kernels.shard import Shard


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The paged keys and values of one layer, `(num_blocks, block_size, num_kv_heads, head_size)` each."""

    keys: Tensor
    values: Tensor

    @classmethod
    def allocate(cls, shard: Shard, num_blocks: int, block_size: int, device: torch.device) -> LayerCache:
        """An empty cache; zeros, so that what was never written is finite."""
        shape = (num_blocks, block_size, shard.num_kv_heads, shard.head_size)
        return cls(*(torch.zeros(shape, dtype=shard.dtype, device=device) for _ in range(2)))

    @property
    def block_size(self) -> int:
        """Tokens a block."""
        return self.keys.shape[1]

    def write(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Store `(T, num_kv_heads, head_size)` at `slots`, `(T,)` int64: block x block size + offset."""
        self.keys.flatten(0, 1).index_copy_(0, slots, keys)
        self.values.flatten(0, 1).index_copy_(0, slots, values)

    def gather(self, block_table: Tensor, num_tokens: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of blocks: `(*any, n)` gives `(*any, n x block_size, heads, head_size)`.

        With `num_tokens`, and for the blocks of one sequence, only those of its first tokens.
        """
        keys, values = (part[block_table].flatten(-4, -3) for part in (self.keys, self.values))
        return keys[:num_tokens], values[:num_tokens]


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

    @classmethod
    def build(
        cls, num_tokens: list[int], contexts: list[int], block_tables: list[Tensor], device: torch.device
    ) -> ChunkBatch:
        """Put chunks together; `block_tables` are on the device already."""

        def starts(counts: Iterable[int]) -> Tensor:
            return torch.tensor([0, *accumulate(counts)], dtype=torch.int32, device=device)

        key_starts = starts(map(add, num_tokens, contexts))
        return cls(tuple(num_tokens), tuple(contexts), tuple(block_tables), starts(num_tokens), key_starts)


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

    def describe(self) -> str:
        """Which kernels are used, for `meta.json`."""
        return type(self).__name__


ATTENTION_BACKENDS: Registry[AttentionBackend] = Registry(
    "attention backend",
    "cbsim.attention_backends",
    AttentionBackend,  # type: ignore[type-abstract]
    {
        "sdpa": "cbsim.lab.kernels.sdpa:SdpaBackend",
        "triton": "cbsim.lab.kernels.triton_backend:TritonBackend",
    },
)


def make_backend(name: str | None, shard: Shard, device: torch.device) -> AttentionBackend:
    """The backend of a name, by default `triton` on CUDA, else `sdpa`. Raises `PluginError` for others."""
    default = "triton" if device.type == "cuda" else "sdpa"
    return ATTENTION_BACKENDS.get(name or default)(shard, device)
