"""A fresh process for one piece of work, which Ctrl-C ends without a word of its own."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from cbsim.studies.worker_pool import WorkerLost

Answer = TypeVar("Answer")


def in_fresh_process(function: Callable[..., Answer], *arguments: Any) -> Answer:
    """What a function of a module gives in a process that has done nothing before.

    Raises what it raises, and `WorkerLost` if the process ends without an answer, as for want of memory. The
    process doesn't outlive this call.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments), daemon=True)
    with _interrupts_ignored():
        process.start()
    sender.close()
    answer: Answer
    try:
        answer, error = receiver.recv()
    except EOFError:
        raise WorkerLost("its process ended without an answer (out of memory?)") from None
    except BaseException:
        process.kill()
        raise
    finally:
        process.join()
        receiver.close()
    if error is not None:
        raise error
    return answer


def _answer(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        sender.send((function(*arguments), None))
    except Exception as error:
        sender.send((None, error))


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process begun in here ignores Ctrl-C, which a terminal sends to all at once: its parent ends it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
