"""StepError: how wrong step times may be, by what they come from, as steps and runs kept back showed it.

`python -m calibration.run_errors FOLDER` finds the figures, with the evidence, and tells whether each
recorded run lies inside the interval that the others give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

CONFIDENCE = 0.9
Z_90 = 1.6448536269514722
"""The 90th percentile of |z|, z standard normal."""

Basis = Literal["measured", "imported", "estimated"]
"""What step times come from: kernels timed as steps launch them, tables of kernels timed one by one, data
sheets."""


class Seen(NamedTuple):
    """How far predicted step times were off: 9 of 10 within so many percent, around no error."""

    pct: float
    evidence: str


MEASURED = Seen(4.3, "two recorded runs of vLLM, by kind of step")
IMPORTED = {
    (False, False): Seen(13.4, "46 served runs of vLLM with dense models on one GPU"),
    (False, True): Seen(12.7, "51 served runs of vLLM with experts on one GPU"),
    (True, False): Seen(16.6, "272 served runs of vLLM with dense models on several GPUs"),
    (True, True): Seen(29.7, "684 served runs of vLLM with experts on several GPUs"),
}
"""By whether several GPUs share the model, and whether it has experts."""
UNTIMED_COLLECTIVES = Seen(30.2, "the share of all-reduces in the profiles that have them")
FRONT_S = 0.073
"""Seconds of TTFT beyond what is simulated, at most in 9 of 10 of 105 served runs of vLLM with 4 clients and
prompts of 1,024 tokens (23 ms at the median): HTTP, tokeniser and whatever else comes before the engine."""


class StepError(NamedTuple):
    """How wrong the step times of a cost model may be."""

    basis: Basis
    pct: float
    """In 9 of 10 cases a run's steps take at most so many percent more than predicted, or the inverse."""
    evidence: str

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm of true over predicted time."""
        return math.log1p(self.pct / 100.0) / Z_90

    def told(self) -> str:
        """A sentence for notes."""
        return f"step times are {self.basis}: within {self.pct:.3g}% in 9 of 10 cases ({self.evidence})"

    def given(self, pct: float | None) -> StepError:
        """With the percentage that a user gives, if any."""
        return self if pct is None else StepError(self.basis, pct, "cost_model.step_error_pct")


def profile_error(
    accuracy: Mapping[str, Any], *, has_collectives: bool, num_gpus: int, has_experts: bool
) -> StepError:
    """Of a profile with such `accuracy` in its cost file: measured where launches that mix chunks and decodes
    were timed, else imported. What else may be wrong adds up as independent errors do.
    """
    basis: Basis = "measured" if "mixed" in accuracy.get("held_out", {}) else "imported"
    several = num_gpus > 1
    pct, evidence = MEASURED if basis == "measured" else IMPORTED[several, has_experts]
    whole = accuracy.get("whole_steps", {}).get("step", {}).get("p90_pct", 0.0)
    if whole > pct:
        pct, evidence = float(whole), "whole steps that were timed beside the kernels"
    if several and not has_collectives:
        pct = together(pct, UNTIMED_COLLECTIVES.pct)
        evidence = f"{evidence}; all-reduces were not timed: {UNTIMED_COLLECTIVES.evidence}"
    return StepError(basis, pct, evidence)


def roofline_error(p90_pct: float, gpus: str) -> StepError:
    """Of a roofline that is so far from measured profiles, which are off servers themselves."""
    pct = together(p90_pct, IMPORTED[True, False].pct)
    return StepError("estimated", pct, f"rooflines against profiles of {gpus}, and those against servers")


def together(*pcts: float) -> float:
    """The spread of the product of independent factors, percent."""
    return 100.0 * math.expm1(math.hypot(*(math.log1p(pct / 100.0) for pct in pcts)))
