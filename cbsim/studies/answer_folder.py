"""Answers of studies on disk: a table, and plain data that are written last, with hashes of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbsim.base.errors import CbsimError
from cbsim.base.paths import write_text
from cbsim.base.text_files import read_json
from cbsim.results.output import FILES, has_file
from cbsim.results.result import check_hash, check_seal, hash_folder, sealed
from cbsim.studies.sweep import save_table

if TYPE_CHECKING:
    import pandas as pd


def save_answer(folder: Path, file: str, told: Mapping[str, Any], table: pd.DataFrame, name: str) -> None:
    """Write a table of that name, then the plain data `told`, each whole or not at all.

    Raises `CbsimError` if they can't be written.
    """
    save_table(table, folder, name)
    manifest = {**told["manifest"], FILES: hash_folder(folder, f"{name}.parquet")}
    write_text(folder / file, sealed({**told, "manifest": manifest}))


@contextmanager
def saved_answer(folder: Path, study: str, file: str, name: str) -> Iterator[tuple[Any, pd.DataFrame]]:
    """What `save_answer` has written. Raises `CbsimError` if it is missing or damaged, or no answer of the
    `study` can be made of it within.
    """
    import pandas as pd

    if not has_file(folder, file):
        raise CbsimError(f"{folder}: is not a {study}'s folder (it has no {file})")
    table = folder / f"{name}.parquet"
    try:
        read = read_json(folder / file)
        check_seal(folder / file, read)
        check_hash(table, read["manifest"], *hash_folder(folder, table.name).values())
        yield read, pd.read_parquet(table)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CbsimError(
            f"{folder}: is a damaged {study} folder, or that of another cbsim ({error}); the same "
            f"`cbsim {study}` with --out writes it anew from its points"
        ) from error
