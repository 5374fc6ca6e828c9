"""Parameters that several commands have, and types of values."""

from __future__ import annotations

from pathlib import Path

import click

from cbsim.cli.commands.arguments import argument, flag, option

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
SET_ONE = option("--set KEY=VALUE", "Set one setting; repeatable.", multiple=True)
DEVICE = option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
OUT = option("--out DIR", "Where results go.", type=PATH)
WORKERS = option("--workers", "Processes for a sweep's points.", type=POSITIVE, default=1)
CLUSTER = option("--cluster ADDRESS", "A dask scheduler to run on, as tcp://HOST:8786.")
PLOTS = option("--plots/--no-plots", "Draw pictures; default: for up to 6 points.", default=None)
JSON = flag("--json", "Print JSON.")
QUIET = flag("--quiet", "Print no progress.")
