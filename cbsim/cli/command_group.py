"""The group of commands: imports those from elsewhere when named, and tells a user's mistakes in lines."""

from __future__ import annotations

import atexit
import gc
import os
import traceback
from importlib import import_module
from typing import Any

import click

from cbsim.base.errors import CbsimError

_ELSEWHERE = {
    "bench": ("bench_command", "Measure what simulating costs, on your configuration too."),
    "calibrate": ("calibrate_command", "Time kernels, fit a cost model, import timings."),
    "capacity": ("capacity_command", "Find the highest request rate within an SLO."),
    "explain": ("explain_command", "Tell where a run's time goes, step by step."),
    "list": (
        "list_command",
        "List schedulers, workloads, cost-models, observers, models, gpus, slos or experiments;...",
    ),
    "live": ("live_command", "Serve an experiment's workload with a real model."),
    "model": ("model_command", "Print what a model's config.json becomes, and what of it is not modelled."),
    "play": ("play_command", "Play an experiment in the terminal, step by step."),
    "run": (
        "run_command",
        "Run CONFIG: an experiment file, or the name of a shipped one (`cbsim list experiments`).",
    ),
    "sweep": ("run_command", "Run every point of CONFIG's sweep and compare them."),
    "validate": ("validate_command", "Hold a simulation against a live run or a log."),
    "workload": ("workload_command", "Look into traces and generators, and convert them."),
}
"""Commands from elsewhere: name -> module of `commands`, which is imported when they are named, and help."""

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C has stopped: 128 and the signal's number, as of any shell's."""
TRACEBACK = "CBSIM_TRACEBACK"
"""Environment variable: set to anything, a traceback is printed before the lines that tell a mistake."""


class Commands(click.Group):
    """Imports commands from elsewhere when named; turns a user's mistakes into lines and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See `click.Group.list_commands`."""
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """See `click.Group.get_command`."""
        if name in _ELSEWHERE:
            found = vars(import_module(f"cbsim.cli.commands.{_ELSEWHERE[name][0]}")).values()
            return next(each for each in found if isinstance(each, click.Command) and each.name == name)
        return super().get_command(ctx, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See `click.Group.format_commands`; imports nothing."""
        rows = [
            (name, _ELSEWHERE[name][1] if name in _ELSEWHERE else self.commands[name].get_short_help_str(90))
            for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See `click.Group.resolve_command`; a wrong name is told with the nearest one."""
        from cbsim.base.registry import did_you_mean

        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            ctx.fail(f"no command '{args[0]}'{did_you_mean(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """See `click.Group.invoke`."""
        # At its end Python would look through all objects for cycles, for 0.1 s.
        atexit.register(gc.freeze)
        try:
            return super().invoke(ctx)
        except CbsimError as error:
            if os.environ.get(TRACEBACK):
                click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
            for problem in error.problems:
                click.echo(problem, err=True)
            ctx.exit(2)
        except KeyboardInterrupt as interrupt:
            click.echo(f"\n{str(interrupt) or 'interrupted'}", err=True)
            ctx.exit(INTERRUPTED)
