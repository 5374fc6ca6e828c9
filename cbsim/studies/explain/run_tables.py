"""What the parts of an explanation look up in a run's tables."""

from __future__ import annotations

import pandas as pd

from cbsim.results.result import Result


def steps_of(result: Result, replica: int) -> pd.DataFrame:
    """The steps of one replica, in order."""
    steps = result.steps
    return steps[steps["replica"] == replica].sort_values("step", ignore_index=True)
