"""`cbsim explain`: where a run's time goes, and what its batches were, step by step."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click
import pandas as pd

from cbsim.base.errors import CbsimError
from cbsim.base.paths import is_file, is_folder
from cbsim.base.trust import Trust
from cbsim.cli.commands import arguments as args
from cbsim.cli.progress import watch_run
from cbsim.results.output import holds
from cbsim.show.explain_text import (
    RunningTable,
    print_gantt,
    request_table,
    slow_table,
    step_notes,
    step_table,
)
from cbsim.show.reader_tables import point_labels
from cbsim.show.sweep_text import read_sweep_table
from cbsim.show.text import Table
from cbsim.studies.explain.batch_step import BatchStep, Gantt
from cbsim.studies.explain.request_diagnosis import diagnose_request, stay_window
from cbsim.studies.explain.run_diagnosis import check_parts, diagnose_run
from cbsim.studies.explain.source import Source, Window

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
    shown = list(islice(source.steps(window), _MAX_STEPS + 1))
    if len(shown) > _MAX_STEPS:
        raise CbsimError(
            f"--steps: more than {_MAX_STEPS:,} steps; allowed: fewer, or --follow --speed 0, which shows "
            "each when it has ended"
        )
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
    num_shown, began_s = 0, 0.0
    try:
        for step in source.steps(window):
            if not num_shown:
                began, began_s = time.monotonic(), step.start_s
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
        of = f" of replica {window.replica}" if source.num_replicas > 1 else ""
        title = f"{source.result.name}: {steps}{of}"
        written = save_figure(gantt_picture(gantt, title, over_time=over_time, marked=marked), path)
        click.echo(f"written to {' and '.join(map(str, written))}", err=as_json)
    if as_json:
        args.print_json(gantt.to_json())
    elif target == TERMINAL:
        print_gantt(gantt)


_LINE = 100
"""Characters of a line of sentences."""


@args.command()
def explain(
    run: str = args.argument(),
    overrides: tuple[str, ...] = args.SET,
    request_id: str | None = args.option("--request ID", "What happened to one request, and why."),
    steps: str | None = args.option("--steps A:B", "The batches of steps A to B-1; A: is all from A on."),
    replica: int = args.option("--replica", "Of the steps.", type=args.NATURAL, default=0),
    follow: bool = args.flag("--follow", "Steps as they happen, until Ctrl-C."),
    speed: float = args.option(
        "--speed",
        "Of --follow: simulated seconds a second; 0 is as fast as can be.",
        type=click.FloatRange(min=0),
        default=1.0,
    ),
    gantt: str | None = args.option(
        "--gantt [FILE]",
        "What each request did in these steps: a picture, .png or .svg; without FILE here, as text.",
        is_flag=False,
        flag_value=TERMINAL,
    ),
    over: str = args.choice("--over", ["steps", "time"], "Of the picture.", default="steps"),
    slowest: int = args.option("--slowest", "Requests that are listed.", type=args.NATURAL, default=5),
    by: str = args.choice("--by", ["ttft", "e2e"], "Of --slowest.", default="ttft"),
    as_json: bool = args.JSON,
    quiet: bool = args.QUIET,
) -> None:
    """Tell where the time of RUN goes: a run folder, an experiment file, or the name of a shipped one.

    Without options: the parts of TTFT and E2E, on average and in the slowest hundredth, and the slowest
    requests. Batches that the run has not recorded are simulated again.
    """
    if request_id is not None and (follow or steps is not None):
        raise CbsimError("--request: is of all steps of a request; allowed without --steps and --follow")
    if follow and gantt is not None:
        raise CbsimError("--gantt: is drawn of steps that have ended; allowed without --follow")
    source = _open(run, overrides, quiet or follow)
    source.check_replica(replica)
    if request_id is not None and gantt is None:
        story = diagnose_request(source, request_id)
        table = request_table(story) if story.entries else None
        _tell(story.to_json(), [story.sentence()], table, as_json)
    elif request_id is None and steps is None and not follow and gantt is None:
        check_parts(source.result, source.name)
        diagnosis = diagnose_run(source.result, by, slowest)
        table = slow_table(diagnosis, terminal_width()) if diagnosis.slow else None
        _tell(diagnosis.to_json(), diagnosis.sentences(), table, as_json)
    else:
        window = stay_window(source, request_id) if request_id else parse_window(steps or "0:", replica)
        if source.num_replicas > 1:
            click.echo(f"replica {window.replica} of {source.num_replicas}, counted from 0", err=True)
        if follow:
            follow_steps(source, window, speed, as_json)
        elif gantt is not None:
            draw_gantt(source, window, gantt, over == "time", request_id, as_json)
        else:
            show_steps(source, window, as_json)
    for remark in source.remarks:
        click.echo(remark, err=True)


def _tell(data: dict[str, Any], sentences: Iterable[str], table: Table | None, as_json: bool) -> None:
    """Print a diagnosis: its data, or its sentences in lines that can be read, and its table."""
    if as_json:
        args.print_json(data)
        return
    for sentence in sentences:
        width = min(_LINE, terminal_width() or _LINE)
        click.echo(textwrap.fill(sentence, width, subsequent_indent="  "))
    if table is not None:
        click.echo()
        table.print()


def _open(run: str, overrides: tuple[str, ...], quiet: bool) -> Source:
    """The run meant. Raises `CbsimError` for a sweep: one of its runs must be named."""
    path, watched = Path(run), partial(watch_run, quiet=quiet)
    if not is_folder(path):
        experiment = args.load_experiment(run, overrides)
        experiment.check_one_run(run)
        return Source(run, given=experiment, watched=watched)
    if holds(path, "sweep"):
        raise CbsimError(f"{run}: holds a sweep; allowed: one of its runs:", *_points(path))
    if overrides:
        raise CbsimError(f"--set: {run} is a run that has ended; allowed with an experiment")
    is_trusted = click.get_current_context().find_root().params.get("plugins")
    trust = Trust.EVERYTHING if is_trusted else Trust.INSTALLED
    return Source(run, folder=path, watched=watched, trust=trust)


def _points(folder: Path) -> list[str]:
    """The runs of a sweep that have ended, each with what was swept."""
    if not is_file(folder / "table.parquet"):
        return [str(point) for point in sorted((folder / "points").iterdir())]
    points = read_sweep_table(folder)
    return [
        f"{folder / 'points' / point}  {label}"
        for point, label, error in zip(points["point"], point_labels(points), points["error"], strict=True)
        if pd.isna(error)
    ]
