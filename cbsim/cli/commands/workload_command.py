"""`cbsim workload`: what traces and generators hold, and traces converted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import click
from pydantic import Field

from cbsim.base.paths import YAML_SUFFIXES
from cbsim.cli.commands import arguments as args
from cbsim.config.assembly import Assembly
from cbsim.config.document import Document, parse_overrides, read_document
from cbsim.config.section import ByType, Section
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_workload
from cbsim.workload import WORKLOADS, Workload, WorkloadConfig
from cbsim.workload.convert import convert
from cbsim.workload.stats import describe


@click.group()
def workload() -> None:
    """Look into traces and generators, and convert them."""


@args.command(of=workload)
def stats(
    file: str = args.argument(),
    overrides: tuple[str, ...] = args.SET,
    plot: Path | None = args.option("--plot PNG", "Draw arrivals and lengths there.", type=args.PATH),
    as_json: bool = args.JSON,
) -> None:
    """Print what FILE holds: a trace, a generator's YAML, or an experiment's workload."""
    source = load_workload(file, overrides)
    figures = describe(source)
    if as_json:
        args.print_json(figures.to_json())
    else:
        click.echo(figures.to_text())
    if plot is not None:
        from cbsim.show.workload_plot import plot_workload

        plot_workload(source, plot)
        click.echo(f"written to {plot}", err=as_json)


@args.command("convert", of=workload)
def convert_trace(
    source: str = args.argument(),
    target: Path = args.argument(type=args.PATH),
    overrides: tuple[str, ...] = args.SET,
) -> None:
    """Write SOURCE in cbsim's own format to TARGET: .jsonl, .csv (with .gz or .zst too) or .parquet."""
    read = load_workload(source, overrides)
    convert(read, target)
    for note in read.notes():
        click.echo(note, err=True)
    click.echo(f"written to {target}")


class WorkloadFile(Section):
    """A workload alone, with the seed that a generator needs."""

    seed: int = Field(default=0, ge=0)
    workload: Annotated[WorkloadConfig, ByType(WORKLOADS)]


def load_workload(file: str, overrides: Iterable[str] = ()) -> Workload:
    """The workload in a trace, a generator's YAML or an experiment's.

    Settings of `overrides` begin with `workload.`, as in an experiment. Raises `ConfigError` for mistakes in
    settings; a trace is not read yet.
    """
    path = Path(file)
    document = Document({"workload": {"type": "trace", "path": file}})
    folder = Path()
    if path.suffix in YAML_SUFFIXES:
        content, folder = read_document(path), path.parent
        if "workload" in content.data and "type" not in content.data:
            return make_workload(Experiment.load(path, overrides))
        document.problems += content.problems
        document.put(("workload",), content.data, content)
    settings = Assembly(WorkloadFile, document, parse_overrides(overrides), folder).whole()
    return WORKLOADS.get(settings.workload.type)(settings.workload, seed=settings.seed, folder=folder)
