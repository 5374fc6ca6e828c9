"""Tiles: the rows that a matrix product computes, some of them for nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from cbsim.config.section import Section
from cbsim.cost.elementwise import chosen, larger, over_columns, power_of_two_from, rounded_up


class Tiles(Section):
    """Rows are computed by tiles, the last of them partly empty (tile quantisation, NVIDIA's "Matrix
    Multiplication Background User's Guide").

    Kernels come in heights of powers of two; the lowest tile that holds all rows is taken, up to `height`.
    """

    height: int = Field(default=1, ge=1)
    """Rows of the largest tile, a power of two; 1 for none."""
    share: float = Field(default=0.0, ge=0, le=1)
    """Share of its time that an empty row still takes."""

    @field_validator("height")
    @classmethod
    def _is_power_of_two(cls, height: int) -> int:
        if height & (height - 1):
            raise ValueError("must be a power of two")
        return height

    def counted(self, num_rows: Any) -> NDArray[np.float64]:
        """Rows that count, for an array of numbers of rows."""
        return over_columns(counted_rows)(self, np.asarray(num_rows, np.float64))


def counted_rows(tiles: Any, num_rows: Any) -> Any:
    """Rows that count, empty ones by their share: `n + share (whole tiles - n)`. It rises with n."""
    lowest = power_of_two_from(larger(num_rows, 1.0))
    whole = chosen(num_rows <= tiles.height, lowest, rounded_up(num_rows / tiles.height) * tiles.height)
    return chosen(num_rows > 0, num_rows + tiles.share * (whole - num_rows), 0.0)
