"""Tuning: a replica that takes on other settings, or another scheduler, between two steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from cbsim.base.errors import ConfigError
from cbsim.base.records import packed, plain, record_class
from cbsim.cli.play.settings import NUM_BLOCKS
from cbsim.core import layout
from cbsim.core.building import config_record
from cbsim.core.clients import take_extras
from cbsim.core.contents import link_after, place_of_key
from cbsim.core.layout import BLOCK, KEY, NOBODY
from cbsim.core.loop import place_of, rejects
from cbsim.core.pool import forget, release, row_of
from cbsim.core.record import TABLES
from cbsim.core.stepping import Stepper, StepwiseWorld
from cbsim.core.verbs import preempt
from cbsim.core.waiting_queue import push
from cbsim.cost import CostModel
from cbsim.studies import setup as setups
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_cost_model
from cbsim.studies.setup import Setup
from cbsim.studies.simulation import stepwise
from cbsim.workload import Workload
from cbsim.workload.request import Request, RequestState

MAX_BLOCKS = 1_000_000
"""Each block is an object of its own here, so that they can be shown and renumbered."""
_COUNTED = (
    *("last_end_s", "num_steps", "num_calls", "last_call", "num_tokens_recomputed", "num_tokens_queried"),
    *("num_tokens_hit", "num_padding_tokens", "num_moved_out", "num_turned_away", "num_owed_tokens"),
)
"""What a replica counts from its first step on, whichever scheduler decides."""


def make_setup(experiment: Experiment, workload: Workload, costs: Sequence[CostModel] | None = None) -> Setup:
    """The experiment's replicas, their KV blocks known by number; `costs`, by pool, are made if not given.

    Raises `ConfigError` for more than `MAX_BLOCKS`.
    """
    known = None if costs is None else iter(costs)
    setup = setups.make_setup(
        experiment, workload, lambda pool: make_cost_model(pool) if known is None else next(known)
    )
    most = max(pool.pool.num_blocks for pool in setup.pools)
    if most > MAX_BLOCKS:
        raise ConfigError(f"kv_cache.num_blocks: got {most}; cbsim play has {MAX_BLOCKS} at most")
    return replace(_identified(setup), others=tuple(map(_identified, setup.others)))


def _identified(setup: Setup) -> Setup:
    return replace(setup, pool=replace(setup.pool, has_identities=True))


def check_fits(stepper: Stepper, setup: Setup, requests: Iterable[Request]) -> None:
    """Raise `ConfigError` if a replica of this setup has fewer blocks than are in use here.

    Or if some of these requests, accepted once, could never be served any more.
    """
    num_blocks, num_used = setup.pool.num_blocks, stepper.num_blocks_used
    if num_blocks < num_used:
        raise ConfigError(
            f"{NUM_BLOCKS}: got {num_blocks}, but {num_used} blocks are in use; only free ones can go"
        )
    counted = replace(setup.pool, has_identities=False, prefix_caching=False)
    fresh = stepwise(replace(setup, pool=counted, others=(), link=None, num_replicas=1)).replicas[0]
    would_reject = fresh.world.bound(rejects)
    records = fresh.records._replace(extras=stepper.records.extras)
    problems = []
    for request in requests:
        code = would_reject(records, request)
        if code != layout.FITS:
            told = told_rejection(setup, request, code)
            problems.append(f"{request.request_id} could never be served: {told}")
    if problems:
        raise ConfigError(*problems)


def told_rejection(setup: Setup, request: Request, code: int | None = None) -> str:
    """Why a request can't be served, in words; `code` is its `rejection` if not given."""
    row = packed([request], layout.REQUEST)[0]
    row["rejection"] = request.rejection if code is None else code
    return setup.rung.rejection(row, setup.rung.numbers(setup.scheduler, setup.means), setup.means)


def tune(stepper: Stepper, setup: Setup, holders: Iterable[Request]) -> None:
    """Give a replica other limits or another number of KV blocks; its requests stay where they are.

    `holders` are all who hold blocks; no more blocks may be in use than there will be.
    """
    resize(stepper.records, setup.pool.num_blocks, holders)
    numbers = setup.numbers
    wanted = plain(config_record(numbers))
    for name in numbers:
        setattr(stepper.records.config, name, getattr(wanted, name))
    stepper.make_room()


def clear(stepper: Stepper) -> None:
    """Preempt all who run, to be computed again, and give back every block. Needs no step under way.

    Host memory keeps nothing: the next scheduler may have none.
    """
    records, world = stepper.records, stepper.world
    records.config.preemption = layout.RECOMPUTE
    place = place_of(records, 0)
    step = records.under_way[place]
    step.place, step.now, step.num_slices = place, world.records.clients.now, 0
    let_go = world.bound(preempt)
    for request in reversed(stepper.running):
        let_go(records, step, request)
    for request in world.requests:
        if request.replica != stepper.replica:
            continue
        if request.num_blocks:  # a member of a static batch that has ended
            release(records, request)
        if request.num_swapped_blocks:
            request.num_lost_tokens, request.num_computed_tokens = request.num_computed_tokens, 0
            request.num_swapped_blocks = 0


