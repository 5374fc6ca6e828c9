"""Weights in FP8: rows with a scale each, and products of them with activations quantised row by row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max


@dataclass(frozen=True, slots=True)
class Fp8Matrix:
    """A matrix of `(rows, columns)` weights, each row over a scale of its own, as checkpoints for dynamic
    quantisation have them.
    """

    weight: Tensor
    """`(rows, columns)` FP8."""
    scale: Tensor
    """`(rows, 1)` float32."""

    @classmethod
    def of(cls, matrix: Tensor) -> Fp8Matrix:
        """A matrix of larger numbers, rounded."""
        return cls(*quantise_rows(matrix))


Matrix = Tensor | Fp8Matrix


def unquantised(matrix: Matrix) -> Tensor:
    """The tensor of a matrix whose weights have no scales."""
    assert isinstance(matrix, Tensor)
    return matrix


def quantise_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`(T, size)` in FP8, and the `(T, 1)` float32 scales that undo it: its largest becomes FP8's largest."""
    scale = rows.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / FP8_MAX
    return (rows.float() / scale).to(FP8), scale


def scaled_product(rows: Tensor, scales: Tensor, matrix: Fp8Matrix, dtype: torch.dtype) -> Tensor:
    """`(T, columns)` FP8 rows with `(T, 1)` scales by a matrix: `(T, rows of the matrix)` of `dtype`.

    torch multiplies rows of scales of their own into bfloat16 alone.
    """
    weight, scale = matrix.weight.t(), matrix.scale.t()
    out: Tensor = torch._scaled_mm(rows, weight, scales, scale, out_dtype=torch.bfloat16)
    return out.to(dtype)


def plain_product(hidden: Tensor, matrix: Matrix) -> Tensor:
    """`(T, columns)` by a matrix, without Triton."""
    if isinstance(matrix, Tensor):
        return linear(hidden, matrix)
    return scaled_product(*quantise_rows(hidden), matrix, hidden.dtype)
