"""Score: the figures of a run so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from cbsim.request import Request
from cbsim.schedulers import Slice


@dataclass(slots=True)
class Score:
    """Counts and sums that are kept up as steps end; means are `None` before there is anything to average.

    Times are seconds. TTFT and TPOT are defined as in `summary.json`.
    """

    num_finished: int = 0
    num_rejected: int = 0
    _ttft_s: list[float] = field(default_factory=list)
    _tpot_s: list[float] = field(default_factory=list)

    def took(self, part: Slice, now: float) -> None:
        """A slice has run; its token, if it emits one, is out at `now`."""
        request = part.request
        if not part.emits:
            return
        if request.first_token_at_s is None:
            request.first_token_at_s = now
            self._ttft_s.append(now - request.arrival_s)
        request.last_token_at_s = now

    def finished(self, request: Request) -> None:
        """A request has its last token."""
        self.num_finished += 1
        first_s, last_s = request.first_token_at_s, request.last_token_at_s
        if request.num_output_tokens > 1 and first_s is not None and last_s is not None:
            self._tpot_s.append((last_s - first_s) / (request.num_output_tokens - 1))

    @property
    def mean_ttft_s(self) -> float | None:
        """Over the requests that have a token."""
        return _mean(self._ttft_s)

    @property
    def mean_tpot_s(self) -> float | None:
        """Over the finished requests of more than one token."""
        return _mean(self._tpot_s)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
