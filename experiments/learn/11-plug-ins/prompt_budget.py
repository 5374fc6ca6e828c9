"""A scheduler of one's own: so many prompt tokens a step, whoever they belong to."""

from typing import Any

from pydantic import Field

from cbsim.core.layout import NOBODY
from cbsim.core.verbs import is_prefilling, num_wanted, schedule
from cbsim.schedulers import SchedulerConfig
from cbsim.schedulers.reserving import ReservingScheduler, admit_reserved, next_admissible


class PromptBudgetConfig(SchedulerConfig):
    """Bounds what all prompts together may add to a step."""

    max_num_seqs: int = Field(default=64, ge=1)
    """Most requests running at once."""
    max_prompt_tokens_per_step: int = Field(default=100, ge=1)
    """Most prompt tokens a step."""


class PromptBudget(ReservingScheduler):
    """One token for everybody who decodes; then prompts, in order of arrival, while their budget lasts."""

    Config = PromptBudgetConfig

    def decide(self: Any, step: Any) -> None:
        """One step."""
        for place in range(self.own.num_running):
            request = self.requests[self.running[place]]
            if not is_prefilling(request) and num_wanted(request):
                schedule(self, step, request, 1)
        step.budget = self.config.max_prompt_tokens_per_step
        for place in range(self.own.num_running):
            request = self.requests[self.running[place]]
            if is_prefilling(request) and step.budget:
                schedule(self, step, request, min(num_wanted(request), step.budget))
        head = next_admissible(self, step)
        while head != NOBODY:
            newcomer = self.requests[head]
            admit_reserved(self, step, newcomer)
            schedule(self, step, newcomer, min(num_wanted(newcomer), step.budget))
            head = next_admissible(self, step)
