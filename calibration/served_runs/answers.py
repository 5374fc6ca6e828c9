"""Answers of long jobs, appended to a file as they come, so that a killed job goes on where it stopped."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

from cbsim.base.errors import refusals
from cbsim.base.paths import write_text
from cbsim.studies.worker_pool import Pool

Task = TypeVar("Task")
Answer = TypeVar("Answer")

Found = tuple[float, ...] | str
"""The figures of a key, or the problem that stood against them."""
LINES = 20
"""Most lines of progress that a list of tasks prints."""


class AnswerFile:
    """Rows of text by key: `key, problem, figures`."""

    def __init__(self, path: Path, figures: Sequence[str]) -> None:
        """Read what an earlier job left; a torn last row is dropped. Raises `CbsimError` if that fails."""
        self._path = path
        self._figures = tuple(figures)
        self._known: dict[str, Found] = {}
        with refusals(path, "read"):
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if whole != lines:
            write_text(path, "".join(whole))
        for row in csv.reader(whole[1:]):
            self._known[row[0]] = row[1] or tuple(float(cell) for cell in row[2:])

    def known(self, key: str) -> Found | None:
        """What was found of a key; None if it is to be done."""
        return self._known.get(key)

    def found(self, keys: Iterable[str]) -> dict[str, Found]:
        """What was found, by key."""
        return {key: self._known[key] for key in keys if key in self._known}

    def add(self, key: str, answer: Sequence[float] | str) -> None:
        """Append an answer. Raises `CbsimError` if it can't be written."""
        problem, figures = (answer, ()) if isinstance(answer, str) else ("", tuple(answer))
        is_new = not self._known and not self._path.exists()
        self._known[key] = problem or figures
        with (
            refusals(self._path, "written"),
            self._path.open("a", newline="", encoding="utf-8") as file,
        ):
            rows = csv.writer(file, lineterminator="\n")
            if is_new:
                rows.writerow(("key", "problem", *self._figures))
            rows.writerow((key, "; ".join(problem.splitlines()), *figures))


def answer_all(
    pool: Pool,
    what: str,
    function: Callable[[Task], Answer],
    tasks: Mapping[str, Task],
    file: AnswerFile,
) -> dict[str, Found]:
    """The answers to all tasks by key: those that the file knows, and the others as they come."""
    waiting = [key for key in tasks if file.known(key) is None]
    for index, answer in _run(pool, what, function, [tasks[key] for key in waiting]):
        file.add(waiting[index], cast("Sequence[float] | str", answer))
    return file.found(tasks)


def run_all(pool: Pool, what: str, function: Callable[[Task], Answer], tasks: Sequence[Task]) -> list[Answer]:
    """The answers to all tasks, in order; raises what one of them did."""
    answers = dict(_run(pool, what, function, tasks))
    return [answers[index] for index in range(len(tasks))]


def _run(
    pool: Pool, what: str, function: Callable[[Task], Answer], tasks: Sequence[Task]
) -> Iterator[tuple[int, Answer]]:
    """Answers as they come, with a line now and then; raises what a task did."""
    for done, outcome in enumerate(pool.run_all(function, tasks), start=1):
        if outcome.error is not None:
            raise outcome.error
        if done * LINES // len(tasks) > (done - 1) * LINES // len(tasks):
            print(f"{what}: {done:,} of {len(tasks):,}", file=sys.stderr, flush=True)
        yield outcome.index, cast(Answer, outcome.answer)
