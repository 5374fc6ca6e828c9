"""Speculative decoding: how many drafts a request gets, and how many of them turn out right.

Leviathan, Kalman and Matias, ICML'23: a drafter proposes the next tokens, one step of the model verifies them
all, and the leading ones that it agrees with come out together with one token of its own.
"""

from __future__ import annotations

from typing import Any

from cbsim.base.binding import apart

TWO_TO_32 = 4294967296


@apart
def count_drafts(self: Any, request: Any) -> None:
    """A request that goes on has sampled a token: the drafter gives it new drafts, in place of older ones."""
    config = self.config
    request.num_drafts = config.num_speculative_tokens
    if config.proposes:
        extra = self.extras[request.index]
        length = extra.end_proposed - extra.first_proposed
        if length:
            row = extra.first_proposed + extra.num_proposals % length
            request.num_drafts = min(int(self.acceptance[row]), config.num_speculative_tokens)
            extra.num_proposals += 1


@apart
def num_accepted(self: Any, request: Any, part: Any) -> int:
    """How many of a slice's drafts are right: as the request's own list says, else drawn by their chances.

    What is drawn depends on the request, on how many times it has verified drafts before, and on the draft's
    position, and on nothing that a scheduler decides.
    """
    if part.num_drafts == 0 or part.is_padded:
        return 0
    extra = self.extras[request.index]
    turn = extra.num_verifications
    extra.num_verifications += 1
    length = extra.end_accepted - extra.first_accepted
    if length:
        return min(int(self.acceptance[extra.first_accepted + turn % length]), int(part.num_drafts))
    num_right = 0
    while (
        num_right < part.num_drafts
        and chance(self.config.seed, request.index, turn * 64 + num_right) < self.acceptance[num_right]
    ):
        num_right += 1
    return num_right


def chance(seed: int, one: int, other: int) -> float:
    """A number from 0 to 1, as good as random, made from three whole numbers as MurmurHash3 mixes bits."""
    mixed = (seed * 2654435761 + one * 2246822519 % TWO_TO_32 + 1) % TWO_TO_32
    mixed = ((mixed ^ (mixed >> 16)) * 739982445) % TWO_TO_32
    mixed = ((mixed ^ (mixed >> 15)) + other * 1540483477) % TWO_TO_32
    mixed = ((mixed ^ (mixed >> 13)) * 695872825) % TWO_TO_32
    mixed = ((mixed ^ (mixed >> 16)) * 2146121005) % TWO_TO_32
    return (mixed ^ (mixed >> 15)) / TWO_TO_32
