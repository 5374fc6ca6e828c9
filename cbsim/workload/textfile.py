"""Text files, plain or compressed, in blocks of whole lines."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from cbsim.base.units import MIB
from cbsim.workload.file_mistakes import Mistakes

BLOCK_BYTES = 4 * MIB
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


class Block(NamedTuple):
    """Some whole lines of a file, known to be UTF-8."""

    first_line: int
    data: bytes

    def lines(self) -> list[tuple[int, bytes]]:
        """The lines that aren't blank, each with its number in the file."""
        split = self.data.split(b"\n")
        return [(self.first_line + i, line) for i, line in enumerate(split) if line.rstrip(b"\r")]


def compression_of(path: Path) -> str | None:
    """`gzip` or `zstd` by the file's first bytes, whatever its name; `None` for a plain file."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


def open_bytes(path: Path) -> Any:
    """The file as a stream of bytes, decompressed on the fly."""
    return pa.input_stream(str(path), compression=compression_of(path))


def read_blocks(path: Path, mistakes: Mistakes) -> Iterator[Block]:
    """The file in blocks of whole lines; ends early, with a mistake added, where it can't be read on."""
    line, offset, rest = 1, 0, b""
    with open_bytes(path) as stream:
        while True:
            data, ended_early = _read(stream, path, mistakes)
            if offset == 0 and not rest:
                if data.startswith(_UTF16_BOMS):
                    mistakes.add(0, 0, "got UTF-16 text; allowed: UTF-8")
                    return
                if data.startswith(_UTF8_BOM):
                    data, offset = data[len(_UTF8_BOM) :], len(_UTF8_BOM)
            data = rest + data
            whole = len(data) if len(data) == len(rest) else data.rfind(b"\n") + 1
            rest = data[whole:]
            data = data[:whole]
            if data:
                if not _is_utf8(data, line, offset, mistakes):
                    return
                yield Block(line, data)
                line += data.count(b"\n")
                offset += len(data)
            elif not rest:
                return
            if ended_early:
                return


def _read(stream: Any, path: Path, mistakes: Mistakes) -> tuple[bytes, bool]:
    try:
        return stream.read(BLOCK_BYTES), False
    except (OSError, zlib.error) as error:
        what = "ends early" if "Truncated" in str(error) else "is corrupt"
        mistakes.add(0, 0, f"the {compression_of(path)} data {what}; allowed: a whole file")
        return b"", True


def _is_utf8(data: bytes, first_line: int, offset: int, mistakes: Mistakes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        byte = data[error.start]
        mistakes.add(
            line, 0, f"got byte 0x{byte:02x} at offset {offset + error.start:,}; allowed: UTF-8 text"
        )
        return False
    return True
