"""The KV block pool: sizes by hand, and every block it hands out against a naive pool of tokens."""

from __future__ import annotations

from typing import Any

import pytest

from cbsim.base.errors import ConfigError
from cbsim.schedulers.kvcache import KVCacheConfig
from cbsim.specs import GpuSpec, ModelSpec, ParallelSpec


def model(**changes: Any) -> ModelSpec:
    """2 layers, 4 KV heads of 8 elements."""
    return ModelSpec(
        name="small",
        num_layers=2,
        hidden_size=32,
        num_heads=4,
        num_kv_heads=4,
        head_size=8,
        intermediate_size=64,
        vocab_size=100,
        max_model_len=1024,
        **changes,
    )


def gpu(memory_gib: float) -> GpuSpec:
    return GpuSpec(
        name="small",
        memory_gib=memory_gib,
        memory_bandwidth_gb_s=1.0,
        bf16_tflops=1.0,
        fp32_tflops=1.0,
        link_gb_s=1.0,
        host_link_gb_s=1.0,
    )


def test_blocks_are_what_weights_and_activations_leave() -> None:
    config = KVCacheConfig(block_size=128, gpu_memory_utilization=0.5, activation_gib=0.25)
    # A token: keys and values x 2 layers x 4 heads x 8 x 2 bytes = 256 bytes, a block of 128: 2**15.
    assert model().kv_bytes_per_token == 256
    room = 2**30 // 2 - 2**28 - model().weight_bytes
    assert config.size(model(), gpu(1.0)) == room // 2**15
    # Of two GPUs each holds half of the matrices, all 5 norms of 32 elements, and half of each block.
    norms = 5 * 32 * 2
    half = (model().weight_bytes - norms) // 2 + norms
    assert model().weight_bytes_of_gpu(ParallelSpec(tensor=2)) == half
    room = 2**30 // 2 - 2**28 - half
    assert config.size(model(), gpu(1.0), ParallelSpec(tensor=2)) == room // 2**14


def test_blocks_given_are_taken_whatever_the_memory() -> None:
    assert KVCacheConfig(num_blocks=7).size(model(), gpu(0.001)) == 7


def test_no_room_for_a_block_is_told_with_all_figures() -> None:
    config = KVCacheConfig(gpu_memory_utilization=0.5, activation_gib=0.5)
    with pytest.raises(
        ConfigError, match=r"kv_cache: no room for a KV block: small weighs .* 0\.5 gives 512 MiB"
    ):
        config.size(model(), gpu(1.0))


def test_more_blocks_than_can_be_known_are_refused() -> None:
    many = KVCacheConfig(num_blocks=10**8)
    assert many.size(model(), gpu(0.001)) == 10**8
    with pytest.raises(ConfigError, match="got 100,000,000 KV blocks with prefix_caching; allowed: up to"):
        many.model_copy(update={"prefix_caching": True}).size(model(), gpu(0.001))


def test_blocks_as_tokens_beside_the_longest_context() -> None:
    config = KVCacheConfig(gpu_memory_utilization=0.5, activation_gib=0.4998)
    size = config.size(model(), gpu(1.0))
    held = config.capacity(size, model(), ParallelSpec(), 64)
    assert (held.num_tokens, held.max_model_len) == (size * 16, 1024)
    assert held.shortfall is not None
    assert f"up to {size * 16:,} tokens fit" in held.shortfall
    assert config.capacity(64, model(), ParallelSpec(), 64).shortfall is None
    # vLLM takes blocks that it is given, however few.
    given = config.model_copy(update={"num_blocks": 3})
    assert given.capacity(3, model(), ParallelSpec(), 64).shortfall is None


def test_sliding_layers_need_blocks_for_their_window_alone() -> None:
    config, sliding = KVCacheConfig(num_blocks=100), model(sliding_window=32, num_sliding_layers=1)
    # 1,024 tokens: 64 blocks of the full layer, and of the other those of 31 + 65 tokens and one more.
    held = config.capacity(100, sliding, ParallelSpec(), 65)
    assert held.num_tokens == 100 * 1024 // (64 + 7)
