"""Blocks whose number changes: none lost, none shared by mistake, contents still known."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.cli.play.tuning import free_blocks, resize
from cbsim.core.building import KvPool, PoolParts
from cbsim.core.driver import Parts
from cbsim.core.layout import FITS, NOBODY
from cbsim.core.loop import step_s
from cbsim.core.pool import adopt, allocate, find_prefix, publish, release
from cbsim.core.stepping import Stepper, StepwiseWorld
from cbsim.workload.request import Request

BLOCK_SIZE = 4
Action = tuple[str, int]


def rejects(self: Any, request: Any) -> int:
    return FITS


def decide(self: Any, step: Any) -> None:
    """Nobody is ever admitted: tests give blocks themselves."""


def replica_of(num_blocks: int, *, prefix_caching: bool = True) -> Stepper:
    pool = KvPool(num_blocks, BLOCK_SIZE, prefix_caching=prefix_caching, has_identities=True)
    parts = Parts({"rejects": rejects, "decide": decide}, step_s)
    return StepwiseWorld(parts, [PoolParts(None, pool, {})]).replicas[0]


def newcomer(replica: Stepper, number: int) -> Request:
    """One of a family that shares its first two blocks' tokens."""
    request = Request(f"r{number}", 0.0, 16, 8, prompt=(("shared", 8), (f"own{number}", 8)))
    replica.submit(request)
    return request


def filled(replica: Stepper, number: int, num_blocks: int = 4, num_tokens: int = 16) -> Request:
    """A newcomer that holds so many blocks, the first `num_tokens` tokens of them known."""
    request = newcomer(replica, number)
    allocate(replica.records, request, num_blocks)
    publish(replica.records, request, num_tokens)
    return request


def is_cached(replica: Stepper) -> list[bool]:
    return [block.key != NOBODY for block in replica.records.blocks[: replica.own.num_blocks]]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["admit", "release", "resize"]), st.integers(0, 30)), max_size=25),
    st.booleans(),
)
def test_whatever_happens_the_pool_is_whole_and_content_stays_with_its_holder(
    actions: list[Action], prefix_caching: bool
) -> None:
    replica = replica_of(12, prefix_caching=prefix_caching)
    self, own = replica.records, replica.own
    holders: list[Request] = []
    for number, (what, argument) in enumerate(actions):
        if what == "admit":
            request = newcomer(replica, number)
            num_cached, num_found_free = find_prefix(self, request)
            num_found = num_cached // own.block_size
            if 4 - num_found + num_found_free <= own.num_free:
                adopt(self, request, num_cached)
                allocate(self, request, 4 - num_found)
                publish(self, request, 16)
                holders.append(request)
        elif what == "release" and holders:
            release(self, holders.pop(argument % len(holders)))
        elif what == "resize":
            if argument < max(1, replica.num_blocks_used):
                continue
            free, num_blocks = free_blocks(self), own.num_blocks
            resize(self, argument, holders)
            assert own.num_blocks == argument
            if argument >= num_blocks:
                assert free_blocks(self) == [*range(num_blocks, argument), *free]
        replica.check_integrity()
        for holder in holders:
            blocks = replica.blocks_of(holder)
            assert len(blocks) == 4
            assert all(0 <= block < own.num_blocks for block in blocks)
            # Whoever asks for the same tokens is led to blocks of the same content.
            twin = Request("twin", 0.0, 17, 1, prompt=(*(holder.prompt or ()), ("more", 1)))
            replica.world.add(twin)
            num_found = find_prefix(self, twin)[0] // own.block_size
            assert num_found == (4 if prefix_caching else 0)
            found = self.tables[-1][:num_found]
            assert [self.blocks[block].key for block in found] == [
                self.blocks[block].key for block in blocks[:num_found]
            ]


def test_blocks_without_content_go_first_and_numbers_stay_dense() -> None:
    replica = replica_of(8)
    first = filled(replica, 1)
    second = filled(replica, 2, num_blocks=2, num_tokens=0)  # 4 and 5
    release(replica.records, first)  # 0 to 3 are free, with content
    resize(replica.records, 6, [second])  # 6 and 7 go
    assert is_cached(replica) == [True] * 4 + [False] * 2
    assert replica.blocks_of(second) == [4, 5]
    resize(replica.records, 3, [second])  # the blocks released first go: first's last ones, 3, 2 and 1
    assert replica.blocks_of(second) == [1, 2]
    assert is_cached(replica) == [True, False, False]
    assert [block.num_holders for block in replica.records.blocks[:3]] == [0, 1, 1]
    replica.check_integrity()


def test_copies_of_a_content_stay_in_order_when_they_get_other_numbers() -> None:
    replica = replica_of(12)
    holders = [filled(replica, number) for number in range(3)]  # 0-3, 4-7, 8-11: 0, 4 and 8 are copies
    release(replica.records, holders.pop(0))  # 3 is to be used first, then 2, 1 and 0
    resize(replica.records, 9, holders)
    assert replica.blocks_of(holders[1]) == [8, 1, 2, 3]
    replica.check_integrity()
    resize(replica.records, 8, holders)
    assert replica.blocks_of(holders[1]) == [0, 1, 2, 3]
    replica.check_integrity()
    asking = newcomer(replica, 9)
    assert find_prefix(replica.records, asking) == (8, 0)
    assert replica.records.tables[-1][:2] == [4, 5]  # known before those that are now 0 and 1


def test_blocks_in_use_can_not_go() -> None:
    replica = replica_of(4)
    holder = filled(replica, 1, num_blocks=3, num_tokens=0)
    with pytest.raises(RuntimeError, match="3 KV blocks are in use, 2 wanted"):
        resize(replica.records, 2, [holder])
    replica.check_integrity()


def test_new_blocks_are_used_before_cached_ones() -> None:
    replica = replica_of(4)
    release(replica.records, filled(replica, 1))
    resize(replica.records, 6, [])
    assert replica.blocks_of(filled(replica, 2, num_blocks=2, num_tokens=0)) == [4, 5]
