"""`cbsim tune`: the best settings within an SLO."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

import click

from cbsim.base.errors import CbsimError
from cbsim.cli.commands import arguments as args
from cbsim.cli.progress import counted, watch_study
from cbsim.show.text import print_answer
from cbsim.show.tune_text import tune_sentence, tune_table
from cbsim.studies.labels import point_name
from cbsim.studies.tune import TuneProgress
from cbsim.studies.tune import tune as find_best
from cbsim.studies.tune.best_settings import BEST_YAML, to_json


@args.command()
def tune(
    config: str = args.CONFIG,
    overrides: tuple[str, ...] = args.SET,
    trials: int | None = args.option(
        "--trials", "Settings to try; default: tune.trials, or 50.", type=args.POSITIVE
    ),
    out: Path | None = args.OUT,
    workers: int = args.WORKERS,
    cluster: str | None = args.CLUSTER,
    plots: bool = args.option(
        "--plots/--no-plots", "Draw pictures; default: yes.", default=True, show_default=False
    ),
    as_json: bool = args.JSON,
    quiet: bool = args.QUIET,
) -> None:
    """Find the best settings within CONFIG's SLO, over the keys that its `tune:` names.

    --set 'tune={scheduler.max_tokens_per_step: [256, 16384]}' names them here. The table of all settings
    tried, pictures and best.yaml, an experiment to run, go to --out (default: runs/NAME-tune), with every
    run's figures: a second call goes on, with more --trials too.
    """
    if trials is not None:
        overrides = (*overrides, f"tune.trials={trials}")
    experiment = args.load_experiment(config, overrides)
    folder = out or Path("runs") / f"{experiment.name}-tune"
    with watch_study(quiet, "choosing settings", _describe, is_told=attrgetter("ends_batch")) as progress:
        answer = find_best(experiment, folder, workers=workers, cluster=cluster, progress=progress)
    if answer.best is None:
        problems = dict.fromkeys(str(error) for error in answer.table["error"].dropna())
        raise CbsimError(*problems, f"none of the {len(answer.table)} settings could run")
    written = ["table.csv", "table.parquet", "tune.json", BEST_YAML, "points/"]
    if plots:
        from cbsim.show.style import save_figures
        from cbsim.show.tune_plot import tune_pictures

        pictures = tune_pictures(answer)
        written += save_figures({stem: picture.figure for stem, picture in pictures.items()}, folder)
    if as_json:
        args.print_json(to_json(answer))
        return
    print_answer(tune_sentence(answer))
    tune_table(answer).print()
    click.echo(f"\nwritten to {folder}: {', '.join(written)}")
    click.echo(f"run the best: cbsim run {folder / BEST_YAML}")


def _describe(state: TuneProgress) -> str:
    counts = (
        *((state.num_given_up, "given up"), (state.num_failed, "failed")),
        *((state.num_runs, "runs"), (state.num_reused, "there already")),
    )
    done = f"{state.num_done} of {state.num_trials} settings"
    return counted(done, *counts, left_s=state.time_left_s) + _best(state)


def _best(state: TuneProgress) -> str:
    """What is the best so far."""
    if state.best is None or state.best.figures is None:
        return ""
    values = {each.key: each.value for each in state.best.settings}
    name = point_name(values, list(values)) or "what is written"
    goodput = state.best.figures["goodput_per_s"] or state.best.figures["request_throughput_per_s"] or 0.0
    unmet = "" if state.is_met else " (SLO not met)"
    return f", best so far {goodput:.3g} req/s{unmet} with {name}"
