"""How near predictions of TPOT are asked to be, percent, set before any run was simulated.

By what plain sums of op times came to on the same runs, and how far runs of equal configuration lie apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from calibration.served_runs.checkpoints import KIMI, LLAMA_70B, MINIMAX, OSS, QWEN_32B, R1


class Mark(NamedTuple):
    """The error to stay within, percent."""

    median: float
    p90: float


DENSE_FP8, DENSE_NVFP4 = Mark(6, 15), Mark(10, 20)
SPARSE, WIDE = Mark(7, 16), Mark(14, 27)
MARKS: Mapping[tuple[str, str], Mark] = {
    (LLAMA_70B, "fp8"): DENSE_FP8,
    (QWEN_32B, "fp8_block"): DENSE_FP8,
    (LLAMA_70B, "nvfp4"): DENSE_NVFP4,
    (QWEN_32B, "nvfp4"): DENSE_NVFP4,
    (OSS, "mxfp4"): SPARSE,
    (KIMI, "nvfp4"): SPARSE,
    (KIMI, "int4"): SPARSE,
    (MINIMAX, "fp8_block"): WIDE,
    (MINIMAX, "nvfp4"): WIDE,
    (R1, "fp8_block"): Mark(9, 25),
    (R1, "nvfp4"): Mark(9, 25),
}
"""By model and dtype; others are reported without a mark."""
WITH_CONSTANT = Mark(9, 20)
"""MiniMax's where a constant time of each step, fitted on other GPUs' runs, is added."""
R1_OF_ONE_RELEASE = Mark(6, 12)
"""DeepSeek-R1's by SGLang 0.5.9."""
TENSOR, DATA = "tensor-parallel workers", "data-parallel workers"
APART_MARKS = {TENSOR: Mark(7, 18), DATA: Mark(13, 26)}
"""Where prefill and decode are apart, by what those who decode share."""
