"""Text files, plain or compressed, in blocks of whole lines."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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


def read_blocks(path: Path, mistakes: Mistakes) -> Iterator[Block]:
    """The file in blocks of whole lines; ends early, with a mistake added, where it can't be read on."""
    with path.open("rb") as file:
        start = file.read(4)
    compression = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
    line, offset = 1, 0
    with io.BufferedReader(pa.input_stream(str(path), compression=compression)) as stream:
        try:
            while data := stream.read(BLOCK_BYTES) + stream.readline():
                if offset == 0 and data.startswith(_UTF16_BOMS):
                    mistakes.add(0, 0, "got UTF-16 text; allowed: UTF-8")
                    return
                text = data.removeprefix(_UTF8_BOM) if offset == 0 else data
                data.decode()
                yield Block(line, text)
                line += data.count(b"\n")
                offset += len(data)
        except UnicodeDecodeError as error:
            line += data.count(b"\n", 0, error.start)
            got = f"got byte 0x{data[error.start]:02x} at offset {offset + error.start:,}"
            mistakes.add(line, 0, f"{got}; allowed: UTF-8 text")
        except OSError as error:
            what = "ends early" if "Truncated" in str(error) else "is corrupt"
            mistakes.add(0, 0, f"the {compression} data {what}; allowed: a whole file")
