"""How long an answer will be, as far as a shortest-job-first order may know."""

from __future__ import annotations

import hashlib

import numpy as np

LENGTH_STREAM = 0x6C656E67
"""Spawn key of the random streams of predicted lengths."""


def length_z(seed: int, request_id: str) -> float:
    """A standard normal number of a request's own, whatever was drawn before.

    A predicted length is the true one times `exp(error * z)`: z comes from a stream keyed by the seed and the
    request's id, so that a prediction depends on nothing that the scheduler did before.
    """
    digest = hashlib.blake2b(request_id.encode(), digest_size=16).digest()
    key = (LENGTH_STREAM, int.from_bytes(digest, "little"))
    return float(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)).standard_normal())
