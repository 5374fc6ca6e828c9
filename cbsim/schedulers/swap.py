"""Host memory for the KV blocks of preempted requests, and the link to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from cbsim.base.units import GIB, GIGA
from cbsim.schedulers.base import Prices, SchedulerConfig
from cbsim.workload.request import Request


class SwapConfig(SchedulerConfig):
    """What becomes of a preempted request's KV."""

    preemption: Literal["recompute", "swap", "cheaper"] = "recompute"
    """What happens to a victim's KV: it is computed again later, moved to host memory and back, or whichever
    takes less time by the cost model."""
    swap_space_gib: float = Field(default=4.0, gt=0)
    """Host memory of a replica for swapped KV blocks, GiB; when it is full, victims are recomputed."""
    swap_bandwidth_gb_s: float | None = Field(default=None, gt=0)
    """Bandwidth between the GPUs of a replica and host memory, one way, GB/s (1e9 bytes a second); null takes
    the GPU's `host_link_gb_s`."""
    swap_latency_s: float = Field(default=1e-5, ge=0)
    """Seconds before a request's blocks begin to move, each way."""

    @field_validator("swap_space_gib", "swap_bandwidth_gb_s", "swap_latency_s")
    @classmethod
    def _serves_swap(cls, value: float | None, info: ValidationInfo) -> float | None:
        default = cls.model_fields[str(info.field_name)].default
        if value != default and info.data.get("preemption") == "recompute":
            raise ValueError(
                f"got {value:g}, which means nothing with preemption: recompute; expected swap or cheaper"
            )
        return value


class SwapSpace:
    """Holds whole requests' KV blocks beside the GPU, and adds up the seconds that moving them takes.

    A move is ordered after the step that is running, as a copy on the same stream: what that step writes is
    moved too, and the blocks on the GPU are free for the next step at once, which begins when the moves
    decided with it are done. Both directions share that stream.
    """

    def __init__(self, config: SwapConfig, prices: Prices) -> None:
        self.num_blocks = int(config.swap_space_gib * GIB / prices.block_bytes)
        """How many fit."""
        self.num_used = 0
        self.num_moved_out = 0
        """Requests moved here so far."""
        self.num_turned_away = 0
        """Requests for which it was too full."""
        self._config = config
        self._prices = prices
        self._held: dict[Request, int] = {}
        self._unspent_s = 0.0

    def __contains__(self, request: object) -> bool:
        return request in self._held

    def move_s(self, num_blocks: int) -> float:
        """Seconds to move so many blocks of a request, one way."""
        bandwidth_gb_s = self._config.swap_bandwidth_gb_s
        if bandwidth_gb_s is None:
            return self._config.swap_latency_s + self._prices.move_s(num_blocks)
        return self._config.swap_latency_s + num_blocks * self._prices.block_bytes / (bandwidth_gb_s * GIGA)

    def takes(self, num_tokens: int, num_blocks: int) -> bool:
        """Whether KV of so many tokens, in so many blocks, moves here rather than be computed again.

        `cheaper` compares two moves with one computation of those tokens alone in a step.
        """
        if self._config.preemption == "recompute" or num_tokens == 0:
            return False
        if self._config.preemption == "cheaper":
            recompute_s = self._prices.recompute_s(num_tokens)
            if recompute_s <= 2 * self.move_s(num_blocks):
                return False
        has_room = self.num_used + num_blocks <= self.num_blocks
        self.num_turned_away += not has_room
        return has_room

    def move_out(self, request: Request, num_blocks: int) -> None:
        """Take blocks of a request from the GPU."""
        self._held[request] = num_blocks
        self.num_used += num_blocks
        self.num_moved_out += 1
        self._unspent_s += self.move_s(num_blocks)

    def move_in(self, request: Request) -> None:
        """Give them back to the GPU, where the request has blocks again."""
        num_blocks = self._held.pop(request)
        self.num_used -= num_blocks
        self._unspent_s += self.move_s(num_blocks)

    def take_transfer_s(self) -> float:
        """Seconds of all moves since the last call: for the step that waits for them."""
        transfer_s, self._unspent_s = self._unspent_s, 0.0
        return transfer_s

    def check_integrity(self, waiting: Iterable[Request]) -> None:
        """Raise RuntimeError unless only waiting requests hold blocks, and those add up and fit."""
        num_held = sum(self._held.values())
        if not self._held.keys() <= set(waiting):
            raise RuntimeError("host memory holds KV blocks of a request that doesn't wait")
        if num_held != self.num_used or num_held > self.num_blocks:
            raise RuntimeError(
                f"{num_held} KV blocks in host memory, {self.num_used} counted, {self.num_blocks} fit"
            )

    def notes(self) -> list[str]:
        """How often it was too full."""
        if not self.num_turned_away:
            return []
        return [
            f"host memory was too full for {self.num_turned_away} preempted requests, which were recomputed; "
            f"{self.num_moved_out} were swapped"
        ]
