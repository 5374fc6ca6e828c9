"""The SDPA backend against attention written out in float64, over random block tables and ragged lengths."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.lab.kernels import attention_backends
from cbsim.lab.kernels.attention_backends import SdpaBackend, make_backend
from tests.lab.kernels.references import BLOCK_SIZE, attention_shard, scatter

TOLERANCE = {"float32": 2e-6, "float16": 4e-3, "bfloat16": 3e-2}
HEADS = [(4, 4), (8, 2), (6, 2), (5, 1)]
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("head_size", [64, 128])
@pytest.mark.parametrize("heads", HEADS)
def test_decode(heads: tuple[int, int], head_size: int, dtype: str) -> None:
    shard = attention_shard(*heads, head_size, dtype)
    paged = scatter(shard, [1, 16, 17, 90, 33], [1] * 5, seed=1)
    query = torch.cat(paged.queries)
    got = make_backend("sdpa", shard, CPU).decode(query, paged.cache, paged.decode_batch())
    torch.testing.assert_close(got.double(), paged.expected(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("head_size", [64, 128])
@pytest.mark.parametrize("heads", HEADS)
def test_prefill_with_and_without_context(heads: tuple[int, int], head_size: int, dtype: str) -> None:
    shard = attention_shard(*heads, head_size, dtype)
    paged = scatter(shard, [20, 37, 16, 50], [20, 5, 2, 33], seed=2)
    backend = make_backend("sdpa", shard, CPU)
    keys, values = paged.own(paged.keys), paged.own(paged.values)
    got = backend.prefill(torch.cat(paged.queries), keys, values, paged.cache, paged.chunk_batch())
    torch.testing.assert_close(got.double(), paged.expected(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_a_cache_in_fp8() -> None:
    shard = attention_shard(4, 2, 32, "bfloat16", "fp8")
    backend = make_backend("sdpa", shard, CPU)
    paged = scatter(shard, [20, 37, 16, 50], [20, 5, 2, 33], seed=2)
    keys, values = paged.own(paged.keys), paged.own(paged.values)
    got = backend.prefill(torch.cat(paged.queries), keys, values, paged.cache, paged.chunk_batch())
    torch.testing.assert_close(got.double(), paged.expected(), atol=3e-2, rtol=3e-2)
    paged = scatter(shard, [1, 16, 90], [1] * 3, seed=1)
    got = backend.decode(torch.cat(paged.queries), paged.cache, paged.decode_batch())
    torch.testing.assert_close(got.double(), paged.expected(), atol=3e-2, rtol=3e-2)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=6), st.integers(0, 2**31))
def test_decode_of_any_lengths(lengths: list[int], seed: int) -> None:
    shard = attention_shard(4, 2, 32, "float32")
    paged = scatter(shard, lengths, [1] * len(lengths), seed)
    query = torch.cat(paged.queries)
    got = make_backend("sdpa", shard, CPU).decode(query, paged.cache, paged.decode_batch())
    torch.testing.assert_close(got.double(), paged.expected(), atol=2e-6, rtol=2e-6)


WINDOWS = [1, 5, 16, 17, 32, 89, 90, 200]


@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_at_decode(window: int) -> None:
    shard = attention_shard(4, 2, 32, "float32")
    paged = scatter(shard, [1, 16, 17, 90, 33], [1] * 5, seed=3)
    backend = SdpaBackend(shard, CPU, window)
    got = backend.decode(torch.cat(paged.queries), paged.cache, paged.decode_batch())
    torch.testing.assert_close(got.double(), paged.expected(window), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("min_slab", [4, 1024])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_in_prompts(window: int, min_slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks behind the window may have been given back: their numbers mean nothing."""
    monkeypatch.setattr(attention_backends, "MIN_SLAB", min_slab)
    shard = attention_shard(4, 2, 32, "float32")
    paged = scatter(shard, [20, 37, 16, 90], [20, 5, 2, 33], seed=4)
    for table, keys, queries in zip(paged.tables, paged.keys, paged.queries, strict=True):
        num_behind = max(0, len(keys) - len(queries) + 1 - window) // BLOCK_SIZE
        table[:num_behind] = [0] * num_behind
    keys, values = paged.own(paged.keys), paged.own(paged.values)
    backend = SdpaBackend(shard, CPU, window)
    got = backend.prefill(torch.cat(paged.queries), keys, values, paged.cache, paged.chunk_batch())
    torch.testing.assert_close(got.double(), paged.expected(window), atol=2e-6, rtol=2e-6)
