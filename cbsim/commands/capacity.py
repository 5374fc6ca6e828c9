"""`cbsim capacity`: how many requests a second, within an SLO."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cbsim.commands.arguments import (
    load_experiment,
    print_json,
    with_cluster,
    with_json,
    with_out,
    with_quiet,
    with_set,
    with_workers,
)

_INTERRUPTED = 130
"""The exit code that shells expect of a command stopped by Ctrl-C."""


@click.command()
@click.argument("config")
@with_set
@click.option(
    "--share", type=float, default=0.99, show_default=True, help="Of requests that must meet the SLO."
)
@click.option("--replicates", type=int, default=5, show_default=True, help="Searches, each its own seed.")
@click.option("--tolerance", type=float, default=0.05, show_default=True, help="From one rate to the next.")
@click.option("--requests", type=int, help="Of each replicate of a trace; default: as many as it has.")
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Of the intervals.")
@with_out
@with_workers
@with_cluster
@click.option("--plots/--no-plots", default=True, help="Draw the curve; default: yes.")
@with_json
@with_quiet
def capacity(
    config: str,
    overrides: tuple[str, ...],
    share: float,
    replicates: int,
    tolerance: float,
    requests: int | None,
    confidence: float,
    out: Path | None,
    workers: int,
    cluster: str | None,
    plots: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Find the highest rate of requests at which CONFIG's SLO holds.

    Each point of its sweep is a contender: --set 'sweep.gpu=[h100, h200]' compares GPUs. A trace is resampled
    in blocks for each replicate, a generator gets a seed for each. The answer, its curve and pictures go to
    --out (default: runs/NAME-capacity), with every run's figures: a second call runs only what is missing.
    """
    from cbsim.capacity import CapacityInterrupted, Plan
    from cbsim.capacity import capacity as find_capacity
    from cbsim.capacity.folder import save_capacity, to_json
    from cbsim.report.capacity_text import capacity_table, sentence

    plan = Plan(share, replicates, tolerance, requests, confidence)
    experiment = load_experiment(config, overrides)
    folder = out or Path("runs") / f"{experiment.name}-capacity"
    progress = None if quiet else _show_progress
    try:
        answer = find_capacity(
            experiment, plan, workers=workers, cluster=cluster, progress=progress, out=folder
        )
    except CapacityInterrupted as interrupted:
        click.echo(f"\n{interrupted}", err=True)
        raise click.exceptions.Exit(_INTERRUPTED) from None
    save_capacity(answer, folder)
    written = ["capacity.json", "curve.csv", "curve.parquet", "points/"]
    if plots:
        from cbsim.report.bar_plot import capacity_bars
        from cbsim.report.rate_plot import rate_picture
        from cbsim.report.style import save_figure

        written += [save_figure(rate_picture(answer), folder / "curve")[0].name]
        written += [save_figure(capacity_bars(answer), folder / "capacity")[0].name]
    if as_json:
        print_json(to_json(answer))
        return
    capacity_table(answer).print()
    click.echo()
    click.echo(sentence(answer))
    click.echo(f"written to {folder}: {', '.join(written)}")


def _show_progress(num_done: int, num_tasks: int) -> None:
    """On a terminal one line that stays in its place."""
    text = f"{num_done} of {num_tasks} searches"
    if sys.stderr.isatty():
        click.echo(f"\r{text}" + "\n" * (num_done == num_tasks), nl=False, err=True)
    else:
        click.echo(text, err=True)
