"""`cbsim bench`: how fast the simulator itself is, here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--azure",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="The Azure 2023 conversation trace; default: as many requests from the generator fitted to it.",
)
@click.option("--quick", is_flag=True, help="A few works only.")
@click.option("--only", metavar="TEXT", multiple=True, help="Only works with this in their name; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print everything measured as JSON.")
@click.option("--markdown", is_flag=True, help="Print the tables as Markdown.")
def bench(azure: Path | None, quick: bool, only: tuple[str, ...], as_json: bool, markdown: bool) -> None:
    """Measure simulated works in CPU seconds, each in a process of its own, beside a bare SimPy loop."""
    from cbsim.bench.machine import Machine
    from cbsim.bench.measure import measure
    from cbsim.bench.tables import bench_tables, to_json, to_markdown
    from cbsim.bench.works import all_works

    works = [
        work
        for work in all_works(azure)
        if (work.is_quick or not quick) and (not only or any(text in work.name for text in only))
    ]
    if not works:
        names = ", ".join(f"'{work.name}'" for work in all_works(azure))
        raise click.UsageError(f"no work has {' or '.join(map(repr, only))} in its name; there are {names}")
    machine = Machine.here()
    rows = []
    for number, work in enumerate(works, start=1):
        if sys.stderr.isatty():
            click.echo(f"{number} of {len(works)}: {work.name}", err=True)
        rows.append((work, measure(work)))
    if as_json:
        click.echo(json.dumps(to_json(machine, rows), indent=2))
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
