"""A scheduler of one's own: so many prompt tokens a step, whoever they belong to."""

from pydantic import Field

from cbsim.schedulers import SchedulerConfig, StepPlan
from cbsim.schedulers.reserving import ReservingScheduler


class PromptBudgetConfig(SchedulerConfig):
    """Bounds what all prompts together may add to a step."""

    max_num_seqs: int = Field(default=64, ge=1)
    """Most requests running at once."""
    max_prompt_tokens_per_step: int = Field(default=100, ge=1)
    """Most prompt tokens a step."""


class PromptBudget(ReservingScheduler):
    """One token for everybody who decodes; then prompts, in order of arrival, while their budget lasts."""

    Config = PromptBudgetConfig

    def decide(self, step: StepPlan) -> None:
        """One step."""
        for request in self.running:
            if not request.is_prefilling and self.num_wanted(request):
                self.schedule(step, request, 1)
        step.budget = self.config.max_prompt_tokens_per_step
        for request in self.running:
            if request.is_prefilling and step.budget:
                self.schedule(step, request, min(self.num_wanted(request), step.budget))
        while newcomer := self.next_admissible(step):
            self.admit_reserved(step, newcomer)
            self.schedule(step, newcomer, min(self.num_wanted(newcomer), step.budget))
