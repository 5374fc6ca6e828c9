"""`cbsim play`: an experiment in the terminal, step by step."""

from __future__ import annotations

import click

from cbsim.cli.commands import shared
from cbsim.cli.commands.arguments import argument, load_experiment, option, with_parameters


@click.command()
@with_parameters
def play(
    config: str = argument(default="play"),
    seed: int | None = option("--seed", "As --set seed=N.", type=shared.NATURAL),
    overrides: tuple[str, ...] = shared.SET,
    script: str | None = option(
        "--script KEYS",
        "Press these keys and print the screen, as in --script 'sss t48<enter> s'; needs no terminal.",
    ),
    size: str = option("--size", "Of the screen that --script prints.", default="80x24"),
) -> None:
    """Play CONFIG step by step in the terminal, and change its scheduler while it runs.

    Default: twelve requests on a KV cache that is too small for them. Shows the batch, the queue and who
    holds which KV block; ? tells the keys. What was played can be saved as an experiment.
    """
    from cbsim.cli.play.program import Program
    from cbsim.cli.play.program_run import play_on_terminal, play_script
    from cbsim.cli.play.session import Session

    if seed is not None:
        overrides = (*overrides, f"seed={seed}")
    experiment = load_experiment(config, overrides)
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
    else:
        click.echo(play_script(program, script, size))
