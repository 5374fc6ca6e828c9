"""`cbsim bench`: how fast the simulator itself is here, on a user's configuration or on works of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import click

from cbsim.base.errors import CbsimError
from cbsim.cli.commands import arguments as args
from cbsim.cli.progress import counted, watch_study
from cbsim.lab.bench.bench_tables import bench_tables, scaling_json, scaling_tables, to_json, to_markdown
from cbsim.lab.bench.scaling import Scales, Study, parse_values
from cbsim.lab.bench.study import Ledger, StudyInterrupted, StudyProgress, measure_study
from cbsim.lab.bench.work_timing import Machine

_NONE = "none"


@args.command()
def bench(
    config: str | None = args.argument(required=False),
    overrides: tuple[str, ...] = args.SET,
    requests: str | None = args.option("--requests N,...", "How many requests; default: 1000,10000,100000."),
    running: str | None = args.option("--running N,...", "Requests running at once; default: 16,64,256."),
    replicas: str | None = args.option("--replicas N,...", "Numbers of replicas; default: 1,4,16."),
    out: Path | None = args.OUT,
    again: bool = args.flag("--again", "Measure anew what is in the folder already."),
    quiet: bool = args.QUIET,
    as_json: bool = args.JSON,
    azure: Path | None = args.option(
        "--azure FILE",
        "Without CONFIG: the Azure 2023 conversation trace; default: its generator, as many requests.",
        type=args.FILE,
    ),
    quick: bool = args.flag("--quick", "Without CONFIG: a few works only."),
    only: tuple[str, ...] = args.option(
        "--only TEXT", "Without CONFIG: works with this in their name.", multiple=True
    ),
    markdown: bool = args.flag("--markdown", "Without CONFIG: print the tables as Markdown."),
) -> None:
    """Measure what simulating costs here: CPU time, steps a second, memory.

    With CONFIG: that experiment with ever more requests, then requests running at once (max_num_seqs, with as
    many waiting as it takes), then replicas (each with the same traffic); `none` leaves one of them out. A
    trace that is too short is repeated, arrivals shifted. Each point is measured in a fresh process, beside a
    bare SimPy loop of as many events as steps. Table, picture and figures go to --out (default:
    runs/NAME-bench).

    Ctrl-C keeps what is measured, and the same call goes on from there: what is in the folder already, from
    the same code, machine, settings and files, is not measured again.

    Without CONFIG: cbsim's own works (cbsim/lab/bench/README.md), with their targets.
    """
    scales = {"--requests": requests, "--running": running, "--replicas": replicas}
    if config is None:
        given: dict[str, object] = {"--set": overrides, "--out": out, "--again": again, "--quiet": quiet}
        _refuse(scales | given, "needs a CONFIG to scale")
        _bench_works(azure, quick, only, as_json, markdown)
    else:
        given = {"--azure": azure, "--quick": quick, "--only": only, "--markdown": markdown}
        _refuse(given, "is for cbsim's own works, without a CONFIG")
        study = _study(config, overrides, scales)
        _bench_config(study, out, again, quiet, as_json)


def _refuse(given: Mapping[str, object], why: str) -> None:
    problems = [f"{name}: {why}" for name, value in given.items() if value]
    if problems:
        raise CbsimError(*problems)


def _study(config: str, overrides: tuple[str, ...], given: dict[str, str | None]) -> Study:
    """The study of CONFIG along the axes; raises `CbsimError` with a line for each option that is wrong."""
    values: dict[str, tuple[int, ...]] = {}
    problems: list[str] = []
    for name, text in given.items():
        try:
            if text is not None:
                values[name.removeprefix("--")] = () if text == _NONE else parse_values(name, text)
        except CbsimError as error:
            problems += error.problems
    if problems:
        raise CbsimError(*problems)
    if all(text == _NONE for text in given.values()):
        raise CbsimError(f"{', '.join(given)}: all are {_NONE}; allowed: numbers for one of them at least")
    return Study(args.load_experiment(config, overrides), Scales(**values))


def _bench_config(study: Study, out: Path | None, again: bool, quiet: bool, as_json: bool) -> None:
    from cbsim.lab.bench.bench_tables import save_study

    machine = Machine.here()
    ledger = Ledger(out or Path("runs") / f"{study.name}-bench", machine)
    if again:
        ledger.entries.clear()
    stopped = ""
    try:
        with watch_study(quiet, "reading what is to be measured", _describe) as progress:
            rows = measure_study(study.points, ledger, progress)
    except StudyInterrupted as interrupted:
        rows, stopped = list(interrupted.rows), str(interrupted)
    written = save_study(study, machine, rows, ledger.folder) if rows else []
    if as_json:
        args.print_json(scaling_json(study, machine, rows))
    elif rows:
        click.echo("\n".join([machine.describe(), *machine.warnings(), *study.notes]))
        for table in scaling_tables(rows):
            click.echo()
            table.print()
        click.echo(f"\nwritten to {ledger.folder}: {', '.join(written)}")
    if stopped:
        raise KeyboardInterrupt(stopped)
    if any(row.error is not None for row in rows):
        raise click.exceptions.Exit(1)


def _describe(state: StudyProgress) -> str:
    done = f"{state.num_done} of {state.num_points} points"
    told = counted(done, (state.num_reused, "there already"), left_s=state.time_left_s)
    return told if state.current is None else f"{told}, measuring {state.current.label}"


def _bench_works(
    azure: Path | None, quick: bool, only: tuple[str, ...], as_json: bool, markdown: bool
) -> None:
    from cbsim.lab.bench.work_timing import measure
    from cbsim.lab.bench.works import all_works

    works = [work for work in all_works(azure) if work.is_quick or not quick]
    works = [work for work in works if not only or any(text in work.name for text in only)]
    if not works:
        names = ", ".join(f"'{work.name}'" for work in all_works(azure))
        raise CbsimError(f"--only: no work has {' or '.join(map(repr, only))} in its name; there are {names}")
    machine = Machine.here()
    rows = []
    for number, work in enumerate(works, start=1):
        if sys.stderr.isatty():
            click.echo(f"{number} of {len(works)}: {work.name}", err=True)
        rows.append((work, measure(work)))
    if as_json:
        args.print_json(to_json(machine, rows))
        return
    trace = "the trace itself" if azure else "generated with the trace's rate and lengths"
    lines = [machine.describe(), *machine.warnings(), f"hour: {trace}"]
    click.echo("\n".join(f"* {line}" for line in lines) if markdown else "\n".join(lines))
    for table in bench_tables(rows):
        click.echo()
        if markdown:
            click.echo(to_markdown(table))
        else:
            table.print()
