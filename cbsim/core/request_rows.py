"""RequestRows: records of requests, made as a run comes to them, given back once the requests have ended."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbsim.base.units import MIB
from cbsim.core import layout
from cbsim.core.building import make_requests, new_extras
from cbsim.core.layout import NOBODY, World
from cbsim.core.record import REQUESTS, Record

Array = NDArray[Any]

AT_A_TIME = 8_192
"""Records made together: 2 MB."""
HELD_ROWS = 65_536
"""Records that stay as they are, whatever has become of their requests: 15 MB."""
PAGE_BYTES = 2 * MIB
"""Memory goes back in pages; large arrays of numpy have some of this size."""


class RequestRows:
    """The rows of `World.requests`, of which a long run holds no more than it needs.

    Records of requests that come later have not been made. Where they are many, those of requests that have
    ended stand column by column in the run's `Record`, and their memory is the system's again.
    """

    def __init__(
        self,
        world: World,
        planned: Array,
        fill: Callable[[Array], None],
        *,
        all_at_once: bool,
    ) -> None:
        """`planned` has a `PLANNED` for each request, where none waits for the answer to another.

        `fill` sets what is drawn for each record. `all_at_once`: somebody may look at any record at any time.
        """
        self._world, self._planned, self._fill, self._all_at_once = world, planned, fill, all_at_once
        self._num_made = self._num_written = 0

    def make(self) -> None:
        """Make the records of the next requests; the core returns when it has sent all of those."""
        world, first, end = self._world, self._num_made, len(self._world.requests)
        end = self._num_made = end if self._all_at_once else min(first + AT_A_TIME, end)
        rows = world.requests[first:end]
        make_requests(rows, first)
        if len(world.extras) == len(world.requests):
            world.extras[first:end] = new_extras(end - first)
        if not world.clients["is_planned"]:
            for name in layout.PLANNED.names or ():
                rows[name] = self._planned[name][first:end]
            rows["prefill_until"] = rows["num_prompt_tokens"]
            if len(world.planned_extras):
                world.extras[first:end] = world.planned_extras[first:end]
        self._fill(rows)
        world.clients["num_made"] = NOBODY if end == len(world.requests) else end

    @property
    def sent(self) -> Array:
        """The records of requests that have been sent and not been written down."""
        return self._world.requests[self._num_written : int(self._world.clients["num_sent"])]

    def write_down(self, record: Record, *, has_ended: bool = False) -> None:
        """Move what nobody looks at any more to the record of the run; all that is left if it `has_ended`.

        Unless there have never been many.
        """
        rows = self.sent
        if len(rows) <= HELD_ROWS and not (has_ended and self._num_written):
            return
        if not has_ended:
            rows = rows[: 0 if self._world.agenda["is_open"] else num_over(rows, self._world.own)]
        for first in range(0, len(rows), AT_A_TIME):
            record.add(REQUESTS, rows[first : first + AT_A_TIME])
            if has_ended:
                record.end_piece()
        self._num_written += len(rows)
        if not self._all_at_once:
            for array in (self._world.requests, self._world.nodes, self._world.extras):
                give_back(array[: self._num_written])


def num_over(rows: Array, own: Array) -> int:
    """How many records, of rows one behind the other, come before one that the core may still look at.

    `own` are the `OWN` of the replicas.
    """
    is_over = (rows["state"] >= layout.FINISHED) & (rows["num_blocks"] == 0)
    # Steps under way may hold requests that have ended.
    is_over &= rows["last_call"] <= own["last_call"][rows["replica"]]
    # Who takes a request over looks at where it comes from.
    before = np.flatnonzero(rows["state"] == layout.HANDED_OVER)
    after = rows["next_visit"][before]
    is_over[before] &= (after != NOBODY) & is_over[np.maximum(after - rows["index"][:1], 0)]
    return int(np.append(is_over, False).argmin())


def give_back(array: Array) -> None:
    """Give the memory of an array back to the system where it takes it; what stood there is lost."""
    if sys.platform != "linux":
        return
    first = -(-array.ctypes.data // PAGE_BYTES) * PAGE_BYTES
    num_bytes = (array.ctypes.data + array.nbytes) // PAGE_BYTES * PAGE_BYTES - first
    if num_bytes > 0:
        advise = ctypes.CDLL(None).madvise
        advise(ctypes.c_void_p(first), ctypes.c_size_t(num_bytes), mmap.MADV_DONTNEED)
