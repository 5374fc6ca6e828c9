"""`cbsim play`: an experiment in the terminal, step by step."""

from __future__ import annotations

import click

from cbsim.cli.commands.arguments import load_experiment, with_set


@click.command()
@click.argument("config", default="play")
@click.option("--seed", type=click.IntRange(min=0), help="As --set seed=N.")
@with_set
@click.option(
    "--script",
    metavar="KEYS",
    help="Press these keys and print the screen, as in --script 'sss t48<enter> s'; needs no terminal.",
)
@click.option("--size", default="80x24", show_default=True, help="Of the screen that --script prints.")
def play(config: str, seed: int | None, overrides: tuple[str, ...], script: str | None, size: str) -> None:
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
