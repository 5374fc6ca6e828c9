"""`cbsim report`: runs, sweeps and capacities as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from cbsim.cli.commands import shared
from cbsim.cli.commands.arguments import argument, option, with_parameters

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@with_parameters
def report(
    folders: tuple[Path, ...] = argument(nargs=-1, required=True, type=shared.PATH, metavar="DIR..."),
    out: Path | None = option("--out FILE", "Default: report.html, in DIR if there is only one.", type=_FILE),
    title: str | None = option("--title", "Of the page; default: what the first DIR is."),
) -> None:
    """Write one HTML file on what lies in DIR...: folders of runs, sweeps and capacities.

    It needs no network and no other file.
    """
    from cbsim.show.report_file import write_report

    path = out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    write_report(folders, path, title)
    click.echo(f"written to {path}")
