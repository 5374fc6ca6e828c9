"""Progress of a scaling study: the point that is measured, how many are done, the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from cbsim.base.units import format_seconds
from cbsim.lab.bench.study import StudyProgress


@contextmanager
def watch_study(quiet: bool) -> Iterator[Callable[[StudyProgress], None] | None]:
    """A line on standard error for each point; on a terminal it stays in its place."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield lambda state: click.echo(describe(state), err=True)
        return
    from rich.console import Console

    with Console(stderr=True).status("reading what is to be measured") as status:
        yield lambda state: status.update(describe(state))


def describe(state: StudyProgress) -> str:
    """How far a study is."""
    parts = [f"{state.num_done} of {state.num_points} points"]
    if state.num_reused:
        parts.append(f"{state.num_reused} there already")
    if state.current is not None:
        parts.append(f"measuring {state.current.label}")
    if state.time_left_s is not None:
        parts.append(f"about {format_seconds(state.time_left_s)} left")
    return ", ".join(parts)
