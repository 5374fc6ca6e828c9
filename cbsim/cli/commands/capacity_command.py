"""`cbsim capacity`: how many requests a second, within an SLO."""

from __future__ import annotations

from pathlib import Path

import click

from cbsim.cli.commands import arguments as args
from cbsim.cli.progress import counted, watch_study
from cbsim.show.capacity_text import capacity_table, sentence
from cbsim.show.text import print_answer
from cbsim.studies.capacity import CapacityProgress, Plan
from cbsim.studies.capacity import capacity as find_capacity
from cbsim.studies.capacity.answer import save_capacity, to_json


@args.command()
def capacity(
    config: str = args.CONFIG,
    overrides: tuple[str, ...] = args.SET,
    share: float | None = args.option(
        "--share", "Of requests that must keep their own limits; default: slo.share.", type=float
    ),
    replicates: int = args.option("--replicates", "Searches, each its own seed.", default=5),
    tolerance: float = args.option("--tolerance", "From one rate to the next.", default=0.05),
    requests: int | None = args.option(
        "--requests", "Of each replicate of a trace; default: as many as it has.", type=int
    ),
    confidence: float = args.option("--confidence", "Of the intervals.", default=0.95),
    out: Path | None = args.OUT,
    workers: int = args.WORKERS,
    cluster: str | None = args.CLUSTER,
    plots: bool = args.option(
        "--plots/--no-plots", "Draw the curve; default: yes.", default=True, show_default=False
    ),
    as_json: bool = args.JSON,
    quiet: bool = args.QUIET,
) -> None:
    """Find the highest rate of requests at which CONFIG's SLO is met.

    Each point of its sweep is a contender: --set 'sweep.gpu=[h100, h200]' compares GPUs. A trace is resampled
    in blocks for each replicate, a generator gets a seed for each. The answer, its curve and pictures go to
    --out (default: runs/NAME-capacity), with every run's figures: a second call runs only what is missing.
    """
    plan = Plan(share, replicates, tolerance, requests, confidence)
    experiment = args.load_experiment(config, overrides)
    folder = out or Path("runs") / f"{experiment.name}-capacity"
    with watch_study(quiet, "planning the searches", _describe, is_told=_is_told) as progress:
        answer = find_capacity(
            experiment, plan, workers=workers, cluster=cluster, progress=progress, out=folder
        )
    save_capacity(answer, folder)
    written = ["capacity.json", "curve.csv", "curve.parquet", "points/"]
    if plots:
        from cbsim.show.capacity_plot import capacity_bars, rate_picture
        from cbsim.show.style import save_figures

        written += save_figures({"curve": rate_picture(answer), "capacity": capacity_bars(answer)}, folder)
    if as_json:
        args.print_json(to_json(answer))
        return
    print_answer(sentence(answer))
    capacity_table(answer).print()
    click.echo(f"\nwritten to {folder}: {', '.join(written)}")


def _is_told(state: CapacityProgress) -> bool:
    """After each search, and after each round of the curves."""
    return bool(state.num_done) and (state.phase == "searches" or state.num_done == state.num_tasks)


def _describe(state: CapacityProgress) -> str:
    done = f"{state.num_done} of {state.num_tasks}"
    told = f"{done} searches" if state.phase == "searches" else f"completing the curves, {done}"
    return counted(told, left_s=state.time_left_s)
