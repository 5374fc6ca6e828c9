"""Blocks whose number changes: none lost, none shared by mistake, contents still known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.cli.play.resizable_pool import PlayPool
from cbsim.workload.request import Request

BLOCK_SIZE = 4
Action = tuple[str, int]


def request(number: int) -> Request:
    """One of a family that shares its first two blocks' tokens."""
    return Request(f"r{number}", 0.0, 16, 8, prompt=(("shared", 8), (f"own{number}", 8)))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["admit", "release", "resize"]), st.integers(0, 30)), max_size=25),
    st.booleans(),
)
def test_whatever_happens_the_pool_is_whole_and_content_stays_with_its_holder(
    actions: list[Action], prefix_caching: bool
) -> None:
    pool = PlayPool(12, BLOCK_SIZE, prefix_caching=prefix_caching)
    holders: list[Request] = []
    for number, (what, argument) in enumerate(actions):
        if what == "admit":
            newcomer = request(number)
            hit = pool.find_prefix(newcomer)
            needed = 4 - len(hit.blocks)
            if needed + hit.num_free <= pool.num_free:
                pool.adopt(newcomer, hit)
                pool.allocate(newcomer, needed)
                pool.publish(newcomer, 16)
                holders.append(newcomer)
        elif what == "release" and holders:
            pool.release(holders.pop(argument % len(holders)))
        elif what == "resize":
            if argument < max(1, pool.num_used):
                continue
            pool.resize(argument, holders)
            assert pool.num_blocks == argument
        pool.check_integrity(holders)
        assert all(0 <= block < pool.num_blocks for holder in holders for block in holder.blocks)
        for holder in holders:
            # Whoever asks for the same tokens is led to blocks of the same content.
            twin = Request("twin", 0.0, 17, 1, prompt=(*(holder.prompt or ()), ("more", 1)))
            found = pool.find_prefix(twin).blocks
            assert len(found) == (4 if prefix_caching else 0)
            pool.forget(twin)


def test_blocks_without_content_go_first_and_numbers_stay_dense() -> None:
    pool = PlayPool(8, BLOCK_SIZE)
    first, second = request(1), request(2)
    pool.allocate(first, 4)
    pool.publish(first, 16)
    pool.allocate(second, 2)  # 4 and 5
    pool.release(first)  # 0 to 3 are free, with content
    pool.resize(6, [second])  # 6 and 7 go
    assert [pool.is_cached(block) for block in range(6)] == [True] * 4 + [False] * 2
    assert second.blocks == [4, 5]
    pool.resize(3, [second])  # the blocks released first go: first's last ones, 3, 2 and 1
    assert second.blocks == [1, 2]
    assert pool.is_cached(0)
    assert [pool.num_holders(block) for block in range(3)] == [0, 1, 1]
    pool.check_integrity([second])


def test_blocks_in_use_can_not_go() -> None:
    pool = PlayPool(4, BLOCK_SIZE)
    holder = request(1)
    pool.allocate(holder, 3)
    with pytest.raises(RuntimeError, match="3 KV blocks are in use, 2 wanted"):
        pool.resize(2, [holder])


def test_new_blocks_are_used_before_cached_ones() -> None:
    pool = PlayPool(4, BLOCK_SIZE)
    first, second = request(1), request(2)
    pool.allocate(first, 4)
    pool.publish(first, 16)
    pool.release(first)
    pool.resize(6, [])
    pool.allocate(second, 2)
    assert second.blocks == [4, 5]
