"""LiveEngine: a replica whose steps are computed, and take the time they take; LiveWorld feeds it."""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbsim.cluster.watched_run import ToldStepper
from cbsim.core.stepping import StepwiseWorld
from cbsim.core.verbs import move_in as move_request_in
from cbsim.core.verbs import preempt as preempt_request
from cbsim.lab.live.runner import BlockedSlice, ModelRunner, Moves
from cbsim.lab.live.tokens import TokenBook
from cbsim.observers.audience import Audience
from cbsim.workload.request import Request, split_turns
from cbsim.workload.request_source import Workload
from cbsim.workload.streams import ThinkTimes

Clock = Callable[[], float]
"""Seconds since the run began."""
NO_BLOCKS = np.zeros((1, 0), dtype=np.int64)
MAX_NAP_S = 0.05


def any_step_s(cost: Any, shape: Any, chunks: Any) -> float:
    """Stands where the simulation has a price: a live step's seconds are known only when it has run."""
    return 1.0


class LiveEngine(ToldStepper):
    """Decides and records as a simulated replica does; `compute` runs the step at hand for real.

    A step lasts from the end of the one before, or from the call that decided it, until its tokens are known:
    the host's work is in it. With two steps in flight the second is decided before the first is computed.
    Blocks must have numbers (`KvPool.has_identities`).
    """

    def __init__(
        self,
        world: StepwiseWorld,
        number: int,
        *,
        runner: ModelRunner,
        book: TokenBook,
        clock: Clock | None = None,
        audience: Audience,
    ) -> None:
        super().__init__(world, number, audience)
        self.runner = runner
        self.book = book
        self.clock = clock or wall_clock()
        self._tables: dict[int, tuple[NDArray[np.int64], int, int]] = {}
        """Of each running request: its blocks, how many are written, its preemptions when they were."""
        self._work: deque[tuple[list[BlockedSlice], Moves]] = deque()
        self._moves = Moves()

    def watches(self) -> dict[str, Callable[..., Any]]:
        """See `Stepper.watches`: whose KV moves before the next step; nobody computes padding."""

        def preempt(replica: Any, step: Any, victim: Any) -> None:
            # Blocks that are released keep their content until the next step writes to them.
            held = self.blocks_of(victim)
            preempt_request(replica, step, victim)
            # Whose KV has not come back yet still has it in host memory.
            has_moved = self._moves.back.pop(victim.index, None) is None
            if victim.num_swapped_blocks and has_moved:
                self._moves.out[victim.index] = held[: victim.num_swapped_blocks]

        def move_in(replica: Any, request: Any) -> None:
            self._moves.back[request.index] = self.blocks_of(request)[: request.num_swapped_blocks]
            move_request_in(replica, request)

        def pad(replica: Any, step: Any) -> None:
            """Leave the step as it is."""

        return {**super().watches(), "preempt": preempt, "move_in": move_in, "pad": pad}

    def began(self, step: Any) -> None:
        """See `WatchedStepper.began`; blocks are written down, as later decisions may change them."""
        step.start_s = step.duration_s = step.end_s = math.nan
        slices = [(part, self._block_table(part.request)) for part in self.slices(step)]
        self._work.append((slices, self._moves))
        self._moves = Moves()
        super().began(step)

    def compute(self) -> float:
        """Run the step at hand; returns the instant it ended. `end_step` then takes its effects."""
        step = self.under_way[0]
        slices, moves = self._work.popleft()
        self.runner.move(moves)
        self.runner.run(slices, self.book)
        step.start_s = max(step.now, self.last_end_s)
        # Two steps never end at one instant, however coarse the clock.
        step.end_s = max(self.clock(), math.nextafter(step.start_s, math.inf))
        step.duration_s = step.end_s - step.start_s
        return float(step.end_s)

    def end_step(self) -> list[Request]:
        """See `Stepper.end_step`."""
        finished = super().end_step()
        for request in finished:
            self._tables.pop(request.index, None)
        return finished

    def _block_table(self, request: Request) -> NDArray[np.int64]:
        """The blocks it holds now, a row for each group of layers in order of position; the array stays as it
        is while the request runs. Blocks behind a window are those that were there, or any.
        """
        blocks = self.blocks_by_group(request)
        num_blocks = len(blocks[0])
        table, num_written, num_preemptions = self._tables.get(request.index, (NO_BLOCKS, 0, 0))
        if num_preemptions != request.num_preemptions or num_blocks > table.shape[1]:
            # A new array, as steps under way have parts of the old one: each preemption takes all blocks.
            table, num_written = np.zeros((len(blocks), 2 * num_blocks), dtype=np.int64), 0
        for row, own in zip(table, blocks, strict=True):
            row[num_written:num_blocks] = np.maximum(np.array(own[num_written:], dtype=np.int64), 0)
        self._tables[request.index] = table, num_blocks, request.num_preemptions
        return table[:, :num_blocks]


