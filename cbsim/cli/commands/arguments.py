"""Arguments: a command's parameters, each declared by its default, and CONFIG as an experiment."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from cbsim.studies.experiment import Experiment

F = TypeVar("F", bound=Callable[..., Any])


def command(name: str | None = None, of: Any = click, **settings: Any) -> Callable[[F], click.Command]:
    """Make a function a command, of the group `of` if one is given; its parameters say what they are."""
    return lambda function: of.command(name, **settings)(with_parameters(function))


def with_parameters(function: F) -> F:
    """Declare to click every parameter, as its default says: `option`, `flag` or `argument`."""
    for parameter in reversed([*inspect.signature(function).parameters.values()]):
        parameter.default(parameter.name)(function)
    return function


def option(declaration: str, help: str | None = None, **settings: Any) -> Any:
    """The default of a parameter that is a `click.option`, declared as its help shows it: `--out DIR`.

    Its help tells its own default, if it has one.
    """
    flags, _, metavar = declaration.partition(" ")
    settings.setdefault("show_default", settings.get("default") is not None)
    return lambda name: click.option(name, flags, metavar=metavar or None, help=help, **settings)


def flag(declaration: str, help: str) -> Any:
    """The default of a parameter that is true where an option is given."""
    return option(declaration, help, is_flag=True)


def argument(**settings: Any) -> Any:
    """The default of a parameter that is a `click.argument`."""
    return lambda name: click.argument(name, **settings)


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
