"""Population: who sends the requests: users, priorities, deadlines, and the system prompts they share."""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from cbsim.config.section import Section
from cbsim.workload.length_distributions import Sampler, check_weights, picker
from cbsim.workload.streams import Streams


class SharedPrefix(Section):
    """System prompts that many requests begin with; they come on top of `prompt_tokens`."""

    num_tokens: int = Field(ge=1)
    """Tokens of each system prompt."""
    num_groups: int = Field(default=1, ge=1)
    """How many different system prompts there are, all equally often used."""

    def sampler(self, streams: Streams) -> Sampler:
        """Draws which system prompt a request (or session) has."""
        return picker(streams, range(self.num_groups))


class Users(Section):
    """Users `u0`, `u1`, ..., as the `fair` queue order tells them apart."""

    num_users: int = Field(ge=1)
    """How many there are."""
    skew: float = Field(default=0.0, ge=0)
    """Zipf exponent: user k sends requests in proportion to 1 / (k + 1)^skew; 0 is equally many."""

    def sampler(self, streams: Streams) -> Sampler:
        """Draws a user's number."""
        weights = 1 / np.arange(1, self.num_users + 1) ** self.skew
        return picker(streams, range(self.num_users), weights)


class _Mix(Section):
    """A setting of the values that occur, then one of their weights."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        values, weights = dict(self).values()
        if weights is not None:
            check_weights(weights, len(values))
        return self

    def sampler(self, streams: Streams) -> Sampler:
        """Draws from the values."""
        values, weights = dict(self).values()
        return picker(streams, values, weights)


class Priorities(_Mix):
    """A mix of priorities; a smaller one is more urgent."""

    values: list[int] = Field(min_length=1)
    """The priorities that occur."""
    weights: list[Annotated[float, Field(ge=0)]] | None = None
    """How often each occurs, relative to the others; null for equally often."""


class Deadlines(_Mix):
    """A mix of deadlines, each counted from the request's arrival."""

    values_s: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Seconds from arrival to deadline that occur."""
    weights: list[Annotated[float, Field(ge=0)]] | None = None
    """How often each occurs, relative to the others; null for equally often."""