class LiveWorld:
    """Feeds a workload to one live replica until all is done.

    At the end of a step those that arrived meanwhile join the queue first, then the step takes effect, then
    the next is decided. Arrivals come `time_scale` times as fast as the workload says. In a closed loop
    the next request is sent when one has ended, and so are turns that wait for an answer.
    """

    def __init__(
        self,
        workload: Workload,
        engine: LiveEngine,
        *,
        time_scale: float = 1.0,
        progress: Callable[[int, float], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.engine = engine
        self.progress = progress
        self._time_scale = time_scale
        self._sleep = sleep
        starts, self._next_turns = split_turns(workload.requests())
        """By the identity of a request, the one that waits for its answer."""
        self._requests: Iterator[Request] = iter(starts)
        self._think_times = ThinkTimes(workload.config, workload.seed)
        self._is_closed_loop = workload.config.concurrency is not None
        self._ready: list[tuple[float, int, Request | None]]
        self._ready = [(0.0, number, None) for number in range(workload.config.concurrency or 0)]
        """When each client that thinks will send, which of them began to first, and the turn that it sends;
        `None` in a closed loop for the next request that waits for no answer."""
        self._num_thoughts = len(self._ready)
        self._next: Request | None = next(self._requests, None)

    def run(self) -> None:
        """Run to the end."""
        engine = self.engine
        while True:
            now = engine.clock()
            self._arrive(now)
            engine.call(now)
            while engine.under_way:
                end_s = engine.compute()
                if not self._is_closed_loop:
                    self._arrive(end_s)
                for request in engine.end_step():
                    self._think(request, end_s)
                self._arrive(end_s)
                engine.call(end_s)
            if (self._first() is None and not engine.num_outstanding) or not self._wait():
                return

    def _first(self) -> tuple[float, Request, bool] | None:
        """Who is sent next, when, and whether a client that thinks sends it; `None` for nobody."""
        if self._is_closed_loop and self._next is None:
            # Clients that have no turn left to send leave.
            self._ready = [each for each in self._ready if each[2] is not None]
            heapq.heapify(self._ready)
        if self._next is not None and not self._is_closed_loop:
            arrival_s = self._next.arrival_s / self._time_scale
            if not self._ready or arrival_s <= self._ready[0][0]:
                return arrival_s, self._next, False
        if not self._ready:
            return None
        due_s, _, turn = self._ready[0]
        request = turn or self._next
        assert request is not None
        return due_s, request, True

    def _arrive(self, now: float) -> None:
        """Everybody who is due by now joins the queue."""
        while (first := self._first()) is not None and first[0] <= now:
            due_s, request, has_thought = first
            if has_thought:
                heapq.heappop(self._ready)
            if request is self._next:
                self._next = next(self._requests, None)
            request.arrival_s = due_s
            self.engine.book.add_prompt(request)
            if not self.engine.submit(request):
                self._think(request, due_s)
            if self.progress is not None:
                self.progress(request.index + 1, due_s)

    def _think(self, request: Request, end_s: float) -> None:
        """The client whose request has ended sends its next turn, or in a closed loop the next request."""
        turn = self._next_turns.pop(id(request), None)
        if turn is None and not self._is_closed_loop:
            return
        if turn is None:
            due_s = end_s + self._think_times.after(request.index) / self._time_scale
        else:
            due_s = end_s + turn.delay_s / self._time_scale
            if not self._is_closed_loop:
                due_s = max(due_s, turn.arrival_s / self._time_scale)
        self._num_thoughts += 1
        heapq.heappush(self._ready, (due_s, self._num_thoughts, turn))

    def _wait(self) -> bool:
        """Sleep towards the next arrival or call of the scheduler; False if there will be none."""
        first = self._first()
        due = [at_s for at_s in (self.engine.wake_at_s(), first and first[0]) if at_s is not None]
        if not due:
            return False
        left_s = min(due) - self.engine.clock()
        if left_s > 0:
            self._sleep(min(left_s, MAX_NAP_S))
        return True


def live_engine(world: StepwiseWorld) -> LiveEngine:
    """The one replica of a live world."""
    (engine,) = world.replicas
    assert isinstance(engine, LiveEngine)
    return engine


def wall_clock() -> Clock:
    """A clock that starts now."""
    start = time.perf_counter()
    return lambda: time.perf_counter() - start
