"""Kernels for prompt chunks, those that a GPU and its torch compute rightly: each is tried once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from operator import add
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from cbsim.lab.kernels.attention_backends import ChunkBatch, LayerCache, SdpaBackend
from cbsim.lab.kernels.graph_capture import one_line
from cbsim.lab.kernels.kernel_choice import MIN_TILE
from cbsim.lab.kernels.shard import Shard

TOLERANCE = 2e-2
LONG_CHUNK = 128
"""Tokens from which on a program takes more of them at once."""
MAX_SPLITS = 32


Compute = Callable[[Tensor, Tensor, Tensor, LayerCache, ChunkBatch], Tensor]
"""See `AttentionBackend.prefill`."""


class PrefillKernel(NamedTuple):
    """Computes what `AttentionBackend.prefill` says, for the batches that it covers."""

    name: str
    """What it is called in files and reports."""
    compute: Compute
    covers: Callable[[ChunkBatch], bool] = lambda batch: True


def sdpa_kernel_of(sdpa: SdpaBackend) -> PrefillKernel:
    """One call of `scaled_dot_product_attention` a chunk, by whichever kernel torch prefers."""
    return PrefillKernel("sdpa", sdpa.prefill)


def cudnn(shard: Shard) -> PrefillKernel:
    """CuDNN's kernel, one call a chunk; torch has it causal for chunks without context alone."""

    def compute(query: Tensor, keys: Tensor, values: Tensor, cache: LayerCache, batch: ChunkBatch) -> Tensor:
        parts, sizes = [], list(batch.num_tokens)
        how: dict[str, Any] = {"is_causal": True, "enable_gqa": shard.group_size > 1}
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            for chunk in zip(*(torch.split(part, sizes) for part in (query, keys, values)), strict=True):
                out = scaled_dot_product_attention(*(part.transpose(0, 1)[None] for part in chunk), **how)
                parts.append(out[0].transpose(0, 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return PrefillKernel("cudnn", compute, lambda batch: not any(batch.contexts))


def varlen(shard: Shard) -> PrefillKernel:
    """All chunks in one call of `varlen_attn`, flash attention; contexts are copied out of the cache."""
    attend = _causal_varlen(shard.group_size > 1)

    def compute(query: Tensor, keys: Tensor, values: Tensor, cache: LayerCache, batch: ChunkBatch) -> Tensor:
        if any(batch.contexts):
            keys, values = gathered(cache, batch, query.dtype)
        return attend(batch, query, keys.contiguous(), values.contiguous())

    return PrefillKernel("varlen", compute)


def paged_varlen(shard: Shard) -> PrefillKernel:
    """All chunks in one call of `varlen_attn`, which reads contexts in the cache by block tables, where this
    torch's takes them, and copies nothing.
    """
    attend = _causal_varlen(shard.group_size > 1)

    def compute(query: Tensor, keys: Tensor, values: Tensor, cache: LayerCache, batch: ChunkBatch) -> Tensor:
        pages = {"seqused_k": batch.key_lens, "block_table": batch.tables}
        return attend(batch, query, cache.keys, cache.values, **pages)

    return PrefillKernel("paged varlen", compute, lambda batch: any(batch.contexts))


def own_chunks(shard: Shard, num_processors: int, shared_bytes: int | None) -> PrefillKernel:
    """Our own kernel over the cache as it lies; it splits the keys of short chunks over long contexts.

    `shared_bytes`: what a program may have of shared memory, if known.
    """

    def compute(query: Tensor, keys: Tensor, values: Tensor, cache: LayerCache, batch: ChunkBatch) -> Tensor:
        from cbsim.lab.kernels.triton_attention import paged_attention

        rows, num_warps = (128, 8) if max(batch.num_tokens) >= LONG_CHUNK else (64, 4)
        tile = chunk_tile(shard, shared_bytes, rows)
        num_places = query.shape[0] * shard.group_size // rows + len(batch.num_tokens)
        longest = max(map(add, batch.num_tokens, batch.contexts))
        most = 2 * num_processors // (num_places * shard.num_kv_heads)
        splits = max(1, min(most, -(-longest // tile), MAX_SPLITS))
        return paged_attention(
            query, cache, batch, num_splits=splits, rows=rows, tile=tile, num_warps=num_warps
        )

    return PrefillKernel("triton", compute)


def chunk_tile(shard: Shard, shared_bytes: int | None, rows: int) -> int:
    """Keys read at once: three tiles of keys and values, and the queries, fit the shared memory."""
    row_bytes = (1 << (shard.head_size - 1).bit_length()) * shard.model.element_bytes
    tile = 64
    while tile > MIN_TILE and shared_bytes and (6 * tile + rows) * row_bytes > shared_bytes:
        tile //= 2
    return tile


def right_kernels(
    shard: Shard,
    device: torch.device,
    sdpa: SdpaBackend,
    num_processors: int,
    shared_bytes: int | None,
) -> tuple[dict[str, PrefillKernel], dict[str, str]]:
    """The kernels that compute rightly here, by name, and of the others what is wrong with them.

    SDPA, which is there everywhere, is not tried, nor is anything on a CPU: Triton's interpreter takes
    seconds, and tests hold it against float64.
    """
    usual = sdpa_kernel_of(sdpa)
    own = partial(own_chunks, shard, num_processors, shared_bytes)
    if device.type == "cpu":
        return {kernel.name: kernel for kernel in (usual, own())}, {}
    make: dict[str, Callable[[], PrefillKernel]] = {"triton": own}
    if shard.dtype in (torch.bfloat16, torch.float16):
        flash = {"varlen": varlen, "paged varlen": paged_varlen, "cudnn": cudnn}
        make |= {name: partial(kernel, shard) for name, kernel in flash.items()}
    right, wrong = tried(make, shard, device)
    return {usual.name: usual, **right}, wrong


def tried(
    make: Mapping[str, Callable[[], PrefillKernel]], shard: Shard, device: torch.device
) -> tuple[dict[str, PrefillKernel], dict[str, str]]:
    """The kernels that agree with attention written out, and of the others what is wrong, by name."""
    right: dict[str, PrefillKernel] = {}
    wrong: dict[str, str] = {}
    for name, kernel in make.items():
        try:
            made = kernel()
            problem = _problem(made, shard, device)
        except Exception as error:  # whatever this build of torch says against it, another does the work
            problem = one_line(error)
        if problem is None:
            right[name] = made
        else:
            wrong[name] = problem
    return right, wrong


def gathered(cache: LayerCache, batch: ChunkBatch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The keys and values of all chunks, contexts included, one after another; of one chunk without `cat`."""
    lengths = map(add, batch.contexts, batch.num_tokens)
    parts = [
        cache.gather(table, length, dtype) for table, length in zip(batch.block_tables, lengths, strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    keys, values = zip(*parts, strict=True)
    return torch.cat(keys), torch.cat(values)


def _problem(kernel: PrefillKernel, shard: Shard, device: torch.device) -> str | None:
    """What is wrong with a kernel, tried on two chunks, one of them over context, and on one prompt."""
    worst = 0.0
    num_tried = 0
    for num_tokens, contexts in (([40, 24], [32, 0]), ([70], [0]), ([5], [90])):
        query, keys, values, cache, batch = _example(shard, device, num_tokens, contexts)
        if not kernel.covers(batch):
            continue
        num_tried += 1
        got = kernel.compute(query, keys, values, cache, batch).float()
        wanted = _written_out(query, cache, batch, shard)
        far = (got - wanted).abs() - TOLERANCE * wanted.abs()
        worst = max(worst, float(far.max()) if bool(torch.isfinite(got).all()) else float("inf"))
    if not num_tried:
        return "covers nothing"
    return None if worst <= TOLERANCE else f"is off by {worst:.2g}"


def _example(
    shard: Shard, device: torch.device, num_tokens: list[int], contexts: list[int]
) -> tuple[Tensor, Tensor, Tensor, LayerCache, ChunkBatch]:
    """Random chunks whose blocks lie backwards in a cache."""
    block_size = 16
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(shard.dtype)

    counts = [-(-sum(each) // block_size) for each in zip(num_tokens, contexts, strict=True)]
    blocks = torch.arange(sum(counts), device=device).flip(0)
    shape = (sum(counts), block_size, shard.num_kv_heads, shard.head_size)
    cache = LayerCache(*(random(*shape).to(shard.kv_dtype) for _ in range(2)))
    batch = ChunkBatch.build(num_tokens, contexts, list(torch.split(blocks, counts)), device)
    rows = [slice(context, context + count) for count, context in zip(num_tokens, contexts, strict=True)]
    held = [cache.gather(table, dtype=shard.dtype) for table in batch.block_tables]
    own = [(keys[part], values[part]) for (keys, values), part in zip(held, rows, strict=True)]
    keys, values = (torch.cat(parts) for parts in zip(*own, strict=True))
    return random(sum(num_tokens), shard.num_heads, shard.head_size), keys, values, cache, batch


def _written_out(query: Tensor, cache: LayerCache, batch: ChunkBatch, shard: Shard) -> Tensor:
    """Attention of chunks by its formula, in float32."""
    parts, start = [], 0
    for count, context, table in zip(batch.num_tokens, batch.contexts, batch.block_tables, strict=True):
        keys, values = (
            part.float().repeat_interleave(shard.group_size, 1)
            for part in cache.gather(table, context + count)
        )
        scores = torch.einsum("qhd,khd->hqk", query[start : start + count].float(), keys)
        seen = torch.ones(count, context + count, dtype=torch.bool, device=query.device).tril_(context)
        weights = (scores * shard.head_size**-0.5).masked_fill(~seen, float("-inf")).softmax(-1)
        parts.append(torch.einsum("hqk,khd->qhd", weights, values))
        start += count
    return torch.cat(parts)


def _causal_varlen(grouped: bool) -> Callable[..., Tensor]:
    """`varlen_attn` of a batch, causal from each chunk's last token back, by the keywords of this torch."""
    from torch.nn.attention.varlen import varlen_attn

    attend: Any = varlen_attn
    known = inspect.signature(attend).parameters
    keywords: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if grouped and "enable_gqa" in known:
        keywords["enable_gqa"] = True

    def of(batch: ChunkBatch, query: Tensor, keys: Tensor, values: Tensor, **pages: Tensor) -> Tensor:
        longest = max(batch.num_tokens), max(map(add, batch.num_tokens, batch.contexts))
        starts = batch.token_starts, batch.key_starts
        out: Tensor = attend(query.contiguous(), keys, values, *starts, *longest, **keywords, **pages)
        return out

    return of
