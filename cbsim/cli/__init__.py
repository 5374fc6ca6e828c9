"""The command line: every command, and what they share."""

from cbsim.cli.command_line import main

__all__ = ["main"]
