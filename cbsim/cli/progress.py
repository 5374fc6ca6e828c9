"""Progress on standard error: a run's requests, simulated time and speed; the points of a study."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import click

from cbsim.base.units import format_count, format_seconds
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_workload

State = TypeVar("State")


@contextmanager
def watch_run(experiment: Experiment, quiet: bool) -> Iterator[Callable[[int, float], None] | None]:
    """A bar on the terminal while a run goes on; nothing where standard error is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(experiment.name, total=make_workload(experiment).num_requests())

        def update(num_requests: int, now_s: float) -> None:
            elapsed_s = bar.tasks[0].elapsed or 0.0
            speed = f", {now_s / elapsed_s:,.0f} x real time" if elapsed_s > 0 else ""
            told = f"{format_count(num_requests)} requests, {format_seconds(now_s)} simulated{speed}"
            bar.update(task, completed=num_requests, description=told)

        yield update


def counted(done: str, *counts: tuple[int, str], left_s: float | None) -> str:
    """How far a study is: what is `done`, each count that is not 0, and the time to go if it is known."""
    told = [done, *(f"{count} {what}" for count, what in counts if count)]
    return ", ".join([*told, f"about {format_seconds(left_s)} left"] if left_s else told)


@contextmanager
def watch_study(
    quiet: bool,
    beginning: str,
    describe: Callable[[State], str],
    *,
    failure: Callable[[State], str] = lambda state: "",
    is_told: Callable[[State], bool] = lambda state: True,
) -> Iterator[Callable[[State], None] | None]:
    """A line for each state in which a study is; on a terminal it stays in its place, `beginning` at first.

    A state's `failure` gets a line of its own. Where there is no terminal, only states that `is_told` are.
    """
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True)
        with console.status(beginning) as status:

            def update(state: State) -> None:
                if failed := failure(state):
                    console.print(failed, markup=False, highlight=False)
                status.update(describe(state))

            yield update
    else:

        def tell(state: State) -> None:
            if is_told(state):
                click.echo(failure(state) or describe(state), err=True)

        yield tell
