"""Pool: many independent tasks on any `concurrent.futures.Executor`; a lost worker takes none along."""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, TypeVar

from cbsim.base.errors import CbsimError
from cbsim.base.garbage import collect_seldom
from cbsim.base.paths import install_extra

Task = TypeVar("Task")
Answer = TypeVar("Answer")


class WorkerLost(CbsimError):
    """The process that ran a task ended without an answer, even with the machine to itself."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Answer]):
    """What became of task number `index`: its answer, or the exception it raised."""

    index: int
    answer: Answer | None = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """Where tasks run: `open_executor` gives an executor, which is handed `max_in_flight` tasks at a time."""

    open_executor: Callable[[], AbstractContextManager[Executor]]
    max_in_flight: int

    def run_all(self, function: Callable[[Task], Answer], tasks: Sequence[Task]) -> Iterator[Outcome[Answer]]:
        """The outcome of each task as it comes, in any order; function and tasks must pickle.

        Where a lost worker broke the executor, the tasks in flight are run again one by one, so that the one
        that brings its worker down (most often for want of memory) is known, fails with `WorkerLost`, and
        harms no other.
        """
        waiting: Sequence[int] = range(len(tasks))
        while waiting:
            suspects, waiting = yield from self._run_until_broken(
                function, tasks, waiting, self.max_in_flight
            )
            for index in suspects:
                lost, _ = yield from self._run_until_broken(function, tasks, [index], 1)
                if lost:
                    error = WorkerLost("its worker process ended without an answer (out of memory?)")
                    yield Outcome(index, error=error)

    def _run_until_broken(
        self,
        function: Callable[[Task], Answer],
        tasks: Sequence[Task],
        indices: Iterable[int],
        max_in_flight: int,
    ) -> Generator[Outcome[Answer], None, tuple[list[int], list[int]]]:
        """Run tasks on one executor; returns those in flight, and those not begun, when it broke."""
        waiting = deque(indices)
        in_flight: dict[Future[Answer], int] = {}
        try:
            with self.open_executor() as executor:
                try:
                    while waiting or in_flight:
                        while waiting and len(in_flight) < max_in_flight:
                            in_flight[executor.submit(function, tasks[waiting[0]])] = waiting[0]
                            waiting.popleft()
                        for future in wait(in_flight, return_when=FIRST_COMPLETED).done:
                            error = BrokenExecutor() if future.cancelled() else future.exception()
                            if isinstance(error, BrokenExecutor):
                                raise error
                            index = in_flight.pop(future)
                            yield Outcome(index, None if error else future.result(), error)
                except BrokenExecutor:
                    raise
                except BaseException:
                    executor.shutdown(wait=False, cancel_futures=True)
                    raise
        except BrokenExecutor:
            return sorted(in_flight.values()), list(waiting)
        return [], []

    @contextmanager
    def kept_open(self) -> Iterator[Pool]:
        """The same pool on one executor, which stays from one `run_all` to the next until it breaks."""
        kept: list[Executor] = []
        with ExitStack() as opened:

            @contextmanager
            def reuse() -> Iterator[Executor]:
                if not kept:
                    kept.append(opened.enter_context(self.open_executor()))
                try:
                    yield kept[0]
                except BaseException:
                    kept.clear()
                    raise

            yield Pool(reuse, self.max_in_flight)


def time_left_s(elapsed_s: float, num_done: int, num_left: int) -> float | None:
    """Wall-clock seconds to go at the pace so far; `None` before the first task is done."""
    return elapsed_s / num_done * num_left if num_done else None


def open_pool(num_workers: int = 1, cluster: str | None = None) -> Pool:
    """A pool in this process (one worker), of spawned processes, or of the dask cluster at an address.

    Raises `CbsimError` if the `cluster` extra is not installed or the scheduler can't be reached.
    """
    if num_workers < 1:
        raise CbsimError(f"workers: got {num_workers}; expected an integer >= 1")
    if cluster is not None:
        return _cluster_pool(cluster)
    if num_workers == 1:
        return Pool(_InProcess, 1)
    return Pool(partial(spawned, num_workers), num_workers)


@contextmanager
def spawned(num_workers: int) -> Iterator[Executor]:
    """Processes, spawned or from a server that was started, which end with this block: at once if an
    exception leaves it.
    """
    context = multiprocessing.get_context("forkserver" if _SERVED.is_set() else "spawn")
    stop, is_wanted = context.Pipe(duplex=False)
    with stop, is_wanted, _Deaf(num_workers, context, end_with_parent, (stop,)) as executor:
        try:
            yield executor
        except BrokenExecutor:
            raise
        except BaseException:
            is_wanted.close()
            raise


_SERVED = threading.Event()
"""Whether this process has a server that forks its workers."""


def start_server() -> None:
    """Have a process import what runs need, while this one does so: its forks are this process's workers.

    It ends with this process, which must be a command's own: a process has one server for all that it starts.
    Without it, as where there are no such servers or forks are not safe, each worker imports for itself.
    """
    if not sys.platform.startswith("linux"):
        return
    from multiprocessing import forkserver, resource_tracker

    resource_tracker.ensure_running()  # This unblocks signals.
    multiprocessing.set_forkserver_preload(["cbsim.cli", "cbsim.studies.sweep"])
    former = dict(os.environ)
    # The server must find the modules that this process finds, whatever lies in the current folder.
    found_at = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    os.environ.update(PYTHONPATH=found_at, PYTHONSAFEPATH="1")
    try:
        with suppress(OSError), born_deaf():
            forkserver.ensure_running()
            _SERVED.set()
    finally:
        os.environ.clear()
        os.environ.update(former)


class _Deaf(ProcessPoolExecutor):
    """Its workers don't hear Ctrl-C, which a terminal sends to all at once: their parent ends them."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with born_deaf():
            return super().submit(_carry_out, fn, *args, **kwargs)


