"""Agreement: whether a run simulated again goes as the one in the folder went, and why if it doesn't."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cbsim.base.errors import CbsimError
from cbsim.core.stepping import Slice
from cbsim.results.manifest import hash_files, package_version
from cbsim.results.result import Result
from cbsim.studies.explain.batch_step import steps_of

_TIMES = ("start_s", "duration_s")
_COUNTS = ("num_running", "num_waiting", "kv_blocks_used")
_OF_REQUESTS = ("arrival_s", "num_prompt_tokens", "num_output_tokens")
_TOLERANCE = 1e-9
"""Relative, of times: another machine's mathematics may differ in the last bits."""


class Agreement:
    """Compares the steps of one replica, as they are simulated again, with those in a run folder."""

    def __init__(self, folder: Path, result: Result, replica: int) -> None:
        self._folder = folder
        self._result = result
        steps = steps_of(result, replica)
        self._steps = list(zip(*(steps[name].tolist() for name in (*_TIMES, *_COUNTS)), strict=True))
        columns = (result.requests[name].tolist() for name in ("request_id", *_OF_REQUESTS))
        self._requests = {name: values for name, *values in zip(*columns, strict=True)}
        self._seen: set[str] = set()

    def check(self, step: Any, slices: Sequence[Slice]) -> None:
        """Raise `CbsimError` unless the folder has the same step (`STEP`), of requests that it has."""
        number = step.number
        if number >= len(self._steps):
            raise self._differs(f"has a step {number}, which the folder has not")
        self._compare((*_TIMES, *_COUNTS), step, self._steps[number], number)
        for name, request in ((part.request.request_id, part.request) for part in slices):
            if name in self._seen:
                continue
            if name not in self._requests:
                raise self._differs(f"has in step {number} a request '{name}', which the folder has not")
            self._compare(_OF_REQUESTS, request, self._requests[name], number, f"request '{name}' has ")
            self._seen.add(name)

    def _compare(self, names: Sequence[str], now: Any, then: Any, step: int, of: str = "") -> None:
        """Raise `CbsimError` if one of some attributes is not what it was."""
        for name, before in zip(names, then, strict=True):
            value = getattr(now, name)
            if not math.isclose(value, before, rel_tol=_TOLERANCE):
                raise self._differs(f"differs from step {step} on: {of}{name} {value:.9g}, was {before:.9g}")

    def _differs(self, how: str) -> CbsimError:
        return CbsimError(
            f"{self._folder}: can't be explained step by step: it has no batches.parquet, and simulating it "
            f"again {how}"
        )


def changes_since(result: Result) -> list[str]:
    """What differs between then and now of what a run depends on: versions and input files."""
    then, now = result.manifest["versions"].get("cbsim"), package_version("cbsim")
    versions = [] if then == now else [f"it was run with cbsim {then}, this is {now}"]
    return [*versions, *changed_inputs(result)]


def changed_inputs(result: Result) -> list[str]:
    """The input files of a run that are gone or not what they were."""
    changes = []
    for entry in (entry for entry in result.manifest["inputs"] if "file" in entry):
        path = Path(entry["file"])
        if not path.is_file():
            changes.append(f"its input {path} is gone")
        elif hash_files([path])[path] != entry["sha256"]:
            changes.append(f"its input {path} has changed since")
    return changes
