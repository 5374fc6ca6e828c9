"""Tune: the best settings within an SLO, over any keys."""

from cbsim.studies.tune.best_settings import TuneAnswer, TuneInterrupted, TuneProgress, tune

__all__ = ["TuneAnswer", "TuneInterrupted", "TuneProgress", "tune"]
