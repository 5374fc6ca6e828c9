"""Text files: read whole, within bounds, as UTF-8 or as JSON; what is wrong is told with the file's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cbsim.base.errors import CbsimError, refusals
from cbsim.base.units import MIB

MAX_BYTES = 256 * MIB
"""A larger file is none of those that are read whole."""


def read_text(path: Path, error_class: type[CbsimError] = CbsimError, most: int = MAX_BYTES) -> str:
    """A file's text. Raises an error of `error_class` if it can't be read, is too large or no UTF-8 text."""
    content = b""
    with refusals(path, "read", error_class), path.open("rb") as file:
        # Piece by piece: Python would make room for all that may come.
        while len(content) <= most and (piece := file.read(MIB)):
            content += piece
    if len(content) > most:
        raise error_class(f"{path}: larger than {most:,} bytes; expected at most that")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise error_class(f"{path}: is encoded as UTF-16; expected UTF-8")
    try:
        if b"\0" not in content:
            return content.decode("utf-8-sig")
        start, wrong = content.index(b"\0"), "holds NUL bytes, as UTF-16 does; expected UTF-8 text"
    except UnicodeDecodeError as error:
        start, wrong = (
            error.start,
            f"byte 0x{content[error.start]:02x} at offset {error.start:,} is not UTF-8",
        )
    line = content.count(b"\n", 0, start) + 1
    raise error_class(f"{path}:{line}: {wrong}")


def parse_json(text: str | bytes) -> Any:
    """The value in a JSON text. Raises `ValueError`, where it is nested too deeply too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path, error_class: type[CbsimError] = CbsimError) -> dict[str, Any]:
    """The mapping in a JSON file; raises as `read_text`, and where it holds anything else."""
    try:
        found = parse_json(read_text(path, error_class))
    except ValueError as error:
        raise error_class(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        got = "a list" if isinstance(found, list) else json.dumps(found)[:40]
        raise error_class(f"{path}: got {got}; expected a mapping")
    return found
