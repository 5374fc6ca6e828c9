"""Tuning: a replica that takes on other settings, or another scheduler, between two steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from cbsim.base.errors import ConfigError
from cbsim.base.records import packed, plain
from cbsim.cli.play.resizable_pool import resize
from cbsim.core import layout
from cbsim.core.building import config_record
from cbsim.core.loop import place_of, rejects
from cbsim.core.pool import release
from cbsim.core.record import TABLES
from cbsim.core.stepping import Stepper
from cbsim.core.verbs import preempt
from cbsim.core.waiting_queue import push
from cbsim.cost import CostModel
from cbsim.studies.experiment import Experiment
from cbsim.studies.simulation import Setup, setup_of, stepwise
from cbsim.workload import Workload
from cbsim.workload.request import Request, RequestState

MAX_BLOCKS = 1_000_000
"""Each block is an object of its own here, so that they can be shown and renumbered."""
_COUNTED = (
    "last_end_s",
    "num_steps",
    "num_calls",
    "num_tokens_recomputed",
    "num_tokens_queried",
    "num_tokens_hit",
    "num_padding_tokens",
    "num_moved_out",
    "num_turned_away",
)
"""What a replica counts from its first step on, whichever scheduler decides."""


def make_setup(experiment: Experiment, workload: Workload, cost: CostModel) -> Setup:
    """The experiment's, its KV blocks known by number. Raises `ConfigError` for more than `MAX_BLOCKS`."""
    setup = setup_of(experiment, workload, cost)
    num_blocks = setup.pool.num_blocks
    if num_blocks > MAX_BLOCKS:
        raise ConfigError(f"kv_cache.num_blocks: got {num_blocks}; cbsim play has {MAX_BLOCKS} at most")
    return replace(setup, pool=replace(setup.pool, has_identities=True))


def make_stepper(setup: Setup) -> Stepper:
    """A replica that nobody has come to yet."""
    return stepwise(setup).replicas[0]


def check_servable(setup: Setup, requests: Iterable[Request]) -> None:
    """Raise `ConfigError` if some of these requests, accepted once, could never be served any more."""
    counted = replace(setup.pool, has_identities=False, prefix_caching=False)
    fresh = make_stepper(replace(setup, pool=counted))
    would_reject = fresh.world.bound(rejects)
    problems = []
    for request in requests:
        code = would_reject(fresh.records, request)
        if code != layout.FITS:
            problems.append(
                f"{request.request_id} could never be served: {told_rejection(setup, request, code)}"
            )
    if problems:
        raise ConfigError(*problems)


def told_rejection(setup: Setup, request: Request, code: int) -> str:
    """Why a request can't be served, in words."""
    row = packed([request], layout.REQUEST)[0]
    row["rejection"] = code
    return setup.rung.rejection(row, setup.rung.numbers(setup.scheduler, setup.means), setup.means)


def tune(stepper: Stepper, setup: Setup, holders: Iterable[Request]) -> None:
    """Give a replica other limits or another number of KV blocks; its requests stay where they are.

    `holders` are all who hold blocks, of which no more may be in use than there will be.
    """
    resize(stepper.records, setup.pool.num_blocks, holders)
    stepper.world.pool = setup.pool
    numbers = setup.rung.numbers(setup.scheduler, setup.means)
    wanted = plain(config_record(numbers))
    for name in numbers:
        setattr(stepper.records.config, name, getattr(wanted, name))
    stepper.make_room()


def clear(stepper: Stepper, now: float) -> None:
    """Preempt all who run, to be computed again, and give back every block. Needs no step under way.

    Host memory keeps nothing: the next scheduler may have none.
    """
    records, world = stepper.records, stepper.world
    records.config.preemption = layout.RECOMPUTE
    place = place_of(records, 0)
    step = records.under_way[place]
    step.place, step.now, step.num_slices = place, now, 0
    let_go = world.bound(preempt)
    for request in stepper.running:
        let_go(records, step, request)
    for request in world.requests:
        if request.num_blocks:  # a member of a static batch that has ended
            release(records, request)
        if request.num_swapped_blocks:
            request.num_lost_tokens, request.num_computed_tokens = request.num_computed_tokens, 0
            request.num_swapped_blocks = 0


def succeed(stepper: Stepper, setup: Setup) -> Stepper:
    """A replica with another scheduler that goes on where a cleared one stopped.

    Requests wait there in their order of arrival, and its log begins with what was written down so far.
    """
    successor = make_stepper(setup)
    world, own = successor.world, successor.own
    for name in _COUNTED:
        setattr(own, name, getattr(stepper.own, name))
    before, log = stepper.world.records.log, world.records.log
    for name in TABLES:
        num_rows = getattr(before.lengths, name)
        setattr(log.lengths, name, num_rows)
        getattr(log, name).extend(getattr(before, name)[:num_rows])
    wait = world.bound(push)
    for request in stepper.world.requests:
        world.add(request)
        if request.state in (RequestState.WAITING, RequestState.PREEMPTED):
            own.num_outstanding += 1
            wait(successor.records, request)
    successor.make_room()
    return successor
