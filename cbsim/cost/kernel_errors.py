"""KernelErrors: how wrong a profile may be, as factors on its kernels' times drawn from a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from cbsim.base.errors import CalibrationError
from cbsim.config.section import Section
from cbsim.cost.run_errors import Z_90
from cbsim.cost.step_columns import Floats

Kind = Literal["dense", "logits", "prefill", "decode", "mixed"]
KINDS: tuple[Kind, ...] = ("dense", "logits", "prefill", "decode", "mixed")
ERROR_STREAM = 0x65727273
"""Spawn key of the random streams of errors."""
_PERCENT = 100.0
_Z_50 = 0.6744897501960817
"""The median of |z|, z standard normal."""


class ErrorRecord(Section):
    """What `cost.json` tells of a kind of kernel: `predicted / measured - 1` of held-out points, percent."""

    num_points: int = Field(ge=1)
    median_pct: float = Field(ge=0)
    """Of the size of errors, as the next two."""
    p90_pct: float = Field(ge=0)
    worst_pct: float = Field(ge=0)
    bias_pct: float = Field(gt=-100)
    """The signed median."""

    def residual(self, z: float) -> float:
        """The logarithm of predicted / measured, its systematic part apart, for a standard normal z.

        Held-out errors have longer tails than a normal distribution: z is raised to the power that gives
        their size the recorded median and p90, and cut off at the worst error seen.
        """
        scale, power = self._spread
        return math.copysign(min(scale * abs(z) ** power, _log(self.worst_pct)), z)

    @cached_property
    def _spread(self) -> tuple[float, float]:
        median, p90 = _log(self.median_pct), _log(self.p90_pct)
        if not 0 < median < p90:
            return p90 / Z_90, 1.0
        power = math.log(p90 / median) / math.log(Z_90 / _Z_50)
        return median / _Z_50**power, power


@dataclass(frozen=True)
class KernelErrors:
    """Factors on the times of kernels, the same for a seed, a kind and a cell of sizes, whenever asked.

    A kernel's true time is its predicted one times `exp(-(b + e))`, and both parts are drawn:

    * `b`, systematic, once for each seed, of spread `sigma`: all kernels err by it in all steps. It is what
      runs with that kind of profile were off (`run_errors`), mixed launches, unequal contexts, collectives
      and the host included, and says how wrong a sum of kernels is for a step.
    * `e`, the residual, once for each seed, kind and cell: sizes within a factor of two of each other, that
      is, of equal binary logarithm rounded down. A kernel errs in the same way each time it runs at a size,
      so an error drawn anew for every step would be wrong: it would average out over a run and leave
      intervals with nothing of it in them. How alike the errors of neighbouring sizes are is not recorded.
      In the shipped profiles they correlate by up to 0.3 within a factor of two and not beyond, so that a
      whole cell's erring alike overstates rather than understates what is left after averaging.

    A seed is thus one guess at the true times. Intervals over replicates take the spread of these guesses for
    the error of a figure, however many there are (`cbsim.studies.intervals.is_known_by_spread`).

    Not in it, for nothing is known of them: a GPU or software other than those that were timed, and sizes
    beyond the calibrated range.
    """

    records: Mapping[Kind, ErrorRecord]
    """Of all kinds."""
    sigma: float
    """Standard deviation of the logarithm of true over predicted time that all steps have in common."""
    seed: int

    @classmethod
    def read(cls, accuracy: Mapping[str, Any], path: Path, sigma: float, seed: int) -> KernelErrors:
        """From the `accuracy` of the cost file at `path`; raises `CalibrationError` if it doesn't suffice.

        Where mixed steps were not timed alone, their attention errs as the file says of its estimate, else
        like that of chunks or of decodes, whichever errs more at p90.
        """
        held_out = _records(accuracy.get("held_out", {}), path, "held_out")
        missing = [kind for kind in ("dense", "logits", "prefill", "decode") if kind not in held_out]
        if missing:
            raise CalibrationError(
                f"{path}: records no held-out errors of {', '.join(missing)}, which cost_model.uncertainty "
                "draws from; fit the profile again"
            )
        wider = max(held_out["prefill"], held_out["decode"], key=lambda record: record.p90_pct)
        estimated = {kind: of for kind, of in accuracy.get("estimated", {}).items() if of}
        known = _records(estimated, path, "estimated") | held_out
        records: dict[Kind, ErrorRecord] = {kind: known.get(kind, wider) for kind in KINDS}
        return cls(records, sigma, seed)

    def excess(self, kind: Kind, *cell: int) -> float:
        """What a kernel's time is to be multiplied by, less 1; `cell` is the bit lengths of its sizes."""
        return self._excess_of(kind, _normal(self.seed, KINDS.index(kind), *cell))

    def excesses(self, kind: Kind, first: int, most_bits: tuple[int, ...]) -> Floats:
        """The same for all cells whose bit lengths are from `first` to `most_bits`, an axis a size."""
        normals = _normals(self.seed, KINDS.index(kind), first, most_bits)
        found = [self._excess_of(kind, normal) for normal in normals]
        return np.reshape(found, [most + 1 - first for most in most_bits])

    def _excess_of(self, kind: Kind, normal: float) -> float:
        return math.expm1(-(self._systematic + self.records[kind].residual(normal)))

    @cached_property
    def _systematic(self) -> float:
        return self.sigma * _normal(self.seed, len(KINDS))


def _normal(seed: int, *key: int) -> float:
    sequence = np.random.SeedSequence(seed, spawn_key=(ERROR_STREAM, *key))
    return float(np.random.default_rng(sequence).standard_normal())


@lru_cache(maxsize=32)
def _normals(seed: int, kind: int, first: int, most_bits: tuple[int, ...]) -> list[float]:
    """Of all such cells, the last size fastest; drawn once for all the runs of a seed in a process."""
    cells = product(*(range(first, most + 1) for most in most_bits))
    return [_normal(seed, kind, *cell) for cell in cells]


def _records(table: Any, path: Path, name: str) -> dict[str, ErrorRecord]:
    try:
        return {kind: ErrorRecord.model_validate(record) for kind, record in table.items()}
    except (AttributeError, ValidationError) as error:
        raise CalibrationError(f"{path}: accuracy.{name}: is no table of errors") from error


def _log(error_pct: float) -> float:
    return math.log1p(error_pct / _PERCENT)
