"""Score: the figures of a run so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from cbsim.workload.request import Request


@dataclass(slots=True)
class Score:
    """Counts and sums that are kept up as steps end; means are `None` before there is anything to average.

    Times are seconds. TTFT and TPOT are defined as in `summary.json`.
    """

    num_finished: int = 0
    num_rejected: int = 0
    _first_s: dict[int, float] = field(default_factory=dict)
    """When the first token of each request that runs came out, by its index."""
    _ttft_s: list[float] = field(default_factory=list)
    _tpot_s: list[float] = field(default_factory=list)

    def emitted(self, request: Request, now: float) -> None:
        """A token of a request is out."""
        if request.index not in self._first_s:
            self._first_s[request.index] = now
            self._ttft_s.append(now - request.arrival_s)

    def finished(self, request: Request, now: float) -> None:
        """A request has its last token."""
        self.num_finished += 1
        first_s = self._first_s.pop(request.index)
        if request.num_output_tokens > 1:
            self._tpot_s.append((now - first_s) / (request.num_output_tokens - 1))

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
