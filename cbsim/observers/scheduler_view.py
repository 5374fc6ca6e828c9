"""SchedulerView: what observers may look at of a replica: its queue, its running requests, its KV blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from cbsim.core.replica_view import ReplicaView
from cbsim.workload.request import Request


class PoolView:
    """The KV blocks of a replica."""

    def __init__(self, replica: ReplicaView) -> None:
        self._replica = replica

    @property
    def num_blocks(self) -> int:
        """All there are."""
        return int(self._replica.own.num_blocks)

    @property
    def block_size(self) -> int:
        """Tokens a block."""
        return int(self._replica.own.block_size)

    @property
    def prefix_caching(self) -> bool:
        """Whether requests share the blocks of equal prefixes."""
        return bool(self._replica.own.prefix_caching)

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return int(self._replica.own.num_free)

    @property
    def num_cached_free(self) -> int:
        """Free blocks that still hold reusable content."""
        return int(self._replica.own.num_cached_free)

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

    def __init__(self, replica: ReplicaView, name: str) -> None:
        self._replica = replica
        self.name = name
        self.pool = PoolView(replica)
        self.waiting = WaitingView(replica)

    @property
    def running(self) -> list[Request]:
        """The running requests in order of admission."""
        return self._replica.running

    @property
    def num_transfers(self) -> int:
        """Requests that hold blocks for KV which comes from elsewhere or goes there."""
        return int(self._replica.own.num_transfers)

    @property
    def num_running(self) -> int:
        """How many they are."""
        return int(self._replica.own.num_running)
