"""Arguments: a command's parameters, each declared by its default; those that several commands have."""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cbsim.base.errors import ConfigError
from cbsim.base.paths import install_extra
from cbsim.cli.standard_output import is_unicode

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


def choice(declaration: str, values: Sequence[str], help: str | None = None, **settings: Any) -> Any:
    """The default of a parameter that is one of some words, given by an option."""
    return option(declaration, help, type=click.Choice(values), **settings)


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
    is_ascii = not is_unicode(sys.stdout.encoding)
    click.echo(json.dumps(_with_nulls(data), indent=2, allow_nan=False, ensure_ascii=is_ascii))


def _with_nulls(data: Any) -> Any:
    """The same with null for each number that JSON has not: where nothing was measured there is NaN."""
    if isinstance(data, dict):
        return {key: _with_nulls(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_with_nulls(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def named_values(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """The callback of an option that is given as `NAME=VALUE`, perhaps several times."""
    wrong = [text for text in texts if not all(text.partition("="))]
    if wrong:
        expected = f"{option.opts[0]}: got '%s'; expected {option.metavar}"
        raise ConfigError(*(expected % text for text in wrong))
    return dict(text.split("=", 1) for text in texts)


@contextmanager
def needs_torch(what: str) -> Iterator[None]:
    """Tell in one line that torch is missing where an import within fails; `what` begins the sentence."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"{what} needs torch: {install_extra('torch')} ({error})") from error


PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
NEW_FILE = click.Path(path_type=Path, dir_okay=False)
NATURAL = click.IntRange(min=0)
POSITIVE = click.IntRange(min=1)

CONFIG = argument()
SET = option(
    "--set KEY=VALUE",
    "Set one setting, as in --set scheduler.max_num_seqs=64; may be repeated.",
    multiple=True,
)
DEVICE = choice("--device", ["cpu", "cuda"], default="cpu")

OUT = option("--out DIR", "Where results go.", type=PATH)
WORKERS = option("--workers", "Processes that runs go to.", type=POSITIVE, default=1)
CLUSTER = option("--cluster ADDRESS", "A dask scheduler to run on, as tcp://HOST:8786.")
PLOTS = option("--plots/--no-plots", "Draw pictures; default: for up to 6 points.", default=None)
JSON = flag("--json", "Print JSON.")
QUIET = flag("--quiet", "Print no progress.")
