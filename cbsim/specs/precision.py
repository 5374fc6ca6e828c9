"""Dtypes: what a weight, an activation or a KV entry takes in memory, and what computes it."""

from __future__ import annotations

from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16", "fp8"]
"""Of activations and KV entries."""
WeightDtype = Literal[
    "float32", "bfloat16", "float16", "fp8", "fp8_block", "int8", "int4", "int4_block", "mxfp4", "nvfp4"
]
"""Of weights. `fp8` has a scale a tensor or row, `fp8_block` one for 128 x 128 weights (DeepSeek-V3's);
`int4` has a scale for 128 weights, `int4_block` one for 32 (Kimi-K2's)."""
KvDtype = Literal["auto", "bfloat16", "float16", "fp8"]

BYTES_PER_ELEMENT: dict[str, float] = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "fp8": 1,
    "fp8_block": 1 + 4 / 128**2,
    "int8": 1,
    "int4": 1 / 2 + 2 / 128,
    "int4_block": 1 / 2 + 2 / 32,
    "mxfp4": 1 / 2 + 1 / 32,
    "nvfp4": 1 / 2 + 1 / 16,
}
"""Bytes of an element with its share of the scales: a float32 for a block of `fp8_block`, 16 bits for 128 of
`int4` (AWQ's and GPTQ's usual group) or 32 of `int4_block`, a byte for 32 of `mxfp4` (OCP Microscaling 1.0)
and for 16 of `nvfp4` (NVIDIA's NVFP4). Scales of a whole row or tensor are not counted."""


def compute_dtype(weights: str, activations: str) -> str:
    """The dtype that a product of such weights and activations is computed in, where the GPU has it.

    Weights of 4 bits without 4-bit activations (`int4`, `int4_block`, `mxfp4`) are unpacked to those of the
    activations; `nvfp4` and `fp8` quantise activations as well.
    """
    if weights in ("fp8", "fp8_block"):
        return "fp8"
    if weights in ("int8", "nvfp4"):
        return {"int8": "int8", "nvfp4": "fp4"}[weights]
    return activations
