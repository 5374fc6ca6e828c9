"""In which order waiting requests are admitted: the settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from cbsim.schedulers.scheduler import SchedulerConfig

Policy = Literal["fcfs", "priority", "sjf", "edf", "fair"]


class OrderConfig(SchedulerConfig):
    """In which order waiting requests are admitted."""

    policy: Policy = "fcfs"
    """Who is admitted first: by arrival, by `priority` (smaller first), the shortest job, the earliest
    deadline (`deadline_s` after arrival), or the user who was served the fewest tokens (VTC, OSDI'24)."""
    length_knowledge: Literal["oracle", "predicted", "prompt_only"] = "oracle"
    """What `sjf` goes by: the answer's true length (an upper bound that no engine reaches), that length with
    an error, or the prompt's length."""
    prediction_error: float | None = Field(default=None, ge=0, validate_default=True)
    """Relative error of `predicted`: sigma of the lognormal factor between predicted and true length."""
    aging_s: float | None = Field(default=None, ge=0)
    """Who has waited longer than this in all, seconds, goes before all that have not, in order of arrival,
    and is not preempted while one of them runs; null turns it off."""

    @field_validator("length_knowledge")
    @classmethod
    def _serves_sjf(cls, value: str, info: ValidationInfo) -> str:
        policy = info.data.get("policy", "sjf")
        if value != cls.model_fields["length_knowledge"].default and policy != "sjf":
            raise ValueError(f"got '{value}', which means nothing with policy: {policy}; set policy: sjf")
        return value

    @field_validator("prediction_error")
    @classmethod
    def _serves_prediction(cls, value: float | None, info: ValidationInfo) -> float | None:
        if "length_knowledge" not in info.data:
            return value
        is_predicted = info.data["length_knowledge"] == "predicted"
        if value is not None and not is_predicted:
            raise ValueError(f"got {value:g}, which means nothing without length_knowledge: predicted")
        if value is None and is_predicted:
            raise ValueError("missing; length_knowledge: predicted needs it, for example 0.5")
        return value
