"""`cbsim explain`: where a run's time goes, and what its batches were, step by step."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import click
import pandas as pd

from cbsim.base.errors import CbsimError
from cbsim.cli.commands import arguments as args
from cbsim.cli.commands import explain_steps
from cbsim.cli.progress import watch_run
from cbsim.results.output import holds
from cbsim.show.explain_text import request_table, slow_table
from cbsim.show.reader_tables import point_labels
from cbsim.show.sweep_text import read_sweep_table
from cbsim.show.text import Table
from cbsim.studies.explain.request_diagnosis import diagnose_request, stay_window
from cbsim.studies.explain.run_diagnosis import check_parts, diagnose_run
from cbsim.studies.explain.source import Source

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
        flag_value=explain_steps.TERMINAL,
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
        table = slow_table(diagnosis, explain_steps.terminal_width()) if diagnosis.slow else None
        _tell(diagnosis.to_json(), diagnosis.sentences(), table, as_json)
    else:
        window = (
            stay_window(source, request_id)
            if request_id
            else explain_steps.parse_window(steps or "0:", replica)
        )
        num_replicas = source.config["replicas"]["count"]
        if num_replicas > 1:
            click.echo(f"replica {window.replica} of {num_replicas}, counted from 0", err=True)
        if follow:
            explain_steps.follow_steps(source, window, speed, as_json)
        elif gantt is not None:
            explain_steps.draw_gantt(source, window, gantt, over == "time", request_id, as_json)
        else:
            explain_steps.show_steps(source, window, as_json)
    for remark in source.remarks:
        click.echo(remark, err=True)


def _tell(data: dict[str, Any], sentences: Iterable[str], table: Table | None, as_json: bool) -> None:
    """Print a diagnosis: its data, or its sentences in lines that can be read, and its table."""
    if as_json:
        args.print_json(data)
        return
    for sentence in sentences:
        width = min(_LINE, explain_steps.terminal_width() or _LINE)
        click.echo(textwrap.fill(sentence, width, subsequent_indent="  "))
    if table is not None:
        click.echo()
        table.print()


def _open(run: str, overrides: tuple[str, ...], quiet: bool) -> Source:
    """The run meant. Raises `CbsimError` for a sweep: one of its runs must be named."""
    path, watched = Path(run), partial(watch_run, quiet=quiet)
    if not path.is_dir():
        experiment = args.load_experiment(run, overrides)
        experiment.check_one_run(run)
        return Source(run, given=experiment, watched=watched)
    if holds(path, "sweep"):
        raise CbsimError(f"{run}: holds a sweep; allowed: one of its runs:", *_points(path))
    if overrides:
        raise CbsimError(f"--set: {run} is a run that has ended; allowed with an experiment")
    return Source(run, folder=path, watched=watched)


def _points(folder: Path) -> list[str]:
    """The runs of a sweep that have ended, each with what was swept."""
    if not (folder / "table.parquet").is_file():
        return [str(point) for point in sorted((folder / "points").iterdir())]
    points = read_sweep_table(folder)
    return [
        f"{folder / 'points' / point}  {label}"
        for point, label, error in zip(points["point"], point_labels(points), points["error"], strict=True)
        if pd.isna(error)
    ]
