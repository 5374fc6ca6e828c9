"""Without a connector: what stands for the rules about transfers in a run where no KV comes or goes.

Each gives what the rule of its name would find, so that less has to be compiled and asked.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from cbsim.core import transfers, verbs
from cbsim.core.waiting_queue import head_of_queue, leave_queue
from cbsim.schedulers import admission


def defers_release(self: Any) -> bool:
    """Blocks are given back at once."""
    return False


def drops_results(self: Any) -> bool:
    """Results come out."""
    return False


def keeps_blocks(self: Any, request: Any, now: float) -> bool:
    """Whoever ends leaves no blocks held."""
    return False


def leave_line(self: Any, request: Any) -> None:
    """There is one queue to leave."""
    leave_queue(self, request)


def look_for_ends(self: Any, step: Any, now: float) -> None:
    """No transfer ends."""


def next_transfer_s(self: Any) -> float:
    """Never."""
    return inf


def next_to_admit(self: Any, step: Any) -> int:
    """The head of the queue."""
    return head_of_queue(self, step.now)


def num_external(self: Any, request: Any, num_cached: int) -> int:
    """No KV could be brought."""
    return 0


def num_loaded(self: Any, request: Any) -> int:
    """No KV was loaded."""
    return 0


def num_rows_of_transfers(self: Any) -> int:
    """No KV is on its way."""
    return 0


def read_tier(self: Any, step: Any, request: Any, num_local: int, num_elsewhere: int) -> None:
    """There is no tier."""


def release_deferred(self: Any, call: int) -> None:
    """No blocks were kept."""


def remove_failed(self: Any, step: Any, now: float) -> None:
    """Nobody failed."""


def remove_transfer(self: Any, request: Any) -> None:
    """Nobody is on the list."""


def take_failed_reads(self: Any, step: Any) -> None:
    """No reads failed."""


def take_news(self: Any, step: Any, now: float) -> None:
    """There are no news."""


def try_load(
    self: Any, step: Any, request: Any, num_local: int, num_found_free: int, num_elsewhere: int
) -> bool:
    """There is nothing to load."""
    return False


WITHOUT_CONNECTOR: dict[Callable[..., Any], Callable[..., Any]] = {
    transfers.defers_release: defers_release,
    verbs.drops_results: drops_results,
    transfers.keeps_blocks: keeps_blocks,
    admission.leave_line: leave_line,
    transfers.look_for_ends: look_for_ends,
    admission.next_to_admit: next_to_admit,
    transfers.next_transfer_s: next_transfer_s,
    transfers.num_external: num_external,
    admission.num_loaded: num_loaded,
    transfers.num_rows_of_transfers: num_rows_of_transfers,
    admission.read_tier: read_tier,
    transfers.release_deferred: release_deferred,
    transfers.remove_failed: remove_failed,
    transfers.remove_transfer: remove_transfer,
    transfers.take_failed_reads: take_failed_reads,
    transfers.take_news: take_news,
    admission.try_load: try_load,
}
"""By the rule that each stands for."""
