"""How long an answer will be, as far as a shortest-job-first order may know."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np

from cbsim.workload.request import Request

LENGTH_STREAM = 0x6C656E67
"""Spawn key of the random streams of predicted lengths."""


def make_length_rule(knowledge: str, prediction_error: float | None, seed: int) -> Callable[[Request], float]:
    """From `length_knowledge` to the figure that a queue orders by, tokens."""
    if knowledge == "prompt_only":
        return prompt_length
    if knowledge == "predicted":
        return LengthPredictor(prediction_error or 0.0, seed)
    return answer_length


def prompt_length(request: Request) -> float:
    """What every engine knows: the length of the prompt."""
    return request.num_prompt_tokens


def answer_length(request: Request) -> float:
    """What no engine knows: the length of the answer. The upper bound for any predictor."""
    return request.num_output_tokens


class LengthPredictor:
    """The answer's length with a relative error, `exp(error * z)`, z standard normal.

    Each request's z comes from a stream of its own, keyed by the seed and its id, so that a prediction
    depends on nothing that the scheduler did before.
    """

    def __init__(self, error: float, seed: int) -> None:
        self.error = error
        self.seed = seed

    def __call__(self, request: Request) -> float:
        """Predicted output tokens; asked again, the same."""
        if request.predicted_output_tokens is None:
            z = length_z(self.seed, request.request_id)
            request.predicted_output_tokens = request.num_output_tokens * math.exp(self.error * z)
        return request.predicted_output_tokens


def length_z(seed: int, request_id: str) -> float:
    """A standard normal number of a request's own, whatever was drawn before."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=16).digest()
    key = (LENGTH_STREAM, int.from_bytes(digest, "little"))
    return float(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)).standard_normal())
