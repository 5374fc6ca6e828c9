"""The command line: `cbsim COMMAND`. Bodies import what they need, so that `cbsim --help` is quick."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cbsim.base.errors import CbsimError
from cbsim.cli.command_group import Commands
from cbsim.cli.commands import shared
from cbsim.cli.commands.arguments import argument, flag, load_experiment, option, print_json, with_parameters


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="cbsim", prog_name="cbsim")
def main() -> None:
    """What an LLM serving engine does with your traffic: simulated, before any GPU hour is spent."""


@main.command()
@with_parameters
def run(
    config: str = shared.CONFIG,
    overrides: tuple[str, ...] = shared.SET,
    out: Path | None = shared.OUT,
    workers: int = shared.WORKERS,
    plots: bool | None = shared.PLOTS,
    with_timeline: bool = flag("--timeline", "Write timeline.json.gz, for Perfetto."),
    as_json: bool = shared.JSON,
    quiet: bool = shared.QUIET,
) -> None:
    """Run CONFIG: an experiment file, or the name of a shipped one (`cbsim list experiments`).

    Prints the figures and writes the run folder (default: runs/NAME-HASH). A configuration with `sweep:` is
    run as `cbsim sweep` would.
    """
    experiment = load_experiment(config, overrides)
    if experiment.sweep:
        if with_timeline:
            raise CbsimError("--timeline: is of one run; pin the sweep's keys, as in --set seed=0")
        if not quiet:
            click.echo(f"{experiment.name} has a sweep: running all its points", err=True)
        from cbsim.cli.commands.sweep_command import run_points

        run_points(experiment, out, workers, None, plots, as_json, quiet)
        return
    from cbsim.cli.progress import watch_run
    from cbsim.results.manifest import hash_mapping
    from cbsim.results.output import check_run_target
    from cbsim.studies.run import run_experiment

    folder = out or Path("runs") / f"{experiment.name}-{hash_mapping(experiment.resolved())[:8]}"
    check_run_target(folder)
    with watch_run(experiment, quiet) as progress:
        result = run_experiment(experiment, progress)
    result.save(folder)
    if with_timeline:
        from cbsim.show.perfetto import write_timeline

        for note in write_timeline(result, folder / "timeline.json.gz"):
            click.echo(f"timeline: {note}", err=True)
    if plots:
        from cbsim.cli.commands.sweep_command import draw, run_pictures

        draw(run_pictures({experiment.name: result}, experiment), folder)
    if as_json:
        print_json(result.summary)
        return
    from cbsim.show.reader_tables import run_tables

    for table in run_tables(result):
        table.print()
        click.echo()
    click.echo(f"written to {folder}")


@main.command()
@with_parameters
def check(
    configs: tuple[str, ...] = argument(nargs=-1, required=True, metavar="CONFIG..."),
    overrides: tuple[str, ...] = shared.SET,
) -> None:
    """Check configurations and the traces they name without running them."""
    from cbsim.cli.preview import preview

    problems: list[str] = []
    for config in configs:
        try:
            click.echo(f"ok  {config}: {preview(load_experiment(config, overrides))}")
        except CbsimError as error:
            problems += error.problems
    if problems:
        raise CbsimError(*dict.fromkeys(problems))


@main.command("list")
@with_parameters
def list_parts(kind: str | None = argument(required=False), as_json: bool = shared.JSON) -> None:
    """List schedulers, workloads, cost-models, observers, models, gpus, slos or experiments; else all."""
    from cbsim.base.registry import did_you_mean
    from cbsim.cli.catalog import KINDS, catalog

    if kind is not None and kind not in KINDS:
        raise CbsimError(f"no list of '{kind}'{did_you_mean(kind, KINDS)}")
    found = {name: catalog(name) for name in ([kind] if kind else KINDS)}
    if as_json:
        print_json(found)
        return
    for i, (name, entries) in enumerate(found.items()):
        width = max(map(len, entries), default=0)
        click.echo("\n" * (i > 0) + f"{name}:")
        for entry, meaning in entries.items():
            click.echo(f"  {entry:{width}}  {meaning}".rstrip())


@main.command()
@with_parameters
def schema(
    out: Path | None = option("--out DIR", "Write schema and reference.md.", type=shared.FOLDER),
) -> None:
    """Print the JSON Schema of experiment files, for editors; with --out write it and the reference."""
    from cbsim.config.reference_page import make_reference
    from cbsim.config.schema import make_schema
    from cbsim.studies.experiment import Experiment

    text = json.dumps(make_schema(Experiment), indent=2) + "\n"
    if out is None:
        click.echo(text, nl=False)
        return
    from cbsim.base.paths import write_text

    for name, content in (("experiment.schema.json", text), ("reference.md", make_reference(Experiment))):
        write_text(out / name, content)
        click.echo(f"written to {out / name}")


@main.group()
def workload() -> None:
    """Look into traces and generators, and convert them."""


@workload.command()
@with_parameters
def stats(
    file: str = argument(),
    overrides: tuple[str, ...] = shared.SET,
    plot: Path | None = option("--plot PNG", "Draw arrivals and lengths there.", type=shared.PATH),
    as_json: bool = shared.JSON,
) -> None:
    """Print what FILE holds: a trace, a generator's YAML, or an experiment's workload."""
    from cbsim.cli.workload_file import load_workload
    from cbsim.workload.stats import describe

    source = load_workload(file, overrides)
    figures = describe(source)
    if as_json:
        print_json(figures.to_json())
    else:
        click.echo(figures.to_text())
    if plot is not None:
        from cbsim.show.workload_plot import plot_workload

        plot_workload(source, plot)
        click.echo(f"written to {plot}", err=as_json)


@workload.command("convert")
@with_parameters
def convert_trace(
    source: str = argument(),
    target: Path = argument(type=shared.PATH),
    overrides: tuple[str, ...] = shared.SET,
) -> None:
    """Write SOURCE in cbsim's own format to TARGET: .jsonl, .csv (with .gz or .zst too) or .parquet."""
    from cbsim.cli.workload_file import load_workload
    from cbsim.workload.convert import convert

    read = load_workload(source, overrides)
    convert(read, target)
    for note in read.notes():
        click.echo(note, err=True)
    click.echo(f"written to {target}")
