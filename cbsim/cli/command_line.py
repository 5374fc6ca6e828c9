"""The command line: `cbsim COMMAND`. Bodies import what they need, so that `cbsim --help` is quick."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cbsim.base.errors import CbsimError
from cbsim.base.units import format_count
from cbsim.cli.command_group import Commands
from cbsim.cli.commands import arguments as args

if TYPE_CHECKING:
    from cbsim.studies.experiment import Experiment


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="cbsim", prog_name="cbsim")
def main() -> None:
    """What an LLM serving engine does with your traffic: simulated, before any GPU hour is spent."""


@args.command(of=main)
def check(
    configs: tuple[str, ...] = args.argument(nargs=-1, required=True, metavar="CONFIG..."),
    overrides: tuple[str, ...] = args.SET,
) -> None:
    """Check configurations and the traces they name without running them."""
    problems: list[str] = []
    for config in configs:
        try:
            click.echo(f"ok  {config}: {preview(args.load_experiment(config, overrides))}")
        except CbsimError as error:
            problems += error.problems
    if problems:
        raise CbsimError(*dict.fromkeys(problems))


@args.command(of=main)
def schema(
    out: Path | None = args.option("--out DIR", "Write schema and reference.md.", type=args.FOLDER),
) -> None:
    """Print the JSON Schema of experiment files, for editors; with --out write it and the reference."""
    from cbsim.config.reference_page import make_reference, make_schema
    from cbsim.studies.experiment import Experiment

    text = json.dumps(make_schema(Experiment), indent=2) + "\n"
    if out is None:
        click.echo(text, nl=False)
        return
    from cbsim.base.paths import write_text

    for name, content in (("experiment.schema.json", text), ("reference.md", make_reference(Experiment))):
        write_text(out / name, content)
        click.echo(f"written to {out / name}")


@args.command(short_help="Compare two runs, request by request.", of=main)
def compare(
    first: Path = args.argument(type=args.PATH),
    second: Path = args.argument(type=args.PATH),
    seed: int = args.option("--seed", "Of the resampling.", type=args.NATURAL, default=0),
    out: Path | None = args.OUT,
    as_json: bool = args.JSON,
) -> None:
    """Compare the runs in folders FIRST and SECOND, paired by request.

    Differences are second - first, with 95% intervals. With --out, the latencies of both are drawn there.
    """
    from cbsim.results.result import load_run
    from cbsim.show.reader_tables import difference_table, run_labels
    from cbsim.studies.compare import compare as compare_results

    runs = [load_run(folder) for folder in (first, second)]
    comparison = compare_results(*runs, seed=seed)
    labels = run_labels([first, second])
    written = []
    if out is not None:
        from cbsim.show.latency_plot import latency_cdfs
        from cbsim.show.style import save_figure

        slo = {name: limit for name, limit in (runs[0].config.get("slo") or {}).items() if limit is not None}
        written = save_figure(latency_cdfs(dict(zip(labels, runs, strict=True)), slo), out / "latency_cdfs")
    if as_json:
        told = asdict(comparison)
        for difference, row in zip(comparison.differences, told["differences"], strict=True):
            row["change"] = difference.change._asdict()
        args.print_json({"first": labels[0], "second": labels[1], **told})
        return
    difference_table(comparison, *labels).print()
    for path in written:
        click.echo(f"written to {path}")


@args.command(short_help="Write runs, sweeps and capacities as one HTML page.", of=main)
def report(
    folders: tuple[Path, ...] = args.argument(nargs=-1, required=True, type=args.PATH, metavar="DIR..."),
    out: Path | None = args.option(
        "--out FILE", "Default: report.html, in DIR if there is only one.", type=args.NEW_FILE
    ),
    title: str | None = args.option("--title", "Of the page; default: what the first DIR is."),
) -> None:
    """Write one HTML file on what lies in DIR...: folders of runs, sweeps and capacities.

    It needs no network and no other file.
    """
    from cbsim.show.report_file import write_report

    path = out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    write_report(folders, path, title)
    click.echo(f"written to {path}")


def preview(experiment: Experiment) -> str:
    """One line on what would run. Raises `CbsimError` for traces that can't be read."""
    points = experiment.points()
    experiments = [point for _, point in points]
    swept = dict.fromkeys(key for values, _ in points for key in values)
    over = f"{len(points)} points over {', '.join(swept)}; " if experiment.sweep else ""
    requests = " or ".join(format_count(count) for count in _request_counts(experiments))
    parts = [
        (each.scheduler.type, each.model.name, _gpus(each), each.cost_model.type) for each in experiments
    ]
    schedulers, models, gpus, costs = (
        " and ".join(dict.fromkeys(names)) for names in zip(*parts, strict=True)
    )
    return (
        f"{over}{requests or 'unknown number of'} requests, {schedulers}, {models} on {gpus}, {costs} costs"
    )


def _request_counts(experiments: list[Experiment]) -> list[int]:
    """How many requests each different workload holds, after a look at its first."""
    from cbsim.studies.run import make_workload

    counts: list[int | None] = []
    problems: list[str] = []
    looked_at: list[object] = []
    for experiment in experiments:
        kind = (experiment.workload, experiment.seed)
        if kind in looked_at:
            continue
        looked_at.append(kind)
        workload = make_workload(experiment)
        try:
            next(workload.requests(), None)
            counts.append(workload.num_requests())
        except CbsimError as error:
            problems += error.problems
    if problems:
        raise CbsimError(*dict.fromkeys(problems))
    return [count for count in dict.fromkeys(counts) if count is not None]


def _gpus(experiment: Experiment) -> str:
    count = experiment.replicas.count * experiment.num_gpus
    return experiment.gpu.name if count == 1 else f"{count} x {experiment.gpu.name}"
