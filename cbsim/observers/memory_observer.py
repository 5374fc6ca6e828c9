"""The observer `memory`: where the KV blocks are, by state and request by request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from pydantic import Field

from cbsim.base.errors import PluginError
from cbsim.config.section import ComponentConfig
from cbsim.observers.gathered_columns import Columns, Table
from cbsim.observers.observer import Needs, ObservedRun, Observer
from cbsim.observers.views import SchedulerView, StepView
from cbsim.workload.request import Request

_NO_STEP = -1
_MAX_NAMED = 5
"""So many holders of leaked blocks are named."""
_COUNTS = (
    *("num_running", "kv_blocks_total", "kv_blocks_used", "kv_blocks_cached", "kv_blocks_free"),
    *("num_shares", "num_kv_tokens", "num_empty_slots"),
)


class MemoryConfig(ComponentConfig):
    """KV blocks by state and by request over time, as `memory.parquet` and `memory_requests.parquet`. A block
    that has not come back at the end is an error.
    """

    every: int = Field(default=1, ge=1)
    """Look at every n-th step of each replica, from the first on."""
    by_request: bool = True
    """Take down each request's blocks too: a row whenever their number has changed since the last look."""


class MemoryObserver(Observer):
    """Follows KV blocks by state and by request, what of them is empty, and whether all come back."""

    Config = MemoryConfig
    config: MemoryConfig
    needs = Needs.STATE

    @property
    def blocks(self) -> Table:
        """A row for each look: right after a step was decided, when requests have left, and at the end.

        `kv_blocks_used`, `kv_blocks_cached` (held by nobody, with content that can be used again) and
        `kv_blocks_free` add up to `kv_blocks_total`; `num_shares` counts the further holders of used blocks
        that have several. `num_kv_tokens` fill the used blocks, as far as running requests have use for them,
        once the steps under way have run; `num_empty_slots` is the room beside them, in tokens, and
        `fragmentation` its share.
        """
        return self._blocks.table()

    @property
    def requests(self) -> Table:
        """A row for each change: from `time_s` on a request holds `num_blocks`."""
        return self._requests.table()

    def on_run_start(self, run: ObservedRun) -> None:
        """See `Observer.on_run_start`."""
        self._replicas = [_Replica(scheduler) for scheduler in run.schedulers]
        counts = dict.fromkeys(_COUNTS, int)
        self._blocks = Columns(time_s=float, replica=int, step=int, **counts, fragmentation=float)
        self._requests = Columns(time_s=float, replica=int, step=int, request_id=str, num_blocks=int)

    def on_admitted(self, now: float, request: Request, replica: int) -> None:
        """See `Observer.on_admitted`."""
        self._replicas[replica].holders[request.index] = request

    def before_step(self, now: float, step: StepView, replica: int) -> None:
        """See `Observer.before_step`."""
        if step.number % self.config.every == 0:
            self._look(now, replica, step.number)

    def after_step(self, now: float, step: StepView, replica: int) -> None:
        """See `Observer.after_step`."""
        if step.finished and step.number % self.config.every == 0:
            self._look(now, replica, step.number)

    def on_run_end(self, now: float) -> None:
        """See `Observer.on_run_end`; raises `PluginError` for KV blocks that never came back."""
        problems = []
        for replica, watched in enumerate(self._replicas):
            self._look(now, replica, _NO_STEP)
            problem = watched.leak()
            if problem is not None:
                problems.append(f"replica {replica}: {problem}")
        if problems:
            raise PluginError(*problems)

    def files(self) -> Mapping[str, Callable[[Path], None]]:
        """See `Observer.files`."""
        written = {"memory.parquet": partial(self._write, "blocks")}
        if self.config.by_request:
            written["memory_requests.parquet"] = partial(self._write, "requests")
        return written

    def _look(self, now: float, replica: int, step: int) -> None:
        watched = self._replicas[replica]
        self._blocks.add(now, replica, step, *watched.state())
        for request, num_blocks in watched.changes():
            if self.config.by_request:
                self._requests.add(now, replica, step, request.request_id, num_blocks)

    def _write(self, table: str, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(getattr(self, table)), path, compression="zstd")


class _Replica:
    """One replica's KV cache as seen from outside."""

    def __init__(self, scheduler: SchedulerView) -> None:
        self.scheduler = scheduler
        self.pool = scheduler.pool
        self.holders: dict[int, Request] = {}
        """By index, whoever was admitted and may still hold blocks."""
        self._num_held: dict[int, int] = {}

    def state(self) -> tuple[float, ...]:
        """The columns of `MemoryObserver.blocks` from `num_running` on."""
        pool, running = self.pool, self.scheduler.running
        num_used = pool.num_used
        num_cached = pool.num_cached_free
        num_shares = sum(request.num_blocks for request in self.holders.values()) - num_used
        # Only full blocks are shared: what several hold is there once.
        num_tokens = sum(request.num_computed_tokens for request in running) - num_shares * pool.block_size
        num_slots = num_used * pool.block_size
        num_empty = num_slots - num_tokens
        blocks = pool.num_blocks, num_used, num_cached, pool.num_free - num_cached
        fragmentation = num_empty / num_slots if num_slots else 0.0
        return self.scheduler.num_running, *blocks, num_shares, num_tokens, num_empty, fragmentation

    def changes(self) -> list[tuple[Request, int]]:
        """Requests that hold more or fewer blocks than at the last look, with how many."""
        changed = []
        for index, request in list(self.holders.items()):
            if request.num_blocks != self._num_held.get(index, 0):
                changed.append((request, request.num_blocks))
            if request.num_blocks:
                self._num_held[index] = request.num_blocks
            else:
                self._num_held.pop(index, None)
                del self.holders[index]
        return changed

    def leak(self) -> str | None:
        """What is wrong with the blocks at the end, `None` if nothing is."""
        try:
            self.pool.check_integrity()
        except RuntimeError as error:
            return f"the KV blocks of {self.scheduler.name} don't add up: {error}"
        num_used = self.pool.num_used
        if self.scheduler.running or self.scheduler.num_transfers or not num_used:
            return None
        names = [f"{request.request_id} ({request.num_blocks})" for request in self.holders.values()]
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        return (
            f"{self.scheduler.name} has not given back {num_used} of {self.pool.num_blocks} KV "
            f"blocks, held by {', '.join(names[:_MAX_NAMED])}{more}"
        )
