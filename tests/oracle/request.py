"""Who asks for what, and how far each has come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.oracle.blocks import Block, Token


@dataclass(eq=False)
class Request:
    name: str
    arrival: float
    place: int  # in the order of arrival
    prompt: list[Token]
    num_output: int
    priority: int
    accept: list[int]
    """Drafts accepted of the first verification, the second and so on, and then from the front again."""
    propose: list[int]
    """Drafts proposed, alike; empty for as many as there can be."""
    remote_prefill: bool = False
    load_s: float = 0.0
    remote_decode: bool = False
    send_s: float = 0.0
    tier_tokens: int = 0
    fail_from_block: int | None = None
    """The first block that the first transfer does not bring; `None` from that transfer on."""

    tokens: list[Token] = field(default_factory=list)
    """Prompt and generated tokens whose result has been taken; there are `L`."""
    done: int = 0
    """Tokens scheduled so far, those in flight too."""
    to_prefill: int = 0
    """`L` when it was last admitted; a token behind these is computed by a decode."""
    in_flight: int = 0
    """`f`: output tokens sampled by steps whose result has not been taken."""
    drafts: int = 0
    """`p`: drafts ready to be verified (S1, S11)."""
    num_verified: int = 0
    num_proposed: int = 0
    blocks: list[list[Block | None]] = field(default_factory=list)
    """Per group; `None` where a window has passed (H2)."""
    is_prefilling: bool = False
    """Whether its last entry sampled nothing for it (X3)."""
    waits_for_call: int = 0
    """The first call that may schedule it again (Q4)."""
    full_hit: int = 0
    """Tokens that the full groups hit at its last lookup, and those that all groups hit (H7)."""
    common_hit: int = 0
    load: str = ""
    """`under way`, `ended`, or `looked at` if it was not admitted then (P3 to P6)."""
    was_loaded: bool = False
    first_bad: int | None = None
    """Of a load that has failed, the first block that it did not bring."""
    was_passed_over: bool = False
    """In the queue, since it was last admitted (X3)."""
    num_admissions: int = 0
    num_preemptions: int = 0
    first_token: float | None = None
    finished: float | None = None
    failed: float | None = None

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.prompt)

    @property
    def has_ended(self) -> bool:
        return self.finished is not None or self.failed is not None

    @property
    def wanted(self) -> int:
        """Tokens it could compute, with drafts (3, A6, S2); none while its last is in flight (A7, S12)."""
        if self.in_flight and self.done + 2 - self.in_flight >= len(self.prompt) + self.num_output:
            return 0
        return len(self.tokens) + self.drafts + self.in_flight - self.done

    def accepts(self, num_drafts: int) -> int:
        """Of so many drafts; each time is another verification."""
        self.num_verified += 1
        return min(self.accept[(self.num_verified - 1) % len(self.accept)], num_drafts)

    def proposes(self, most: int) -> int:
        """Drafts for the next step (S1)."""
        self.num_proposed += 1
        return min(self.propose[(self.num_proposed - 1) % len(self.propose)], most) if self.propose else most

    def bad_block(self, first: int, end: int) -> int | None:
        """The first of these blocks that its transfer does not bring; the next transfer brings all."""
        bad, self.fail_from_block = self.fail_from_block, None
        return None if bad is None or max(bad, first) >= end else max(bad, first)


def make_requests(rows: Sequence[Mapping[str, Any]]) -> list[Request]:
    """Requests of a case in the order in which they reach the scheduler."""
    made = []
    same = ("remote_prefill", "load_s", "remote_decode", "send_s", "tier_tokens", "fail_from_block")
    for row in rows:
        segments = row.get("prompt") or [[f"p:{row['id']}", row["prompt_tokens"]]]
        prompt = [(name, place) for name, length in segments for place in range(length)]
        arrival = float(row["arrival_s"] if "arrival_s" in row else row["arrival_step"])
        lists = (row.get("accept") or [0], row.get("propose") or [])
        rest = {key: row[key] for key in same if row.get(key) is not None}
        priority = row.get("priority", 0)
        made.append(Request(row["id"], arrival, 0, prompt, row["output_tokens"], priority, *lists, **rest))
    made.sort(key=lambda request: request.arrival)
    for place, request in enumerate(made):
        request.place, request.tokens = place, list(request.prompt)
    return made
