"""Ledger: whose tokens are computed, generated and in flight, by the scheduler's own words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from cbsim.testing.observation import Call, Commit, Part


@dataclass(slots=True)
class Ledger:
    """An account of every request's tokens, kept from what the scheduler said it did."""

    num_computed: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Tokens computed, steps in flight included."""
    num_generated: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    num_in_flight: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    num_lost: dict[str, int] = field(default_factory=dict)
    """Tokens that were computed when the request was preempted last."""

    def num_sampled(self, name: str) -> int:
        """Output tokens known or in flight."""
        return self.num_generated[name] + self.num_in_flight[name]

    def decide(self, call: Call) -> Iterator[tuple[str, int, int]]:
        """Book a call's decisions; yields `(request, tokens cached, tokens it starts with)` of newcomers."""
        for decision, name, num_cached in call.decisions:
            if decision == "preempted":
                self.num_lost[name] = self.num_computed[name]
                self.num_computed[name] = self.num_in_flight[name] = 0
            else:
                now_computed = sum(part.num_tokens for part in call.parts if part.request_id == name)
                self.num_computed[name] = call.after[name].num_computed_tokens - now_computed
                yield name, num_cached, self.num_computed[name]

    def schedule(self, part: Part) -> None:
        """Book a share of a step."""
        self.num_computed[part.request_id] += part.num_tokens
        self.num_in_flight[part.request_id] += part.emits

    def take(self, commit: Commit) -> None:
        """Book the results of a step; the token of a request preempted meanwhile is no longer in flight."""
        for name in commit.emitted:
            self.num_generated[name] += 1
            self.num_in_flight[name] = max(0, self.num_in_flight[name] - 1)
