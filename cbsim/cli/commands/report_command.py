"""`cbsim report`: runs, sweeps and capacities as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR...")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Default: report.html, in DIR if there is only one.",
)
@click.option("--title", help="Of the page; default: what the first DIR is.")
def report(folders: tuple[Path, ...], out: Path | None, title: str | None) -> None:
    """Write one HTML file on what lies in DIR...: folders of runs, sweeps and capacities.

    It needs no network and no other file.
    """
    from cbsim.show.report_file import write_report

    path = out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    write_report(folders, path, title)
    click.echo(f"written to {path}")
