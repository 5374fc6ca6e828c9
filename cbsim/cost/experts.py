"""Experts: how many of them a step's tokens touch, and how much the busiest GPU has to do.

Tokens choose their experts by shares that are even or fall by a power of their rank, as traffic's do
(NVIDIA's kernel tables call exponents 1.01 and 1.2 `power_law_1.01` and `power_law_1.2`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from cbsim.cost.step_columns import Floats, Ints
from cbsim.specs.model import ExpertsSpec


@lru_cache(maxsize=64)
def chances(experts: ExpertsSpec, skew: float) -> Floats:
    """The chance of each expert, the most popular first, that a token goes to it; they sum to
    `num_experts_per_token`, and none is above 1.

    With `skew` s the share of the expert of rank r is proportional to r ** -s; 0 is even.
    """
    shares = np.arange(1, experts.num_experts + 1, dtype=np.float64) ** -skew
    left = float(experts.num_experts_per_token)
    found = np.zeros(experts.num_experts)
    for place in range(experts.num_experts):
        found[place] = min(1.0, left * shares[place] / shares[place:].sum())
        left -= found[place]
    return found


def of_busiest_gpu(experts: ExpertsSpec, skew: float, num_gpus: int) -> Floats:
    """The chances of the experts on the GPU with most to do, of those that experts are dealt out to in turn
    by their popularity.
    """
    return chances(experts, skew)[::num_gpus]


def num_touched(experts: ExpertsSpec, skew: float, num_gpus: int, num_tokens: Ints) -> Floats:
    """Experts of the busiest GPU that at least one of `num_tokens` tokens goes to: the sum of
    1 - (1 - p)^T over their chances p.
    """
    missed: Any = 1.0 - of_busiest_gpu(experts, skew, num_gpus)
    tokens, counts = np.unique(np.asarray(num_tokens, np.float64), return_inverse=True)
    touched = np.zeros(len(tokens))
    for chance, number in zip(*np.unique(missed, return_counts=True), strict=True):
        touched += number * (1.0 - chance**tokens)
    return touched[counts]


def tokens_of_busiest_gpu(experts: ExpertsSpec, skew: float, num_gpus: int) -> float:
    """Of each token, the number of experts that it goes to on the busiest GPU."""
    return float(of_busiest_gpu(experts, skew, num_gpus).sum())
