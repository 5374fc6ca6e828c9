"""`cbsim capacity`: how many requests a second, within an SLO."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cbsim.base.units import format_seconds
from cbsim.cli.command_group import INTERRUPTED
from cbsim.cli.commands.arguments import (
    load_experiment,
    print_json,
    with_cluster,
    with_json,
    with_out,
    with_quiet,
    with_set,
    with_workers,
)

if TYPE_CHECKING:
    from cbsim.studies.capacity import CapacityProgress


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
    from cbsim.show.capacity_text import capacity_table, sentence
    from cbsim.studies.capacity import CapacityInterrupted, Plan
    from cbsim.studies.capacity import capacity as find_capacity
    from cbsim.studies.capacity.capacity_folder import save_capacity, to_json

    plan = Plan(share, replicates, tolerance, requests, confidence)
    experiment = load_experiment(config, overrides)
    folder = out or Path("runs") / f"{experiment.name}-capacity"
    try:
        with _watch(quiet) as progress:
            answer = find_capacity(
                experiment, plan, workers=workers, cluster=cluster, progress=progress, out=folder
            )
    except CapacityInterrupted as interrupted:
        click.echo(f"\n{interrupted}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    save_capacity(answer, folder)
    written = ["capacity.json", "curve.csv", "curve.parquet", "points/"]
    if plots:
        from cbsim.show.capacity_plot import capacity_bars, rate_picture
        from cbsim.show.style import save_figure

        written += [save_figure(rate_picture(answer), folder / "curve")[0].name]
        written += [save_figure(capacity_bars(answer), folder / "capacity")[0].name]
    if as_json:
        print_json(to_json(answer))
        return
    capacity_table(answer).print()
    click.echo()
    click.echo(sentence(answer))
    click.echo(f"written to {folder}: {', '.join(written)}")


@contextmanager
def _watch(quiet: bool) -> Iterator[Callable[[CapacityProgress], None] | None]:
    """On a terminal one line that stays in its place; elsewhere lines."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield _print_progress
        return
    from rich.console import Console

    with Console(stderr=True).status("planning the searches") as status:
        yield lambda state: status.update(_describe(state))


def _print_progress(state: CapacityProgress) -> None:
    """A line after each search, and one for each round of the curves."""
    if state.num_done and (state.phase == "searches" or state.num_done == state.num_tasks):
        click.echo(_describe(state), err=True)


def _describe(state: CapacityProgress) -> str:
    counted = f"{state.num_done} of {state.num_tasks}"
    told = f"{counted} searches" if state.phase == "searches" else f"completing the curves, {counted}"
    left = f", about {format_seconds(state.time_left_s)} left" if state.time_left_s else ""
    return told + left
