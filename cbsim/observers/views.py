"""What hooks are given: a replica's scheduler, and a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from cbsim.core.replica_view import ReplicaView, Slice
from cbsim.workload.request import Request


def _own(name: str, meaning: str) -> Any:
    """A property: a whole number that a replica keeps."""
    return property(lambda self: int(getattr(self._replica.own, name)), doc=meaning)


class PoolView:
    """The KV blocks of a replica."""

    num_blocks: int = _own("num_blocks", "All there are.")
    block_size: int = _own("block_size", "Tokens a block.")
    num_free: int = _own("num_free", "Blocks that nobody holds.")
    num_cached_free: int = _own("num_cached_free", "Free blocks that still hold reusable content.")

    def __init__(self, replica: ReplicaView) -> None:
        self._replica = replica

    @property
    def prefix_caching(self) -> bool:
        """Whether requests share the blocks of equal prefixes."""
        return bool(self._replica.own.prefix_caching)

    @property
    def num_used(self) -> int:
        """Blocks held by requests."""
        return self._replica.num_blocks_used

    def check_integrity(self) -> None:
        """Raise RuntimeError unless every block is either free or held, and by the requests here."""
        self._replica.check_integrity()


class WaitingView(Sequence[Request]):
    """The waiting requests in the order in which they would be admitted, sorted when looked at."""

    def __init__(self, replica: ReplicaView) -> None:
        self._replica = replica

    def __len__(self) -> int:
        return int(self._replica.own.num_waiting)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._replica.waiting(self._replica.now()))

    @overload
    def __getitem__(self, place: int) -> Request: ...

    @overload
    def __getitem__(self, place: slice) -> list[Request]: ...

    def __getitem__(self, place: int | slice) -> Request | list[Request]:
        return list(self)[place]


class SchedulerView:
    """A replica's scheduler; `name` is that of its class."""

    num_running: int = _own("num_running", "How many requests run.")
    num_transfers: int = _own("num_transfers", "Those that hold blocks for KV from or for elsewhere.")

    def __init__(self, replica: ReplicaView, name: str) -> None:
        self._replica = replica
        self.name = name
        self.pool = PoolView(replica)
        self.waiting = WaitingView(replica)

    @property
    def running(self) -> list[Request]:
        """The running requests in order of admission."""
        return self._replica.running


@dataclass(slots=True, eq=False)
class StepView:
    """A step of one replica, the same object before and after it.

    Queue lengths and blocks are as they stand right after scheduling, as in `steps.parquet`. In a live run
    `start_s` and `duration_s` are NaN before the step has run.
    """

    replica: int
    number: int
    """Place among the steps of its replica, from 0."""
    scheduled_at_s: float
    start_s: float
    """Later than `scheduled_at_s` where a step was under way then (asynchronous scheduling)."""
    duration_s: float
    num_prefill_tokens: int
    num_decodes: int
    """Requests that decode, one token each."""
    num_new_tokens: int
    """Output tokens that come out at its end: the decodes, and prompts that are complete then."""
    num_running: int
    num_waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    preempted: Sequence[Request]
    """Requests that were preempted as it was decided."""
    make_slices: Callable[[], Sequence[Slice]] = field(repr=False)
    finished: Sequence[Request] = ()
    """Requests that got their last token; empty before the step has ended."""
    _slices: Sequence[Slice] | None = field(default=None, repr=False)

    @property
    def end_s(self) -> float:
        """When its effects become visible."""
        return self.start_s + self.duration_s

    @property
    def slices(self) -> Sequence[Slice]:
        """Each request's share: `(request, num_tokens, num_computed_tokens before, is_prefill, emits, ...)`.

        Made when first asked for, at a cost that grows with the batch. Raises RuntimeError unless that is in
        `before_step` or `after_step`: later nobody knows any more.
        """
        if self._slices is None:
            self._slices = self.make_slices()
        return self._slices

    def shut(self) -> None:
        """From now on `slices` raises, until `make_slices` is set again."""
        self.make_slices = _not_now


def _not_now() -> Sequence[Slice]:
    raise RuntimeError("the slices of a step can be asked for in before_step and after_step, not later")
