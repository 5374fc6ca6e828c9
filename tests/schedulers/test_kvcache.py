"""The KV block pool: sizes by hand, and every block it hands out against a naive pool of tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.base.errors import ConfigError
from cbsim.schedulers.kvcache import BlockPool, IdentityPool, KVCacheConfig
from cbsim.specs import GpuSpec, ModelSpec
from cbsim.workload.request import Request

Token = tuple[str, int]


def request(name: str, num_prompt_tokens: int, num_output_tokens: int, prompt: Any = None) -> Request:
    return Request(name, 0.0, num_prompt_tokens, num_output_tokens, prompt=prompt)


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
    # Two GPUs hold one copy of the weights between them.
    room = 2 * (2**30 // 2 - 2**28) - model().weight_bytes
    assert config.size(model(), gpu(1.0), tensor_parallel=2) == room // 2**15


def test_blocks_given_are_taken_whatever_the_memory() -> None:
    assert KVCacheConfig(num_blocks=7).size(model(), gpu(0.001)) == 7


def test_no_room_for_a_block_is_told_with_all_figures() -> None:
    config = KVCacheConfig(gpu_memory_utilization=0.5, activation_gib=0.5)
    with pytest.raises(
        ConfigError, match=r"kv_cache: no room for a KV block: small weighs .* 0\.5 gives 512 MiB"
    ):
        config.size(model(), gpu(1.0))


@pytest.mark.parametrize("pool_class", [BlockPool, IdentityPool])
def test_blocks_for_rounds_up(pool_class: type[BlockPool]) -> None:
    pool = pool_class(10, 4)
    assert [pool.blocks_for(n) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("pool_class", [BlockPool, IdentityPool])
def test_more_than_is_free_is_refused_and_changes_nothing(pool_class: type[BlockPool]) -> None:
    pool = pool_class(3, 4)
    one, other = request("one", 8, 1), request("other", 8, 1)
    pool.allocate(one, 2)
    with pytest.raises(RuntimeError, match="2 KV blocks asked for other, 1 are free"):
        pool.allocate(other, 2)
    assert (pool.num_free, pool.num_used, other.num_blocks) == (1, 2, 0)
    pool.check_integrity([one, other])
    pool.release(one)
    assert pool.num_free == 3


def test_what_several_share_is_not_freed_by_some_of_them() -> None:
    pool = IdentityPool(8, 4)
    first = request("a", 9, 1, (("system", 8), ("a", 1)))
    pool.allocate(first, 3)
    pool.publish(first, 9)
    second = request("b", 9, 1, (("system", 8), ("b", 1)))
    pool.adopt(second, pool.find_prefix(second))
    pool.allocate(second, 1)
    assert second.blocks[:2] == first.blocks[:2]
    assert pool.num_held_by([first]) == 1
    assert pool.num_held_by([first, second]) == 4
    pool.check_integrity([first, second])


def broken_pools() -> list[tuple[str, Any]]:
    def free_and_held(pool: IdentityPool, holder: Request) -> None:
        pool._free[holder.blocks[0]] = None

    def leaked(pool: IdentityPool, holder: Request) -> None:
        pool._free.popitem()

    def miscounted(pool: IdentityPool, holder: Request) -> None:
        pool.num_free += 1

    def stolen(pool: IdentityPool, holder: Request) -> None:
        holder.blocks.append(next(iter(pool._free)))
        holder.num_blocks += 1

    def uncounted(pool: IdentityPool, holder: Request) -> None:
        holder.num_blocks += 1

    def wrong_content(pool: IdentityPool, holder: Request) -> None:
        pool._key_of[holder.blocks[0]] = (999, 1)

    return [
        (each.__name__, each)
        for each in (free_and_held, leaked, miscounted, stolen, uncounted, wrong_content)
    ]


@pytest.mark.parametrize(("name", "break_it"), broken_pools())
def test_the_integrity_check_sees(name: str, break_it: Any) -> None:
    pool, holder = IdentityPool(6, 4), request("a", 8, 1)
    pool.allocate(holder, 2)
    pool.publish(holder, 8)
    pool.check_integrity([holder])
    break_it(pool, holder)
    with pytest.raises(RuntimeError):
        pool.check_integrity([holder])


class NaivePool:
    """Block contents as tuples of tokens, everything looked up by walking over all blocks."""

    def __init__(self, num_blocks: int, block_size: int, unknown_first: bool) -> None:
        self.block_size = block_size
        self.unknown_first = unknown_first
        self.free = list(range(num_blocks))
        self.content: dict[int, tuple[Token, ...]] = {}
        """Block -> all tokens from position 0 to its end; in the order in which they became known."""
        self.held: dict[str, list[int]] = {}

    def start(self, name: str, tokens: list[Token]) -> list[int]:
        found: list[int] = []
        for end in range(self.block_size, len(tokens), self.block_size):
            prefix = tuple(tokens[:end])
            block = next((block for block, known in self.content.items() if known == prefix), None)
            if block is None:
                break
            found.append(block)
        for block in found:
            if block in self.free:
                self.free.remove(block)
        self.held[name] = list(found)
        return found

    def grow(self, name: str, num_blocks: int) -> None:
        for _ in range(num_blocks):
            block = self.free.pop(0)
            self.content.pop(block, None)
            self.held[name].append(block)

    def publish(self, name: str, tokens: list[Token]) -> None:
        for place in range(len(tokens) // self.block_size):
            self.content.setdefault(self.held[name][place], tuple(tokens[: (place + 1) * self.block_size]))

    def release(self, name: str) -> None:
        for block in reversed(self.held.pop(name)):
            if any(block in others for others in self.held.values()):
                continue
            if self.unknown_first and block not in self.content:
                self.free.insert(0, block)
            else:
                self.free.append(block)


def tokens_of(made: Request) -> list[Token]:
    answer = (f"o:{made.request_id}", made.num_generated_tokens)
    return [(name, i) for name, n in (*(made.prompt or ()), answer) for i in range(n)]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(data=st.data(), block_size=st.sampled_from([1, 2, 3]), unknown_first=st.booleans())
def test_every_block_is_the_one_a_naive_pool_gives(
    data: st.DataObject, block_size: int, unknown_first: bool
) -> None:
    num_blocks = data.draw(st.integers(4, 12))
    pool = IdentityPool(num_blocks, block_size, unknown_first=unknown_first)
    naive = NaivePool(num_blocks, block_size, unknown_first)
    present: list[Request] = []
    for number in range(data.draw(st.integers(3, 25))):
        action = data.draw(st.sampled_from(["start", "start", "step", "release"]))
        if action == "start":
            lengths = [data.draw(st.integers(0, 5)) for _ in range(3)]
            names = [
                data.draw(st.sampled_from(["s", "t"])),
                data.draw(st.sampled_from(["u", "o:r0"])),
                f"p{number}",
            ]
            prompt = tuple((name, n) for name, n in zip(names, lengths, strict=True) if n) or (("s", 1),)
            made = request(f"r{number}", sum(n for _, n in prompt), 6, prompt)
            hit = pool.find_prefix(made)
            num_missing = pool.blocks_for(made.num_prompt_tokens) - len(hit.blocks)
            if num_missing + hit.num_free > pool.num_free:
                continue
            assert list(hit.blocks) == naive.start(made.request_id, tokens_of(made))
            pool.adopt(made, hit)
            pool.allocate(made, num_missing)
            naive.grow(made.request_id, num_missing)
            present.append(made)
        elif present:
            made = data.draw(st.sampled_from(present))
            if action == "release":
                pool.release(made)
                naive.release(made.request_id)
                present.remove(made)
                continue
            num_missing = pool.blocks_for(made.num_known_tokens + 1) - made.num_blocks
            if made.num_generated_tokens == made.num_output_tokens or num_missing > pool.num_free:
                continue
            made.num_generated_tokens += 1
            pool.allocate(made, num_missing)
            naive.grow(made.request_id, num_missing)
        if action != "release" and present:
            pool.publish(made, made.num_known_tokens)
            naive.publish(made.request_id, tokens_of(made))
        pool.check_integrity(present)
        assert {made.request_id: made.blocks for made in present} == naive.held
        assert list(pool._free) == naive.free
        assert pool.num_cached_free == sum(block in naive.content for block in naive.free)


def test_more_blocks_than_can_be_known_are_refused() -> None:
    many = KVCacheConfig(num_blocks=10**9)
    assert many.size(model(), gpu(0.001)) == 10**9
    with pytest.raises(ConfigError, match="got 1,000,000,000 KV blocks with prefix_caching; allowed: up to"):
        many.model_copy(update={"prefix_caching": True}).size(model(), gpu(0.001))
