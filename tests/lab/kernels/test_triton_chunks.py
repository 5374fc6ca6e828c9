"""The Triton kernel for chunks over paged contexts against float64: by the interpreter, or on a GPU."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from cbsim.lab.kernels.attention_backends import ChunkBatch, DecodeBatch
from cbsim.lab.kernels.triton_chunks import paged_chunks
from cbsim.lab.kernels.triton_decode import paged_decode
from tests.lab.kernels.references import Paged, attention_shard, scatter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2}

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")


def chunks(paged: Paged, **cut: int) -> torch.Tensor:
    batch, device = paged.chunk_batch(), torch.device(DEVICE)
    tables = [table.to(DEVICE) for table in batch.block_tables]
    moved = ChunkBatch.build(list(batch.num_tokens), list(batch.contexts), tables, device)
    return paged_chunks(torch.cat(paged.queries).to(DEVICE), paged.cache, moved, **cut).cpu()


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
    torch.testing.assert_close(got.double(), paged.expected(), atol=4e-3, rtol=4e-3)


def test_a_cache_in_fp8() -> None:
    shard = attention_shard(4, 2, 64, "float16", "fp8")
    paged = scatter(shard, [20, 77], [20, 5], seed=3, device=DEVICE)
    got = chunks(paged, num_splits=2, rows=32, tile=32)
    torch.testing.assert_close(got.double(), paged.expected(), atol=4e-3, rtol=4e-3)
    paged = scatter(shard, [20, 77], [1, 1], seed=4, device=DEVICE)
    batch = paged.decode_batch()
    moved = DecodeBatch(batch.block_tables.to(DEVICE), batch.context_lens.to(DEVICE), batch.max_context)
    got = paged_decode(torch.cat(paged.queries).to(DEVICE), paged.cache, moved, num_splits=2, tile=32).cpu()
    torch.testing.assert_close(got.double(), paged.expected(), atol=4e-3, rtol=4e-3)
