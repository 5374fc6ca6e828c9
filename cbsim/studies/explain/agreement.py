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
from cbsim.studies.explain.run_tables import steps_of
from cbsim.workload.request import Request

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
        self._unseen = {name: values for name, *values in zip(*columns, strict=True)}
        self._seen: set[str] = set()

    def check(self, step: Any, slices: Sequence[Slice]) -> None:
        """Raise `CbsimError` unless the folder has the same step (`STEP`), of requests that it has."""
        if step.number >= len(self._steps):
            raise self._differs(f"has a step {step.number}, which the folder has not")
        was = self._steps[step.number]
        for name, before in zip((*_TIMES, *_COUNTS), was, strict=True):
            now = getattr(step, name)
            if not math.isclose(now, before, rel_tol=_TOLERANCE):
                raise self._differs(f"differs from step {step.number} on: {name} {now:.9g}, was {before:.9g}")
        for part in slices:
            if part.request.request_id not in self._seen:
                self._check_request(part.request, step.number)

    def _check_request(self, request: Request, number: int) -> None:
        was = self._unseen.pop(request.request_id, None)
        if was is None:
            raise self._differs(
                f"has in step {number} a request '{request.request_id}', which the folder has not"
            )
        self._seen.add(request.request_id)
        for name, before in zip(_OF_REQUESTS, was, strict=True):
            now = getattr(request, name)
            if not math.isclose(now, before, rel_tol=_TOLERANCE):
                told = f"request '{request.request_id}' has {name} {now:.9g}, was {before:.9g}"
                raise self._differs(f"differs from step {number} on: {told}")

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
    for entry in result.manifest["inputs"]:
        if "file" not in entry:
            continue
        path = Path(entry["file"])
        if not path.is_file():
            changes.append(f"its input {path} is gone")
        elif hash_files([path])[path] != entry["sha256"]:
            changes.append(f"its input {path} has changed since")
    return changes
