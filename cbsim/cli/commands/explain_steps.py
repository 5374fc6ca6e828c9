"""The steps that `cbsim explain` shows: as a table, as they come, and as a Gantt picture."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import click

from cbsim.base.errors import CbsimError
from cbsim.cli.commands import arguments as args
from cbsim.show.explain_text import RunningTable, print_gantt, step_notes, step_table
from cbsim.studies.explain.batch_step import BatchStep
from cbsim.studies.explain.gantt import Gantt
from cbsim.studies.explain.source import Source
from cbsim.studies.explain.step_source import Window

TERMINAL = "-"
"""Where a Gantt without a file goes."""
_MAX_STEPS = 10_000
"""Of a table that is shown at once."""
_MAX_PICTURE_STEPS = 1000
_MAX_TEXT_STEPS = 200
_NAME_WIDTH = 12
"""Characters of a Gantt's names, with a margin."""
_HEADER_EVERY = 30
"""Lines of a table that runs on, on a terminal."""
_LONGEST_PAUSE_S = threading.TIMEOUT_MAX / 2


def parse_window(text: str, replica: int) -> Window:
    """`0:40` is steps 0 to 39, `7` is step 7, `40:` all from 40 on."""
    first, colon, end = text.partition(":")
    try:
        start = int(first or 0)
        last = start if not colon else int(end) - 1 if end else None
    except ValueError:
        start, last = -1, None
    if start < 0 or (last is not None and last < start):
        raise CbsimError(f"--steps: got '{text}'; expected A:B with 0 <= A < B, as 0:40")
    return Window(replica, start, last)


def _batch_steps(source: Source, window: Window) -> list[BatchStep]:
    """The steps of a window. Raises `CbsimError` if the run has none of them."""
    shown: list[BatchStep] = []

    def take(step: BatchStep) -> None:
        if len(shown) == _MAX_STEPS:
            raise CbsimError(
                f"--steps: more than {_MAX_STEPS:,} steps; allowed: fewer, or --follow --speed 0, which "
                "shows each when it has ended"
            )
        shown.append(step)

    source.batch_steps(window, take)
    if not shown:
        raise _no_such_step(source, window)
    return shown


def _no_such_step(source: Source, window: Window) -> CbsimError:
    num_steps = int((source.result.steps["replica"] == window.replica).sum())
    of = f" of replica {window.replica}" if window.replica else ""
    allowed = f"0 to {num_steps - 1}" if num_steps else "none, it has no steps"
    return CbsimError(f"--steps: {source.name} has no step {window.first}{of}; allowed: {allowed}")


def show_steps(source: Source, window: Window, as_json: bool) -> None:
    """Print the steps of a window as one table."""
    shown = _batch_steps(source, window)
    width = terminal_width()
    if as_json:
        args.print_json([step.to_json() for step in shown])
    elif width is None:
        step_table(shown).print()
    else:
        table = RunningTable(width)
        click.secho(table.header(), bold=True)
        for step in shown:
            click.echo(table.line(step))
        for note in step_notes(shown):
            click.secho(textwrap.fill(f"- {note}", width, subsequent_indent="  "), dim=True)


def follow_steps(source: Source, window: Window, speed: float, as_json: bool) -> None:
    """Print each step when its time has come: `speed` simulated seconds after the first for each second."""
    if math.isnan(speed):
        raise CbsimError("--speed: got nan; expected a number >= 0")
    is_terminal = sys.stdout.isatty()
    table = RunningTable(terminal_width())
    num_shown, began = 0, time.monotonic()
    began_s = None

    def show(step: BatchStep) -> None:
        nonlocal num_shown, began_s
        began_s = step.start_s if began_s is None else began_s
        if speed:
            pause_s = began + (step.end_s - began_s) / speed - time.monotonic()
            time.sleep(min(max(0.0, pause_s), _LONGEST_PAUSE_S))
        if as_json:
            click.echo(json.dumps(step.to_json(), ensure_ascii=False))
        else:
            if num_shown == 0 or (is_terminal and num_shown % _HEADER_EVERY == 0):
                click.secho(table.header(), bold=True)
            click.echo(table.line(step))
        num_shown += 1

    try:
        source.batch_steps(window, show)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped after {num_shown:,} steps") from None
    if not num_shown:
        raise _no_such_step(source, window)


def terminal_width() -> int | None:
    """Characters of a line of the terminal; `None` where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def draw_gantt(
    source: Source, window: Window, target: str, over_time: bool, marked: str | None, as_json: bool
) -> None:
    """Draw what each request did in the steps of a window; the name of the request `marked` in bold."""
    path = Path(target)
    if target != TERMINAL and path.suffix not in (".png", ".svg"):
        raise CbsimError(f"--gantt: got '{target}'; expected a file that ends in .png or .svg")
    limit = _MAX_PICTURE_STEPS
    if target == TERMINAL and not as_json:
        limit = (terminal_width() or _NAME_WIDTH + _MAX_TEXT_STEPS) - _NAME_WIDTH
    beyond = window.first + limit
    last = beyond if window.last is None else min(beyond, window.last)
    shown = _batch_steps(source, replace(window, last=last))
    if len(shown) > limit:
        beyond = shown.pop().step
        click.echo(f"steps {window.first} to {beyond - 1}; --steps {beyond}: shows others", err=True)
    gantt = Gantt.of(window.replica, shown, source.result.events)
    if target != TERMINAL:
        from cbsim.show.gantt_plot import gantt_picture
        from cbsim.show.style import save_figure

        steps = f"steps {gantt.steps[0].step} to {gantt.steps[-1].step}"
        of = f" of replica {window.replica}" if source.config["replicas"]["count"] > 1 else ""
        title = f"{source.result.name}: {steps}{of}"
        written = save_figure(gantt_picture(gantt, title, over_time=over_time, marked=marked), path)
        click.echo(f"written to {' and '.join(map(str, written))}", err=as_json)
    if as_json:
        args.print_json(gantt.to_json())
    elif target == TERMINAL:
        print_gantt(gantt)
