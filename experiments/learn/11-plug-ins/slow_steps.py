"""An observer of one's own: which steps were long, and why."""

from pydantic import Field

from cbsim.config.section import ComponentConfig
from cbsim.observers import Observer, StepView


class SlowStepsConfig(ComponentConfig):
    """Tells of each step longer than a limit."""

    limit_s: float = Field(default=0.025, gt=0)
    """Seconds that a step may take."""


class SlowSteps(Observer):
    """Prints the steps that kept everybody waiting."""

    Config = SlowStepsConfig
    config: SlowStepsConfig

    def after_step(self, now: float, step: StepView, replica: int) -> None:
        """A step has ended."""
        if step.duration_s > self.config.limit_s:
            milliseconds = step.duration_s * 1000
            print(f"step {step.number}: {milliseconds:.0f} ms, {step.num_prefill_tokens} prompt tokens")
