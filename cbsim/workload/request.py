"""Request: what a client asks for, and how far its replica has come with it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

Segments = tuple[tuple[str, int], ...]
"""A prompt as `(segment name, number of tokens)`: two prompts share exactly their common leading
(segment, offset) run; generated token i of request X is offset i of segment `o:X`."""


class RequestState(IntEnum):
    """Where a request stands. `UNFINISHED` is its state in the results of a run that ended before it did."""

    UNFINISHED = 0
    WAITING = 1
    RUNNING = 2
    PREEMPTED = 3
    FINISHED = 4
    REJECTED = 5
    FAILED = 6


class Request:
    """One request: its fixed part comes from the workload, its progress is kept by the scheduler.

    Token counts (`num_*`) are of tokens; instants (`*_at_s`) are seconds of simulated or wall-clock time;
    `None` means "not yet". `num_computed_tokens` counts the tokens whose KV is computed or scheduled to be,
    steps in flight included; `num_generated_tokens` those whose result has been taken.
    """

    __slots__ = (
        "admission",
        "affinity",
        "arrival_s",
        "blocks",
        "deadline_s",
        "end_link",
        "extra",
        "first_decode",
        "first_link",
        "first_scheduled_at_s",
        "first_token_at_s",
        "index",
        "job_length",
        "last_decode",
        "last_token_at_s",
        "max_itl_s",
        "num_blocks",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_drafts",
        "num_generated_tokens",
        "num_in_flight_tokens",
        "num_junction_tokens",
        "num_launched_tokens",
        "num_lost_tokens",
        "num_output_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "num_steps_in_flight",
        "num_swapped_blocks",
        "place_in_line",
        "predicted_output_tokens",
        "preempted_in_call",
        "prefill_until",
        "priority",
        "prompt",
        "rejection",
        "replica",
        "request_id",
        "resumes_at_call",
        "route",
        "samples",
        "session_id",
        "slot",
        "state",
        "think_s",
        "user",
        "user_number",
        "waited_s",
        "waiting_since_s",
        "was_passed_over",
    )

    def __init__(
        self,
        request_id: str,
        arrival_s: float,
        num_prompt_tokens: int,
        num_output_tokens: int,
        *,
        priority: int = 0,
        session_id: str | None = None,
        user: str | None = None,
        deadline_s: float | None = None,
        prompt: Segments | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.request_id = request_id
        self.arrival_s = arrival_s
        self.num_prompt_tokens = num_prompt_tokens
        self.num_output_tokens = num_output_tokens
        self.priority = priority
        self.session_id = session_id
        self.user = user
        self.deadline_s = deadline_s
        """Seconds from the arrival."""
        self.prompt = prompt
        self.extra = extra
        """What it brings along for speculation and KV connectors, by fields of `cbsim.core.layout.EXTRA`;
        lists as `accepted` and `proposed`."""
        self.index = -1
        """Place in order of arrival, given by the world: breaks every tie."""
        self.state = RequestState.WAITING
        self.num_computed_tokens = 0
        self.num_generated_tokens = 0
        self.num_in_flight_tokens = 0
        """Output tokens that steps under way may emit, with asynchronous scheduling."""
        self.prefill_until = num_prompt_tokens
        """Tokens to compute before it decodes: its prompt, after a preemption its answer so far too."""
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        """Prefix-cache tokens found at the first admission."""
        self.admission = -1
        """Place in order of admission to the running list; a resumed request gets a new one."""
        self.num_lost_tokens = 0
        """Computed tokens that the last preemption threw away."""
        self.num_blocks = 0
        self.blocks: list[int] = []
        """KV block numbers in order of position, where the pool keeps identities."""
        self.first_scheduled_at_s: float | None = None
        self.first_token_at_s: float | None = None
        self.last_token_at_s: float | None = None
        self.max_itl_s = float("nan")
        """Longest gap between two tokens so far, seconds; NaN before the second token."""
        self.waiting_since_s = arrival_s
        """When it last began to wait: its arrival or its last preemption."""
        self.waited_s = 0.0
        """Time spent waiting before that."""
        self.predicted_output_tokens: float | None = None
        """What a length predictor said, where one was asked."""
        # What the core keeps of it: see `cbsim.core.layout.REQUEST`.
        self.job_length = float(num_output_tokens)
        self.think_s = 0.0
        self.user_number = self.route = self.rejection = 0
        self.first_link = self.end_link = 0
        self.preempted_in_call = self.num_swapped_blocks = 0
        self.num_launched_tokens = self.num_drafts = self.num_junction_tokens = self.num_steps_in_flight = 0
        self.place_in_line = self.resumes_at_call = self.samples = self.was_passed_over = 0
        self.replica = self.affinity = self.slot = self.first_decode = self.last_decode = -1

    @property
    def num_known_tokens(self) -> int:
        """Prompt and generated tokens whose values are known."""
        return self.num_prompt_tokens + self.num_generated_tokens

    @property
    def is_prefilling(self) -> bool:
        """Whether prompt (or, after a preemption, prompt and answer) tokens are still to be computed."""
        return self.num_computed_tokens < self.prefill_until

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id}: {RequestState(self.state).name.lower()}, "
            f"computed {self.num_computed_tokens}, prompt {self.num_prompt_tokens}, "
            f"generated {self.num_generated_tokens}/{self.num_output_tokens})"
        )