def succeed(before: StepwiseWorld, world: StepwiseWorld) -> None:
    """Let the replicas of a world with another scheduler go on where those of another one stop.

    Requests wait there in their order of arrival, and its log begins with what was written down so far.
    """
    old, new = before.records, world.records
    for stepper in before.replicas:
        clear(stepper)
    for request in old.planned:
        world.plan(request)
    new.starts[:] = old.starts
    for name in TABLES:
        num_rows = getattr(old.log.lengths, name)
        setattr(new.log.lengths, name, num_rows)
        getattr(new.log, name).extend(getattr(old.log, name)[:num_rows])
    for own, own_before in zip(new.own, old.own, strict=True):
        for name in _COUNTED:
            setattr(own, name, getattr(own_before, name))
    for name in layout.CLIENTS.names or ():
        setattr(new.clients, name, getattr(old.clients, name))
    new.routers[0].next = old.routers[0].next
    new.homes[0][:] = old.homes[0]
    wait = world.bound(push)
    for request in before.requests:
        planned = new.planned[request.source]
        world.requests.append(request)
        request.first_link, request.end_link = planned.first_link, planned.end_link
        request.job_length, request.place_in_line = planned.job_length, 0
        if new.planned_extras:
            take_extras(new.extras[request.index], new.planned_extras[request.source])
        if request.state in (RequestState.WAITING, RequestState.PREEMPTED):
            replica = world.replicas[request.replica]
            replica.own.num_outstanding += 1
            wait(replica.records, request)
    for replica in world.replicas:
        replica.make_room()


# KV blocks known by number, whose number changes; `self` is the replica


def resize(self: Any, num_blocks: int, holders: Iterable[Request]) -> None:
    """Add blocks at the end, or give up free ones; `holders` are all requests that hold blocks.

    New blocks are used before the free ones there are. Given up are those that would be used next, whose
    content is worth least. Blocks stay numbered from 0 without a gap: those beyond the new end take the
    numbers of those given up. Raises RuntimeError for fewer blocks than are in use.
    """
    own, blocks, old = self.own, self.blocks, self.own.num_blocks
    num_used = old - own.num_free
    if num_blocks < num_used:
        raise RuntimeError(f"{num_used} KV blocks are in use, {num_blocks} wanted in all")
    free = free_blocks(self)
    given_up = set(free[: max(0, old - num_blocks)])
    for block in given_up:
        forget(self, block)
    vacant = sorted(block for block in given_up if block < num_blocks)
    beyond = [block for block in range(num_blocks, old) if block not in given_up]
    new = dict(zip(beyond, vacant, strict=True))
    for block, number in new.items():
        renumber(self, block, number)
    for request in holders:
        for group in range(own.num_groups if request.num_blocks else 0):
            row = row_of(self, request, group)
            table = self.tables[row]
            for place in range(self.shares[row].num_places):
                table[place] = new.get(table[place], table[place])
    del blocks[min(num_blocks, old) :]
    blocks.extend(new_block() for _ in range(len(blocks), num_blocks + 1))
    if own.prefix_caching:
        rehash(self.keys, 2 * (num_blocks + 1))
    own.num_blocks, own.num_free = num_blocks, own.num_free + num_blocks - old
    left = [new.get(block, block) for block in free[len(given_up) :]]
    head = blocks[num_blocks]
    head.next_free = head.last_free = num_blocks
    for block in (*range(old, num_blocks), *left):
        link_after(blocks, head.last_free, block)


def free_blocks(self: Any) -> list[int]:
    """The free blocks, the one to be used next first."""
    end = self.own.num_blocks
    found, at = [], self.blocks[end].next_free
    while at != end:
        found.append(at)
        at = self.blocks[at].next_free
    return found


def renumber(self: Any, block: int, number: int) -> None:
    """Let a block take the number of another, which nobody holds or looks up."""
    blocks = self.blocks
    moved = blocks[number] = blocks[block]
    if moved.key == NOBODY:
        return
    entry = self.keys[place_of_key(self.keys, moved.key)]
    if moved.last_copy == NOBODY:
        entry.first = number
    else:
        blocks[moved.last_copy].next_copy = number
    if moved.next_copy == NOBODY:
        entry.last = number
    else:
        blocks[moved.next_copy].last_copy = number


def rehash(keys: list[Any], size: int) -> None:
    """Make the table of contents `size` entries long, where it is shorter."""
    if size <= len(keys):
        return
    known = [entry for entry in keys if entry.key != NOBODY]
    keys[:] = [record_class(KEY)(NOBODY, NOBODY, NOBODY) for _ in range(size)]
    for entry in known:
        keys[place_of_key(keys, entry.key)] = entry


def new_block() -> Any:
    """A block that holds nothing."""
    block = record_class(BLOCK)(*[0] * len(BLOCK.names or ()))
    block.key = block.next_copy = block.last_copy = NOBODY
    return block
