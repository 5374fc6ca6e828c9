"""The Triton attention kernel against float64: by the interpreter (`TRITON_INTERPRET=1`), or on a GPU."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from cbsim.lab.kernels.attention_backends import ChunkBatch, DecodeBatch, LayerCache, make_backend
from cbsim.lab.kernels.kernel_choice import DecodeTuning, KernelChoice
from cbsim.lab.kernels.triton_attention import paged_attention
from cbsim.lab.kernels.triton_backend import TritonBackend
from tests.lab.kernels.references import Paged, attention_shard, scatter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2}

# Triton's interpreter before 3.9 does this, which is why it needs numpy below 2.4.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")


def on_device(paged: Paged) -> DecodeBatch:
    batch = paged.decode_batch()
    return DecodeBatch(batch.block_tables.to(DEVICE), batch.context_lens.to(DEVICE), batch.max_context)


def decode(paged: Paged, num_splits: int, tile: int) -> torch.Tensor:
    query = torch.cat(paged.queries).to(DEVICE)
    return paged_attention(query, paged.cache, on_device(paged), num_splits=num_splits, tile=tile).cpu()


def assert_right(got: torch.Tensor, paged: Paged) -> None:
    torch.testing.assert_close(got.double(), paged.expected(), atol=4e-3, rtol=4e-3)


@pytest.mark.parametrize(
    ("heads", "head_size", "dtype", "num_splits", "tile"),
    [
        ((8, 2), 64, "float16", 1, 64),
        ((8, 2), 128, "bfloat16", 3, 64),
        ((8, 2), 128, "float16", 8, 128),
        ((4, 4), 128, "float16", 1, 64),
        ((4, 4), 64, "bfloat16", 3, 64),
        ((4, 4), 64, "float16", 8, 128),
        ((6, 1), 64, "bfloat16", 1, 64),
        ((6, 1), 128, "float16", 3, 64),
        ((6, 1), 128, "bfloat16", 8, 128),
    ],
)
def test_ragged_decodes(
    heads: tuple[int, int], head_size: int, dtype: str, num_splits: int, tile: int
) -> None:
    shard = attention_shard(*heads, head_size, dtype)
    paged = scatter(shard, [1, 16, 65, 300, 129], [1] * 5, seed=num_splits, device=DEVICE)
    got = decode(paged, num_splits, tile)
    torch.testing.assert_close(got.double(), paged.expected(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_a_group_larger_than_the_padding() -> None:
    shard = attention_shard(40, 2, 64, "float16")
    paged = scatter(shard, [77, 200], [1, 1], seed=0, device=DEVICE)
    assert_right(decode(paged, 2, 64), paged)


def test_a_head_size_that_is_no_power_of_two() -> None:
    shard = attention_shard(4, 2, 80, "float16")
    paged = scatter(shard, [77, 200], [1, 1], seed=0, device=DEVICE)
    assert_right(decode(paged, 3, 64), paged)


def test_queries_that_are_a_slice_of_a_wider_tensor() -> None:
    shard = attention_shard(4, 2, 64, "float16")
    paged = scatter(shard, [77, 20], [1, 1], seed=0, device=DEVICE)
    wide = torch.cat((torch.cat(paged.queries), torch.full((2, 3, 64), 9.0).half()), dim=1).to(DEVICE)
    backend = make_backend("triton", shard, torch.device(DEVICE))
    assert_right(backend.decode(wide[:, :4], paged.cache, on_device(paged)).cpu(), paged)


@pytest.mark.parametrize("block_size", [1, 8, 48, 256])
def test_blocks_smaller_and_larger_than_a_tile(block_size: int) -> None:
    shard = attention_shard(4, 2, 64, "float16")
    paged = scatter(shard, [1, 63, 64, 65, 300], [1] * 5, seed=0, device=DEVICE, block_size=block_size)
    assert_right(decode(paged, 3, 64), paged)


@pytest.mark.parametrize("num_splits", [1, 2, 5, 17])
def test_any_number_of_splits_is_right_for_any_length(num_splits: int) -> None:
    """A CUDA graph keeps the number that it was captured with while contexts grow and shrink."""
    shard = attention_shard(4, 2, 64, "float16")
    paged = scatter(shard, [1, 64, 127, 1000], [1] * 4, seed=1, device=DEVICE)
    assert_right(decode(paged, num_splits, 64), paged)


@pytest.mark.parametrize("num_splits", [1, 3])
def test_a_context_without_tokens_gives_zeros(num_splits: int) -> None:
    """What pads a batch to the size of a graph must not make NaN of it."""
    shard = attention_shard(4, 2, 64, "float16")
    paged = scatter(shard, [70, 20], [1, 1], seed=0, device=DEVICE)
    batch = on_device(paged)
    batch.context_lens[1] = 0
    query = torch.cat(paged.queries).to(DEVICE)
    got = paged_attention(query, paged.cache, batch, num_splits=num_splits).cpu()
    torch.testing.assert_close(got[0].double(), paged.expected()[0], atol=4e-3, rtol=4e-3)
    assert torch.equal(got[1], torch.zeros_like(got[1]))


def test_what_a_table_holds_beyond_a_context_is_never_read() -> None:
    shard = attention_shard(4, 2, 64, "float16")
    paged = scatter(shard, [40, 200], [1, 1], seed=0, device=DEVICE)
    batch = on_device(paged)
    batch.block_tables[0, 3:] = -(2**30)
    got = paged_attention(torch.cat(paged.queries).to(DEVICE), paged.cache, batch, num_splits=2).cpu()
    assert_right(got, paged)


def test_block_numbers_of_64_bits() -> None:
    shard = attention_shard(4, 2, 64, "float16")
    paged = scatter(shard, [40, 200], [1, 1], seed=0, device=DEVICE)
    batch = on_device(paged)
    wide = DecodeBatch(batch.block_tables.long(), batch.context_lens.long(), batch.max_context)
    got = paged_attention(torch.cat(paged.queries).to(DEVICE), paged.cache, wide, num_splits=2).cpu()
    assert_right(got, paged)


def test_a_pool_of_more_elements_than_32_bits_count() -> None:
    """An H200 has room for nine billion; here only the blocks that are used are touched."""
    shard = attention_shard(4, 2, 64, "float16")
    paged = scatter(shard, [40, 70], [1, 1], seed=0, device=DEVICE)
    small = paged.cache.keys
    block_elements, num_blocks = small[0].numel(), small.shape[0]
    first = 2**31 // block_elements - 2
    shape = (first + num_blocks, *small.shape[1:])
    try:
        keys, values = (torch.empty(shape, dtype=small.dtype, device=DEVICE) for _ in range(2))
    except RuntimeError:
        pytest.skip("too little memory")
    keys[first:], values[first:] = paged.cache.keys, paged.cache.values
    batch = on_device(paged)
    moved = DecodeBatch(batch.block_tables + first, batch.context_lens, batch.max_context)
    assert keys.numel() > 2**31
    for num_splits in (1, 2):
        got = paged_attention(
            torch.cat(paged.queries).to(DEVICE), LayerCache(keys, values), moved, num_splits=num_splits
        )
        assert_right(got.cpu(), paged)


def test_caches_that_are_slices_of_a_pool_of_both() -> None:
    """Keys and values side by side in each block, as some engines keep them."""
    shard = attention_shard(4, 2, 64, "float16")
    paged = scatter(shard, [40, 200], [1, 1], seed=0, device=DEVICE)
    both = torch.stack((paged.cache.keys, paged.cache.values), dim=1)
    cache = LayerCache(both[:, 0], both[:, 1])
    got = paged_attention(torch.cat(paged.queries).to(DEVICE), cache, on_device(paged), num_splits=2).cpu()
    assert_right(got, paged)


def test_layouts_that_would_be_misread() -> None:
    shard = attention_shard(4, 2, 64, "float16")
    paged = scatter(shard, [40, 20], [1, 1], seed=0, device=DEVICE)
    cache, batch, query = paged.cache, on_device(paged), torch.cat(paged.queries).to(DEVICE)
    by_size = LayerCache(
        *(part.transpose(2, 3).contiguous().transpose(2, 3) for part in (cache.keys, cache.values))
    )
    other = LayerCache(cache.keys, cache.values[:, :, :1].expand_as(cache.keys))
    tables = DecodeBatch(batch.block_tables.T.contiguous().T, batch.context_lens, batch.max_context)
    for wrong, message in (
        ((query.transpose(1, 2).contiguous().transpose(1, 2), cache, batch), "heads of a query"),
        ((query[:, :3].contiguous(), cache, batch), "query heads must be a multiple of KV heads"),
        ((query, by_size, batch), "elements of a head"),
        ((query, other, batch), "keys and values must have equal strides"),
        ((query, cache, tables), "block numbers of a sequence"),
    ):
        with pytest.raises(ValueError, match=message):
            paged_attention(*wrong, num_splits=1)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_a_graph_is_replayed_with_other_lengths() -> None:
    shard = attention_shard(8, 2, 128, "bfloat16")
    paged = scatter(shard, [700, 300], [1, 1], seed=0, device=DEVICE)
    backend = make_backend("triton", shard, torch.device(DEVICE))
    query, batch = torch.cat(paged.queries).to(DEVICE), on_device(paged)
    wanted = batch.context_lens.clone()
    batch.context_lens.fill_(5)
    backend.decode(query, paged.cache, batch)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = backend.decode(query, paged.cache, batch)
    batch.context_lens.copy_(wanted)
    graph.replay()
    torch.testing.assert_close(got.cpu().double(), paged.expected(), atol=3e-2, rtol=3e-2)


def test_splits_fill_the_processors_and_never_outnumber_the_tiles() -> None:
    shard = attention_shard(8, 2, 64, "float16")
    tuning = DecodeTuning(tile=64, programs_per_processor=4)
    backend = TritonBackend(shard, torch.device(DEVICE)).with_choice(KernelChoice(tuning))
    backend._num_processors = 100
    assert backend.num_splits(1, 64) == 1
    assert backend.num_splits(1, 65) == 2
    assert backend.num_splits(1, 10**6) == 64
    assert backend.num_splits(50, 10**6) == 4
    assert backend.num_splits(200, 10**6) == 1
    assert backend.num_splits(512, 10**6) == 1


def chunks(paged: Paged, **cut: int) -> torch.Tensor:
    batch, device = paged.chunk_batch(), torch.device(DEVICE)
    tables = [table.to(DEVICE) for table in batch.block_tables]
    moved = ChunkBatch.build(list(batch.num_tokens), list(batch.contexts), tables, device)
    return paged_attention(torch.cat(paged.queries).to(DEVICE), paged.cache, moved, **cut).cpu()


@pytest.mark.parametrize(
    ("heads", "head_size", "dtype", "num_splits", "rows", "tile"),
    [
        ((4, 2), 64, "float16", 1, 16, 32),
        ((4, 1), 128, "bfloat16", 3, 64, 64),
        ((6, 1), 80, "float16", 2, 32, 32),
        ((2, 2), 64, "float16", 2, 64, 128),
        ((20, 1), 64, "float16", 1, 16, 64),
    ],
)
def test_chunks_with_and_without_context(
    heads: tuple[int, int], head_size: int, dtype: str, num_splits: int, rows: int, tile: int
) -> None:
    """A whole prompt, chunks over contexts, and one of a single token."""
    shard = attention_shard(*heads, head_size, dtype)
    paged = scatter(shard, [20, 47, 60, 33], [20, 5, 1, 33], seed=num_splits, device=DEVICE)
    got = chunks(paged, num_splits=num_splits, rows=rows, tile=tile)
    torch.testing.assert_close(got.double(), paged.expected(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("num_tokens", [1, 17])
def test_one_chunk_over_a_context(num_tokens: int) -> None:
    shard = attention_shard(4, 2, 64, "float16")
    paged = scatter(shard, [100 + num_tokens], [num_tokens], seed=num_tokens, device=DEVICE, block_size=8)
    got = chunks(paged, num_splits=4, rows=32, tile=32)
    assert_right(got, paged)


def test_a_cache_in_fp8() -> None:
    shard = attention_shard(4, 2, 64, "float16", "fp8")
    paged = scatter(shard, [20, 77], [20, 5], seed=3, device=DEVICE)
    got = chunks(paged, num_splits=2, rows=32, tile=32)
    assert_right(got, paged)
    paged = scatter(shard, [20, 77], [1, 1], seed=4, device=DEVICE)
    assert_right(decode(paged, 2, 32), paged)
