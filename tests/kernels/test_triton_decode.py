"""The Triton decode kernel against float64: by the interpreter (`TRITON_INTERPRET=1`), or on a GPU."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from cbsim.kernels.attention import DecodeBatch, LayerCache, make_backend
from cbsim.kernels.triton_backend import DecodeTuning, TritonBackend
from cbsim.kernels.triton_decode import paged_decode
from tests.kernels.references import Paged, attention_shard, scatter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2}

# Triton's interpreter before 3.9 does this, which is why it needs numpy below 2.4.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")


def decode(paged: Paged, num_splits: int, tile: int) -> torch.Tensor:
    batch = paged.decode_batch()
    batch = DecodeBatch(batch.block_tables.to(DEVICE), batch.context_lens.to(DEVICE), batch.max_context)
    cache = LayerCache(paged.cache.keys, paged.cache.values)
    query = torch.cat(paged.queries).to(DEVICE)
    return paged_decode(query, cache, batch, num_splits=num_splits, tile=tile).cpu()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("head_size", [64, 128])
@pytest.mark.parametrize("heads", [(8, 2), (4, 4), (6, 1)])
@pytest.mark.parametrize(("num_splits", "tile"), [(1, 64), (3, 64), (8, 128)])
def test_ragged_decodes(
    dtype: str, head_size: int, heads: tuple[int, int], num_splits: int, tile: int
) -> None:
    shard = attention_shard(*heads, head_size, dtype)
    paged = scatter(shard, [1, 16, 65, 300, 129], [1] * 5, seed=num_splits, device=DEVICE)
    got = decode(paged, num_splits, tile)
    torch.testing.assert_close(got.double(), paged.expected(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_a_group_larger_than_the_padding() -> None:
    shard = attention_shard(40, 2, 64, "float16")
    paged = scatter(shard, [77, 200], [1, 1], seed=0, device=DEVICE)
    torch.testing.assert_close(decode(paged, 2, 64).double(), paged.expected(), atol=4e-3, rtol=4e-3)


def test_a_head_size_that_is_no_power_of_two() -> None:
    shard = attention_shard(4, 2, 80, "float16")
    paged = scatter(shard, [77, 200], [1, 1], seed=0, device=DEVICE)
    torch.testing.assert_close(decode(paged, 3, 64).double(), paged.expected(), atol=4e-3, rtol=4e-3)


def test_queries_that_are_a_slice_of_a_wider_tensor() -> None:
    shard = attention_shard(4, 2, 64, "float16")
    paged = scatter(shard, [77, 20], [1, 1], seed=0, device=DEVICE)
    wide = torch.cat((torch.cat(paged.queries), torch.full((2, 3, 64), 9.0).half()), dim=1).to(DEVICE)
    backend = make_backend("triton", shard, torch.device(DEVICE))
    batch = paged.decode_batch()
    batch = DecodeBatch(batch.block_tables.to(DEVICE), batch.context_lens.to(DEVICE), batch.max_context)
    got = backend.decode(wide[:, :4], paged.cache, batch).cpu()
    torch.testing.assert_close(got.double(), paged.expected(), atol=4e-3, rtol=4e-3)


def test_splits_fill_the_processors_and_never_outnumber_the_tiles() -> None:
    shard = attention_shard(8, 2, 64, "float16")
    backend = TritonBackend(shard, torch.device(DEVICE), DecodeTuning(tile=64, programs_per_processor=4))
    backend._num_processors = 100
    assert backend.num_splits(1, 64) == 1
    assert backend.num_splits(1, 65) == 2
    assert backend.num_splits(1, 10**6) == 64
    assert backend.num_splits(50, 10**6) == 4
    assert backend.num_splits(200, 10**6) == 1
    assert backend.num_splits(512, 10**6) == 1
