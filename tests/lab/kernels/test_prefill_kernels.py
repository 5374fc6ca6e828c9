"""Kernels for chunks on a CPU: what they hand to torch, which are taken, and those that are wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest

pytest.importorskip("torch")

import torch
import torch.nn.attention.varlen
from torch import Tensor

from cbsim.lab.kernels import prefill_kernels
from cbsim.lab.kernels.attention_backends import ChunkBatch, LayerCache, SdpaBackend
from cbsim.lab.kernels.kernel_choice import DecodeTuning, KernelChoice, PrefillChoice
from cbsim.lab.kernels.layer_ops import layer_ops
from cbsim.lab.kernels.prefill_kernels import (
    PrefillKernel,
    cudnn,
    paged_varlen,
    sdpa_kernel_of,
    tried,
    varlen,
)
from cbsim.lab.kernels.shard import Shard
from cbsim.lab.kernels.triton_backend import TritonBackend
from tests.lab.kernels.references import Paged, attention_shard, naive_attention, scatter

CPU = torch.device("cpu")
SHARD = attention_shard(4, 2, 32, "float32")


def naive_varlen(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    token_starts: Tensor,
    key_starts: Tensor,
    max_tokens: int,
    max_keys: int,
    *,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    is_causal: bool = True,
) -> Tensor:
    """What `varlen_attn` computes, causal from the last token back."""
    assert max_tokens == int(token_starts.diff().max())
    assert max_keys == int(key_starts.diff().max())
    parts = []
    for chunk in range(len(token_starts) - 1):
        own = query[token_starts[chunk] : token_starts[chunk + 1]]
        if block_table is None:
            seen = slice(key_starts[chunk], key_starts[chunk + 1])
            parts.append(naive_attention(own, keys[seen], values[seen]))
        else:
            assert seqused_k is not None
            held = [part[block_table[chunk].long()].flatten(0, 1) for part in (keys, values)]
            parts.append(naive_attention(own, *(part[: seqused_k[chunk]] for part in held)))
    return torch.cat(parts).to(query.dtype)


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", naive_varlen)
    monkeypatch.setattr(prefill_kernels, "sdpa_kernel", lambda backend: nullcontext())
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def computed(kernel: PrefillKernel, paged: Paged) -> Tensor:
    batch = paged.chunk_batch()
    own = paged.own(paged.keys), paged.own(paged.values)
    assert kernel.covers(batch)
    return kernel.compute(torch.cat(paged.queries), *own, paged.cache, batch)


@pytest.mark.parametrize(
    ("kernel", "lengths", "num_tokens"),
    [
        (varlen, [20, 37, 16], [20, 5, 2]),
        (varlen, [37], [5]),
        (varlen, [20, 16], [20, 16]),
        (paged_varlen, [20, 37, 90], [20, 5, 2]),
        (cudnn, [20, 16], [20, 16]),
        (cudnn, [33], [33]),
    ],
)
def test_what_torch_is_handed(
    kernel: Callable[[Shard], PrefillKernel], lengths: list[int], num_tokens: list[int]
) -> None:
    paged = scatter(SHARD, lengths, num_tokens, seed=1)
    got = computed(kernel(SHARD), paged)
    torch.testing.assert_close(got.double(), paged.expected(), atol=2e-6, rtol=2e-6)


def test_a_single_chunk_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    paged = scatter(SHARD, [37], [5], seed=1)

    def cat(*_: object) -> None:
        raise AssertionError("copied again")

    batch = paged.chunk_batch()
    monkeypatch.setattr(prefill_kernels.torch, "cat", cat)
    keys, _ = prefill_kernels.gathered(paged.cache, batch, torch.float32)
    assert torch.equal(keys, paged.keys[0])


def off_by(error: float) -> PrefillKernel:
    return PrefillKernel("off", lambda *given: SdpaBackend(SHARD, CPU).prefill(*given) + error)


def refused() -> PrefillKernel:
    raise NotImplementedError("no such kernel in this build\nframes")


def test_kernels_that_are_wrong_here_are_not_taken() -> None:
    """An exception of one, whatever it is, leaves the others."""
    sdpa = SdpaBackend(SHARD, CPU)
    make = {
        "right": lambda: sdpa_kernel_of(sdpa),
        "wrong": lambda: off_by(0.5),
        "nan": lambda: off_by(float("nan")),
        "refused": refused,
        "paged": lambda: paged_varlen(SHARD),
        "nothing": lambda: PrefillKernel("nothing", sdpa.prefill, lambda batch: False),
    }
    right, wrong = tried(make, SHARD, CPU)
    assert list(right) == ["right", "paged"]
    assert wrong["wrong"].startswith("is off by 0.")
    assert wrong["nan"] == "is off by inf"
    assert wrong["refused"] == "NotImplementedError: no such kernel in this build"
    assert wrong["nothing"] == "covers nothing"


def test_the_kernel_of_the_nearest_size_that_covers_a_batch() -> None:
    pytest.importorskip("triton")
    timed = ((16, 0, "triton"), (2048, 0, "cudnn"), (16, 2048, "triton"), (2048, 2048, "paged varlen"))
    backend = TritonBackend(SHARD, CPU).with_choice(KernelChoice(DecodeTuning(), PrefillChoice(timed)))
    assert set(backend.kernels) == {"sdpa", "triton"}
    backend.kernels |= {"cudnn": cudnn(SHARD), "paged varlen": paged_varlen(SHARD)}
    tables = [torch.arange(300)] * 2

    def kernel(*chunks: tuple[int, int]) -> str:
        tokens, contexts = (list(each) for each in zip(*chunks, strict=True))
        return backend.prefill_kernel(ChunkBatch.build(tokens, contexts, tables[: len(chunks)], CPU)).name

    assert kernel((20, 0)) == "triton"
    assert kernel((3000, 0)) == "cudnn"
    assert kernel((1500, 700)) == "paged varlen"
    assert kernel((16, 3000)) == "triton"
    # cuDNN has no context, and the batch's largest chunk decides.
    assert kernel((3000, 0), (20, 50)) == "triton"
    assert (
        TritonBackend(SHARD, CPU).prefill_kernel(ChunkBatch.build([5], [0], tables[:1], CPU)).name == "triton"
    )
    assert "cudnn for 2048+0" in backend.describe()


def test_a_cache_in_another_dtype_is_computed_in_the_queries() -> None:
    paged = scatter(attention_shard(4, 2, 32, "bfloat16"), [20, 90], [20, 2], seed=2)
    cache = LayerCache(*(part.to(torch.float8_e4m3fn) for part in (paged.cache.keys, paged.cache.values)))
    paged.cache = LayerCache(*(part.to(torch.bfloat16) for part in (cache.keys, cache.values)))
    backend = SdpaBackend(attention_shard(4, 2, 32, "bfloat16"), CPU)
    own = paged.own(paged.keys), paged.own(paged.values)
    given = torch.cat(paged.queries), *own
    batch = paged.chunk_batch()
    wanted = backend.prefill(*given, paged.cache, batch)
    assert torch.equal(backend.prefill(*given, cache, batch), wanted)


@pytest.mark.parametrize(("capability", "told"), [((7, 5), "torch, operation"), ((9, 0), "fused Triton")])
def test_layers_are_fused_where_triton_compiles(
    capability: tuple[int, int], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert layer_ops(torch.device("cuda")).told.startswith(told)
    assert layer_ops(CPU).told.startswith("torch, operation")