_BUSY, _UNWANTED = threading.Event(), threading.Event()
"""Whether this process, a worker, carries out a task, and whether its parent wants no more of them."""


def _carry_out(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if _UNWANTED.is_set():
        sys.exit(1)
    _BUSY.set()
    try:
        return fn(*args, **kwargs)
    finally:
        _BUSY.clear()


@contextmanager
def born_deaf() -> Iterator[None]:
    """Processes that are started in here do not hear Ctrl-C, where the system allows that to be chosen."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield  # What is blocked here stays so in the process.
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def end_with_parent(stop: Connection | None = None) -> None:
    """Have this process, a spawned one, end when the one that started it does, however that ends.

    Or when that one closes its end of `stop`: then what is under way is told by a `SystemExit` first.
    """
    collect_seldom()
    parent = multiprocessing.parent_process()
    assert parent is not None
    gone = parent.sentinel

    def wait_and_end() -> None:
        if gone not in connection.wait([gone, *([stop] if stop else [])]):
            _UNWANTED.set()
            # One that waits for a task hears that there are no more; half a task read would puzzle others.
            if _BUSY.is_set():
                _thread.interrupt_main()
            connection.wait([gone], GRACE_S)
        os._exit(1)

    signal.signal(signal.SIGINT, lambda *_: sys.exit(1))
    threading.Thread(target=wait_and_end, daemon=True).start()


GRACE_S = 0.5
"""What a worker that is no longer wanted has to clear up, seconds."""


class _InProcess(Executor):
    """Runs a task when it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _cluster_pool(address: str) -> Pool:
    try:
        from distributed import Client
    except ImportError as error:
        raise CbsimError(f"cluster: needs dask.distributed: {install_extra('cluster')}") from error

    client_class: Any = Client

    def connect() -> Any:
        try:
            return client_class(address, timeout="10s", set_as_default=False)
        except (OSError, ValueError) as error:
            raise CbsimError(f"cluster: no dask scheduler answers at '{address}': {error}") from error

    @contextmanager
    def open_executor() -> Iterator[Executor]:
        with connect() as client, client.get_executor(pure=False) as executor:
            yield executor

    with connect() as client:
        num_threads = sum(client.nthreads().values())
    # Two each: a worker that has answered finds its next task at hand.
    return Pool(open_executor, max(2, 2 * num_threads))
