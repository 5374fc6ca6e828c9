"""Arguments: the options that commands share, and how a CONFIG becomes an experiment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from cbsim.studies.experiment import Experiment

F = TypeVar("F", bound=Callable[..., Any])


def with_set(command: F) -> F:
    """Adds `--set KEY=VALUE`, given to the command as `overrides`."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set one setting, as in --set scheduler.max_num_seqs=64; may be repeated.",
    )(command)


with_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
with_quiet = click.option("--quiet", is_flag=True, help="Print no progress.")
with_workers = click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes for a sweep's points.",
)
with_cluster = click.option(
    "--cluster", metavar="ADDRESS", help="A dask scheduler to run on, as tcp://HOST:8786."
)
with_plots = click.option(
    "--plots/--no-plots", default=None, help="Draw pictures; default: for up to 6 points."
)
with_out = click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Where results go.")


def load_experiment(config: str, overrides: tuple[str, ...]) -> Experiment:
    """The experiment that CONFIG means, its notes told on standard error; raises `ConfigError`."""
    from cbsim.base.paths import find_experiment
    from cbsim.studies.experiment import Experiment

    experiment = Experiment.load(find_experiment(config), overrides)
    for note in experiment.notes:
        click.echo(note, err=True)
    return experiment


def print_json(data: Any) -> None:
    """Print plain data as JSON."""
    click.echo(json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False))
