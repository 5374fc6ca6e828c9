"""Tune: the best settings within an SLO, over any keys."""

from cbsim.studies.tune.best_settings import TuneAnswer, TuneInterrupted, tune
from cbsim.studies.tune.rounds import TuneProgress

__all__ = ["TuneAnswer", "TuneInterrupted", "TuneProgress", "tune"]
