"""Probe: a run of which only the figures are kept, in a file named by all that they depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cbsim.base.errors import CbsimError
from cbsim.base.paths import write_text
from cbsim.base.text_files import read_json
from cbsim.results.metrics import flatten
from cbsim.results.result import SHA256, Result, hash_mapping
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import Address, run_experiment

NUM_QUARTERS = 4


@dataclass(frozen=True, slots=True)
class Probe:
    """What a study of many runs needs of one."""

    figures: dict[str, Any]
    """The flattened summary; `ttft_s.quarter_2` and `ttft_s.quarter_4`, means over requests; and the most
    requests that were `in_service` at once, admitted and not yet done."""
    span_s: float
    """From the first arrival to the last."""
    manifest: dict[str, Any]

    @classmethod
    def of(cls, result: Result) -> Probe:
        """Of a run that has ended."""
        arrival_s = result.measured["arrival_s"].to_numpy()
        span_s = float(arrival_s[-1] - arrival_s[0]) if len(arrival_s) else 0.0
        return cls(flatten(result.summary) | _trend(result) | _in_service(result), span_s, result.manifest)


class ProbeStore:
    """Runs experiments, each once: a probe whose file is in the folder is read from there.

    Files are named by the experiment and its inputs (`run.Address`), so that a study that was killed, or one
    that asks for more, runs only what is missing.
    """

    def __init__(self, folder: Path | None) -> None:
        """`None` keeps nothing."""
        self._folder = folder
        self._address = Address()

    def run(self, experiment: Experiment) -> Probe:
        """The experiment's probe. Raises what its run raises, and `CbsimError` if it can't be kept."""
        return run_probe(experiment, self._folder and self.path(self.key(experiment)))

    def key(self, experiment: Experiment) -> str:
        """What the experiment's figures depend on, as a hash; raises as `Address.keys`."""
        _, key = self._address.keys(experiment, experiment.resolved())
        return key

    def path(self, key: str) -> Path:
        """The file of the figures of a key."""
        return (self._folder or Path()) / f"{key}.json"


def run_probe(experiment: Experiment, path: Path | None) -> Probe:
    """The probe in a file, made and kept there if there is none; without a `path` it is made and not kept.

    Raises as `ProbeStore.run`.
    """
    if path is not None and (kept := read_probe(path)) is not None:
        return kept
    kept = Probe.of(run_experiment(experiment, with_interval=False))
    if path is not None:
        told = asdict(kept)
        write_text(path, json.dumps(told | {SHA256: hash_mapping(told)}, allow_nan=False) + "\n")
    return kept


def with_assumed(figures: Mapping[str, Any], assumed: Sequence[str]) -> dict[str, Any]:
    """Figures with what an experiment has `assumed` before the notes of its run."""
    notes = [*assumed, *filter(None, [figures.get("notes")])]
    return {**figures, "notes": "; ".join(notes) or None}


def read_probe(path: Path) -> Probe | None:
    """The probe in a file; `None` if there is none, or only one that is damaged or altered."""
    try:
        told = read_json(path)
        is_whole = told.pop(SHA256) == hash_mapping(told)
        probe = Probe(**told)
    except (CbsimError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return probe if is_whole and {"slo_met", IN_SERVICE} <= probe.figures.keys() else None


def _trend(result: Result) -> dict[str, float | None]:
    """How TTFT stands early and late in the run."""
    quarters = np.array_split(result.measured["ttft_s"].to_numpy(np.float64), NUM_QUARTERS)
    measured = {number: quarters[number - 1][~np.isnan(quarters[number - 1])] for number in (2, 4)}
    return {f"ttft_s.quarter_{n}": float(each.mean()) if len(each) else None for n, each in measured.items()}


IN_SERVICE = "in_service"


def _in_service(result: Result) -> dict[str, int]:
    """The most requests at once that were admitted, for the first time, and had not finished."""
    requests = result.requests
    start_s = np.sort((requests["arrival_s"] + requests["queue_s"]).dropna().to_numpy(np.float64))
    end_s = np.sort(requests["finished_at_s"].dropna().to_numpy(np.float64))
    num_there = np.arange(1, len(start_s) + 1) - np.searchsorted(end_s, start_s, side="right")
    return {IN_SERVICE: int(num_there.max(initial=0))}
