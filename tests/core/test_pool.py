"""The KV block pool: every block it hands out against a naive pool of tokens, and what the check sees."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.core.layout import NO_FREE_BLOCKS, NOBODY
from cbsim.core.pool import (
    adopt,
    allocate,
    blocks_for,
    find_prefix,
    key_at,
    link_of,
    num_freed_by,
    publish,
    release,
)
from cbsim.core.stepping import Stepper
from cbsim.workload.request import Request, RequestState
from tests.core.replica import known, new_replica, new_request

Token = tuple[str, int]


def with_prompt(index: int, num_output_tokens: int, *prompt: tuple[str, int]) -> Request:
    return new_request(index, sum(n for _, n in prompt), num_output_tokens, prompt=prompt)


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_blocks_for_rounds_up(prefix_caching: bool) -> None:
    records = new_replica(10, prefix_caching=prefix_caching).records
    assert [blocks_for(records, n) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_more_than_is_free_is_a_fault_and_changes_nothing(prefix_caching: bool) -> None:
    replica = new_replica(3, prefix_caching=prefix_caching)
    one, other = known(replica, new_request(0)), known(replica, new_request(1))
    allocate(replica.records, one, 2)
    allocate(replica.records, other, 2)
    own = replica.own
    assert (own.fault, own.fault_request, own.fault_tokens, own.fault_limit) == (NO_FREE_BLOCKS, 1, 2, 1)
    assert (own.num_free, replica.num_blocks_used, other.num_blocks) == (1, 2, 0)
    replica.check_integrity()
    release(replica.records, one)
    assert own.num_free == 3


def test_what_several_share_is_not_freed_by_some_of_them() -> None:
    replica = new_replica(8, prefix_caching=True)
    records = replica.records
    first = known(replica, with_prompt(0, 1, ("system", 8), ("a", 1)))
    second = known(replica, with_prompt(1, 1, ("system", 8), ("b", 1)))
    allocate(records, first, 3)
    publish(records, first, 9)
    adopt(records, second, find_prefix(records, second)[0])
    allocate(records, second, 1)
    assert replica.blocks_of(second)[:2] == replica.blocks_of(first)[:2]
    records.candidates[:2] = [0, 1]
    assert num_freed_by(records, 1) == 1
    assert num_freed_by(records, 2) == 4
    replica.check_integrity()


def broken_pools() -> list[Any]:
    def free_and_held(replica: Stepper, holder: Request) -> None:
        records, block = replica.records, replica.blocks_of(holder)[0]
        records.blocks[records.blocks[-1].last_free].next_free = block
        records.blocks[block].next_free = replica.own.num_blocks

    def leaked(replica: Stepper, holder: Request) -> None:
        blocks = replica.records.blocks
        blocks[-1].next_free = blocks[blocks[-1].next_free].next_free

    def miscounted(replica: Stepper, holder: Request) -> None:
        replica.own.num_free += 1

    def stolen(replica: Stepper, holder: Request) -> None:
        replica.records.tables[holder.slot][2] = replica.records.blocks[-1].next_free
        replica.records.shares[holder.slot].num_places += 1
        holder.num_blocks += 1

    def uncounted(replica: Stepper, holder: Request) -> None:
        holder.num_blocks -= 1

    def wrong_content(replica: Stepper, holder: Request) -> None:
        replica.records.blocks[replica.blocks_of(holder)[0]].key = 999

    def miscounted_content(replica: Stepper, holder: Request) -> None:
        replica.own.num_cached_free += 1

    return [free_and_held, leaked, miscounted, stolen, uncounted, wrong_content, miscounted_content]


@pytest.mark.parametrize("break_it", broken_pools(), ids=lambda each: each.__name__)
def test_the_integrity_check_sees(break_it: Any) -> None:
    replica = new_replica(6, prefix_caching=True)
    holder = known(replica, new_request(0, 8, 4))
    allocate(replica.records, holder, 2)
    publish(replica.records, holder, 8)
    replica.check_integrity()
    break_it(replica, holder)
    with pytest.raises(RuntimeError):
        replica.check_integrity()


def test_the_integrity_check_sees_counts() -> None:
    replica = new_replica(6)
    holder = known(replica, new_request(0))
    allocate(replica.records, holder, 2)
    replica.check_integrity()
    holder.num_blocks = 3
    with pytest.raises(RuntimeError, match="3 KV blocks held, 4 free, 6 in all"):
        replica.check_integrity()


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


def free_blocks(replica: Stepper) -> list[int]:
    """In the order in which they will be taken."""
    blocks, found = replica.records.blocks, []
    at = blocks[replica.own.num_blocks].next_free
    while at != replica.own.num_blocks:
        found.append(at)
        at = blocks[at].next_free
    return found


@settings(max_examples=120, deadline=None, derandomize=True)
@given(data=st.data(), block_size=st.sampled_from([1, 2, 3]), unknown_first=st.booleans())
def test_every_block_is_the_one_a_naive_pool_gives(
    data: st.DataObject, block_size: int, unknown_first: bool
) -> None:
    num_blocks = data.draw(st.integers(4, 12))
    replica = new_replica(num_blocks, block_size, prefix_caching=True, unknown_first=unknown_first)
    records, own = replica.records, replica.own
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
            made = known(replica, with_prompt(number, 6, *prompt))
            num_cached, num_found_free = find_prefix(records, made)
            num_found = num_cached // block_size
            num_missing = blocks_for(records, made.num_prompt_tokens) - num_found
            if num_missing + num_found_free > own.num_free:
                continue
            found = records.tables[-1][:num_found]
            assert found == naive.start(made.request_id, tokens_of(made))
            adopt(records, made, num_cached)
            allocate(records, made, num_missing)
            naive.grow(made.request_id, num_missing)
            made.state = RequestState.RUNNING
            present.append(made)
        elif present:
            made = data.draw(st.sampled_from(present))
            if action == "release":
                release(records, made)
                naive.release(made.request_id)
                present.remove(made)
                continue
            num_missing = blocks_for(records, made.num_known_tokens + 1) - made.num_blocks
            if made.num_generated_tokens == made.num_output_tokens or num_missing > own.num_free:
                continue
            made.num_generated_tokens += 1
            allocate(records, made, num_missing)
            naive.grow(made.request_id, num_missing)
        if action != "release" and present:
            publish(records, made, made.num_known_tokens)
            naive.publish(made.request_id, tokens_of(made))
        replica.check_integrity()
        assert {made.request_id: replica.blocks_of(made) for made in present} == naive.held
        assert free_blocks(replica) == naive.free
        assert own.num_cached_free == sum(block in naive.content for block in naive.free)
        assert own.fault == 0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(["a", "b", "o:r0"]), st.integers(0, 9)), min_size=1, max_size=5),
        min_size=2,
        max_size=5,
    ),
    st.integers(1, 5),
)
def test_keys_are_equal_where_and_only_where_tokens_are(prompts: Any, block_size: int) -> None:
    replica = new_replica(50, block_size, prefix_caching=True)
    records = replica.records
    content_of: dict[int, tuple[Token, ...]] = {}
    for index, prompt in enumerate(prompts):
        made = known(replica, with_prompt(index, 3, *prompt))
        made.num_generated_tokens = 3
        tokens = tokens_of(made)
        link = made.first_link
        for place in range(len(tokens) // block_size):
            link = link_of(records, made, link, 0, place)
            assert link == link_of(records, made, made.first_link, 0, place)
            content = tuple(tokens[: (place + 1) * block_size])
            assert content_of.setdefault(key_at(records, link, 0, place), content) == content
    assert len(set(content_of.values())) == len(content_of)


def test_nobody_holds_anything_at_first() -> None:
    replica = new_replica(5, prefix_caching=True)
    assert free_blocks(replica) == [0, 1, 2, 3, 4]
    assert all(block.key == NOBODY for block in replica.records.blocks)
