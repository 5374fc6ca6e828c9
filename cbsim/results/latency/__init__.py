"""Where the time of each request went: its TTFT and E2E in parts that add up to the whole."""

from cbsim.results.latency.parts import (
    HAND_OVER_PARTS,
    PARTS,
    TTFT_PARTS,
    mean_parts,
    request_parts,
)

__all__ = ["HAND_OVER_PARTS", "PARTS", "TTFT_PARTS", "mean_parts", "request_parts"]
