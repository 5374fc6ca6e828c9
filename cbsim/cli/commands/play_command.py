"""`cbsim play`: an experiment in the terminal, step by step."""

from __future__ import annotations

import click

from cbsim.base.errors import CbsimError
from cbsim.cli.commands import arguments as args
from cbsim.cli.play.program import Program
from cbsim.cli.play.screen import MIN_HEIGHT, MIN_WIDTH
from cbsim.cli.play.session import Session
from cbsim.cli.play.terminal import play_on_terminal, read_script


@args.command()
def play(
    config: str = args.argument(default="play"),
    seed: int | None = args.option("--seed", "As --set seed=N.", type=args.NATURAL),
    overrides: tuple[str, ...] = args.SET,
    script: str | None = args.option(
        "--script KEYS",
        "Press these keys and print the screen, as in --script 'sss t48<enter> s'; needs no terminal.",
    ),
    size: str = args.option("--size", "Of the screen that --script prints.", default="80x24"),
) -> None:
    """Play CONFIG step by step in the terminal, and change its scheduler while it runs.

    Default: twelve requests on a KV cache that is too small for them. Shows the batch, the queue and who
    holds which KV block, and of a cluster what is on its way; ? tells the keys. What was played can be saved
    as an experiment.
    """
    if seed is not None:
        overrides = (*overrides, f"seed={seed}")
    experiment = args.load_experiment(config, overrides)
    notes: tuple[str, ...] = ()
    if experiment.sweep:
        points = experiment.points()
        experiment = points[0][1]
        notes += (f"{experiment.name} has a sweep: this is the first of its {len(points)} points",)
    if experiment.observers:
        notes += ("observers watch runs, and nothing here",)
    program = Program(Session(experiment), notes)
    if script is None:
        play_on_terminal(program)
        return
    screen = _read_size(size)
    program.run_script(read_script(script))
    for line in program.frame(*screen):
        click.echo(line.plain.rstrip())


def _read_size(size: str) -> tuple[int, int]:
    width, _, height = size.partition("x")
    try:
        columns, lines = int(width), int(height)
    except ValueError:
        columns = lines = 0
    if columns < MIN_WIDTH or lines < MIN_HEIGHT:
        raise CbsimError(f"--size: got '{size}'; allowed: COLUMNSxLINES, {MIN_WIDTH}x{MIN_HEIGHT} or more")
    return columns, lines
