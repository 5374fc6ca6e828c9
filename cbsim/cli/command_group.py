"""The group of commands: imports those from elsewhere when named, and tells a user's mistakes in lines."""

from __future__ import annotations

import os
import traceback
from importlib import import_module
from typing import Any

import click

from cbsim.base.errors import CbsimError

_ELSEWHERE = {
    "bench": "Measure what simulating costs, on your configuration too.",
    "calibrate": "Time kernels, fit a cost model, import timings.",
    "capacity": "Find the highest request rate within an SLO.",
    "explain": "Tell where a run's time goes, step by step.",
    "live": "Serve an experiment's workload with a real model.",
    "play": "Play an experiment in the terminal, step by step.",
    "sweep": "Run every point of CONFIG's sweep and compare them.",
    "validate": "Hold a simulation against a live run or a log.",
    "workload": "Look into traces and generators, and convert them.",
}
"""Commands with a file of their own, `commands/NAME_command.py`, each with its help."""

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
            module = import_module(f"cbsim.cli.commands.{name}_command")
            found: click.Command = getattr(module, name)
            return found
        return super().get_command(ctx, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See `click.Group.format_commands`; imports nothing."""
        rows = [
            (name, _ELSEWHERE[name] if name in _ELSEWHERE else self.commands[name].get_short_help_str(90))
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
