"""Which of several kernels computes attention here, and how they cut their work: chosen by timing them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cbsim.base.errors import CalibrationError
from cbsim.base.paths import write_text
from cbsim.base.text_files import read_json
from cbsim.lab.kernels.shard import Shard

KERNELS = "kernels.json"
"""The file of a profile that says what was chosen when it was timed."""
MIN_TILE = 16
"""Tokens that `tl.dot` needs at least."""


@dataclass(frozen=True, slots=True)
class DecodeTuning:
    """How the decode kernel cuts its work."""

    tile: int = 64
    """Tokens read at once."""
    num_warps: int = 4
    num_stages: int = 3
    programs_per_processor: int = 4
    """How many programs to have for each multiprocessor, at most, by splitting contexts."""
    max_splits: int = 64

    def shared_bytes(self, shard: Shard) -> int:
        """Shared memory of a program at most: keys and values of a tile for each stage."""
        padded_size = 1 << (shard.head_size - 1).bit_length()
        return 2 * self.num_stages * self.tile * padded_size * shard.model.element_bytes

    def fitting(self, shard: Shard, shared_bytes: int) -> DecodeTuning:
        """This tuning with its tile halved until a program fits the shared memory."""
        tuning = self
        while tuning.shared_bytes(shard) > shared_bytes and tuning.tile > MIN_TILE:
            tuning = replace(tuning, tile=tuning.tile // 2)
        return tuning


@dataclass(frozen=True, slots=True)
class PrefillChoice:
    """The fastest prefill kernel by the size of a chunk: of the sizes timed, the nearest decides."""

    timed: tuple[tuple[int, int, str], ...] = ()
    """`(tokens, context, name)`."""

    def ranked(self, tokens: int, context: int) -> list[str]:
        """Names of kernels, that of the nearest size first; sizes with and without context stand apart."""

        def distance(row: tuple[int, int, str]) -> float:
            apart = (row[1] > 0) != (context > 0)
            by_context = math.log((row[1] + 1) / (context + 1))
            return abs(math.log(row[0] / tokens)) + abs(by_context) + (1e6 if apart else 0.0)

        return list(dict.fromkeys(name for _, _, name in sorted(self.timed, key=distance)))


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """What was chosen for one shape of attention on one device."""

    decode: DecodeTuning
    prefill: PrefillChoice = PrefillChoice()

    def with_prefill(self, name: str) -> KernelChoice:
        """The same with one kernel for chunks of all sizes."""
        return replace(self, prefill=PrefillChoice(((1, 0, name), (1, 1, name))))

    def told(self) -> str:
        """In words, for `meta.json`."""
        by_name: dict[str, list[str]] = {}
        for tokens, context, name in self.prefill.timed:
            by_name.setdefault(name, []).append(f"{tokens}+{context}")
        prefill = "; ".join(f"{name} for {' '.join(sizes)}" for name, sizes in by_name.items())
        return f"{self.decode}, prefill by size (tokens + context): {prefill or 'not timed'}"


def save_choice(choice: KernelChoice, path: Path) -> None:
    """Write it as JSON."""
    write_text(path, json.dumps(asdict(choice), indent=1) + "\n")


def read_choice(path: Path) -> KernelChoice | None:
    """What a file holds, None where there is none. Raises `CalibrationError` for another kind of file."""
    if not path.exists():
        return None
    try:
        return _choice(read_json(path, CalibrationError))
    except (CalibrationError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(f"{path}: not a choice of kernels; remove it to choose anew") from error


def _choice(told: Mapping[str, Any]) -> KernelChoice:
    timed = ((int(tokens), int(context), str(name)) for tokens, context, name in told["prefill"]["timed"])
    return KernelChoice(DecodeTuning(**told["decode"]), PrefillChoice(tuple(timed)))
