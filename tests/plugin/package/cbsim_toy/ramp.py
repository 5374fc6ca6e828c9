"""A workload of one's own: traffic that grows."""

from collections.abc import Iterator

import numpy as np
from pydantic import Field

from cbsim.workload import Workload, WorkloadConfig
from cbsim.workload.request import Request, RequestBatch
from cbsim.workload.request_source import Trim


class RampConfig(WorkloadConfig):
    """Requests of one size, at a rate that rises from 0 in a straight line."""

    num: int = Field(ge=1)
    """How many requests."""
    growth_per_s2: float = Field(gt=0)
    """By how much the rate rises in each second, requests a second squared."""
    num_prompt_tokens: int = Field(default=100, ge=1)
    """Tokens of each prompt."""
    num_output_tokens: int = Field(default=10, ge=1)
    """Tokens of each answer."""


class RampWorkload(Workload):
    """After t seconds `growth_per_s2 * t**2 / 2` requests have arrived."""

    Config = RampConfig
    config: RampConfig

    def requests(self) -> Iterator[Request]:
        """See `Workload.requests`."""
        number = np.arange(self.config.num)
        batch = RequestBatch(
            number=number,
            arrival_s=np.sqrt(2 * number / self.config.growth_per_s2),
            num_prompt_tokens=np.full(self.config.num, self.config.num_prompt_tokens),
            num_output_tokens=np.full(self.config.num, self.config.num_output_tokens),
        )
        for trimmed in Trim(self.config).apply([batch]):
            yield from trimmed.requests()

    def num_requests(self) -> int | None:
        """See `Workload.num_requests`."""
        return None
