"""TritonBackend: paged decode by our own kernel, prefill packed or by SDPA."""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import add
from typing import Any

import torch
from torch import Tensor

from cbsim.base.errors import CalibrationError
from cbsim.lab.kernels.attention_backends import (
    AttentionBackend,
    ChunkBatch,
    DecodeBatch,
    LayerCache,
    SdpaBackend,
)
from cbsim.lab.kernels.shard import Shard

INTERPRETED_PROCESSORS = 8
MIN_TILE = 16
"""Tokens that `tl.dot` needs at least."""


@dataclass(frozen=True, slots=True)
class DecodeTuning:
    """How the decode kernel cuts its work."""

    tile: int = 64
    """Tokens read at once."""
    num_warps: int = 4
    num_stages: int = 3
    programs_per_processor: int = 4
    """How many programs to have for each multiprocessor, at most, by splitting contexts."""
    max_splits: int = 64

    def shared_bytes(self, shard: Shard) -> int:
        """Shared memory of a program at most: keys and values of a tile for each stage."""
        padded_size = 1 << (shard.head_size - 1).bit_length()
        return 2 * self.num_stages * self.tile * padded_size * shard.model.element_bytes

    def fitting(self, shard: Shard, shared_bytes: int) -> DecodeTuning:
        """This tuning with its tile halved until a program fits the shared memory."""
        tuning = self
        while tuning.shared_bytes(shard) > shared_bytes and tuning.tile > MIN_TILE:
            tuning = replace(tuning, tile=tuning.tile // 2)
        return tuning


class TritonBackend(AttentionBackend):
    """For CUDA, and for Triton's interpreter on a CPU (`TRITON_INTERPRET=1`).

    Prefill is one packed flash-attention call a layer (`torch.nn.attention.varlen`) if this torch and this
    GPU compute it rightly, which is tried once; else one SDPA call a chunk. Without a `tuning` the default is
    cut down to the GPU's shared memory.
    """

    def __init__(self, shard: Shard, device: torch.device, tuning: DecodeTuning | None = None) -> None:
        """Raises `CalibrationError` where Triton has nothing to run on."""
        super().__init__(shard, device)
        _check_triton(device)
        self.tuning = tuning or DecodeTuning()
        self._sdpa = SdpaBackend(shard, device)
        self._varlen = _find_varlen(shard, device, self._sdpa)
        self._num_processors = INTERPRETED_PROCESSORS
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            self._num_processors = properties.multi_processor_count
            # What a program may ask for beyond 48 KiB; only CUDA builds of torch know it.
            shared_bytes = getattr(properties, "shared_memory_per_block_optin", None)
            if tuning is None and shared_bytes is not None:
                self.tuning = self.tuning.fitting(shard, shared_bytes)

    def num_splits(self, num_decodes: int, max_context: int) -> int:
        """Shares of each context: programs for every multiprocessor at once, none without a tile."""
        tuning = self.tuning
        wanted = self._num_processors * tuning.programs_per_processor
        splits = wanted // (num_decodes * self.shard.num_kv_heads)
        return max(1, min(splits, -(-max_context // tuning.tile), tuning.max_splits))

    def prefill(
        self, query: Tensor, keys: Tensor, values: Tensor, cache: LayerCache, batch: ChunkBatch
    ) -> Tensor:
        """See `AttentionBackend.prefill`."""
        if self._varlen is None:
            return self._sdpa.prefill(query, keys, values, cache, batch)
        if any(batch.contexts):
            keys, values = _pack(cache, batch)
        packed = (part.contiguous() for part in (query, keys, values))
        longest = max(batch.num_tokens), max(map(add, batch.num_tokens, batch.contexts))
        return self._varlen(*packed, batch.token_starts, batch.key_starts, *longest)

    def decode(self, query: Tensor, cache: LayerCache, batch: DecodeBatch) -> Tensor:
        """See `AttentionBackend.decode`."""
        from cbsim.lab.kernels.triton_decode import paged_decode

        tuning, num_splits = self.tuning, self.num_splits(query.shape[0], batch.max_context)
        cut = {"tile": tuning.tile, "num_warps": tuning.num_warps, "num_stages": tuning.num_stages}
        return paged_decode(query, cache, batch, num_splits=num_splits, **cut)

    def describe(self) -> str:
        """See `AttentionBackend.describe`."""
        prefill = "scaled_dot_product_attention" if self._varlen is None else "varlen_attn"
        return f"prefill: {prefill}; decode: Triton split-KV, {self.tuning}"


def cannot_run(error: Exception) -> bool:
    """Whether Triton says that a kernel can't be compiled or loaded as it is cut: mostly it is too large."""
    from triton.errors import TritonError

    return isinstance(error, TritonError)


def _check_triton(device: torch.device) -> None:
    if importlib.util.find_spec("triton") is None:
        raise CalibrationError("attention backend triton: needs the package triton; allowed: sdpa")
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise CalibrationError(
            "attention backend triton: needs a GPU, or TRITON_INTERPRET=1 for its interpreter; allowed: sdpa"
        )


def _find_varlen(shard: Shard, device: torch.device, reference: SdpaBackend) -> Callable[..., Tensor] | None:
    """Packed attention, if it exists here and agrees with SDPA on two chunks, one of them over context."""
    if device.type != "cuda" or shard.dtype not in (torch.bfloat16, torch.float16):
        return None
    num_tokens, contexts, block_size = [40, 24], [32, 0], 16
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(shard.dtype)

    cache_shape = (8, block_size, shard.num_kv_heads, shard.head_size)
    cache = LayerCache(random(*cache_shape), random(*cache_shape))
    tables = [torch.arange(0, 5, device=device), torch.arange(5, 7, device=device)]
    batch = ChunkBatch.build(num_tokens, contexts, tables, device)
    query = random(sum(num_tokens), shard.num_heads, shard.head_size)
    keys, values = _pack(cache, batch)
    own = torch.cat((torch.arange(32, 72, device=device), torch.arange(72, 96, device=device)))
    try:
        varlen = _causal_varlen(shard.group_size > 1)
        got = varlen(query, keys, values, batch.token_starts, batch.key_starts, 40, 72)
    except Exception:  # whatever this build of torch says against it, SDPA does the work
        return None
    wanted = reference.prefill(query, keys[own], values[own], cache, batch)
    return varlen if torch.allclose(got.float(), wanted.float(), atol=2e-2, rtol=2e-2) else None


def _causal_varlen(grouped: bool) -> Callable[..., Tensor]:
    """`varlen_attn`, causal from each chunk's last token back, by the keywords of this version of torch."""
    from torch.nn.attention.varlen import varlen_attn

    attend: Any = varlen_attn
    known = inspect.signature(attend).parameters
    keywords: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if grouped and "enable_gqa" in known:
        keywords["enable_gqa"] = True
    return partial(attend, **keywords)


def _pack(cache: LayerCache, batch: ChunkBatch) -> tuple[Tensor, Tensor]:
    """The keys and values of all chunks, contexts included, one after another."""
    lengths = map(add, batch.contexts, batch.num_tokens)
    parts = [cache.gather(table, length) for table, length in zip(batch.block_tables, lengths, strict=True)]
    keys, values = zip(*parts, strict=True)
    return torch.cat(keys), torch.cat(values)
