"""Progress on a terminal: requests, simulated time and speed of a run; points of a sweep."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from cbsim.base.units import format_count, format_seconds

if TYPE_CHECKING:
    from cbsim.studies.experiment import Experiment
    from cbsim.studies.sweep import SweepProgress


@contextmanager
def watch_run(experiment: Experiment, quiet: bool) -> Iterator[Callable[[int, float], None] | None]:
    """A bar on the terminal while a run goes on; nothing where standard error is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from cbsim.studies.run import make_workload

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(experiment.name, total=make_workload(experiment).num_requests())

        def update(num_requests: int, now_s: float) -> None:
            elapsed_s = bar.tasks[0].elapsed or 0.0
            speed = f", {now_s / elapsed_s:,.0f} x real time" if elapsed_s > 0 else ""
            told = f"{format_count(num_requests)} requests, {format_seconds(now_s)} simulated{speed}"
            bar.update(task, completed=num_requests, description=told)

        yield update


@contextmanager
def watch_sweep(quiet: bool) -> Iterator[Callable[[SweepProgress], None] | None]:
    """A line on standard error after each point; on a terminal it stays in its place."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield lambda state: click.echo(describe_sweep(state), err=True)
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("planning the points") as status:

        def update(state: SweepProgress) -> None:
            if state.error is not None:
                console.print(_failure(state), markup=False, highlight=False)
            status.update(_counts(state))

        yield update


def describe_sweep(state: SweepProgress) -> str:
    """How far a sweep is: points done, reused and failed, time left, the best so far."""
    return _failure(state) if state.error is not None else _counts(state)


def _failure(state: SweepProgress) -> str:
    assert state.error is not None
    point, message = state.error
    told = ", ".join(f"{key}={_short(value)}" for key, value in point.swept.items())
    return f"failed: {told}: {message}"


def _counts(state: SweepProgress) -> str:
    parts = [f"{state.num_reused + state.num_done} of {state.num_points} points"]
    if state.num_reused:
        parts.append(f"{state.num_reused} there already")
    if state.num_failed:
        parts.append(f"{state.num_failed} failed")
    if state.time_left_s:
        parts.append(f"{format_seconds(state.time_left_s)} left")
    if state.best is not None:
        point, summary = state.best
        told = ", ".join(f"{key}={_short(value)}" for key, value in point.swept.items())
        parts.append(f"best so far {summary['goodput_per_s']:.3g} req/s goodput with {told}")
    return ", ".join(parts)


def _short(value: object) -> object:
    return value.get("type", "...") if isinstance(value, dict) else value
