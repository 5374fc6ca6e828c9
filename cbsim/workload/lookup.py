"""Where a trace file is: beside the experiment, in the current folder, or among the bundled workloads."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cbsim.base.errors import WorkloadError
from cbsim.base.paths import data_folder
from cbsim.config.yaml_text import Keys

_TRACE_TYPES = ("trace", "resampled", "empirical")
"""Parts of a workload whose `path` names a trace."""


def find_trace(path: str, folder: Path) -> Path:
    """The file that `path` names, looked up from `folder`, then the current one, then the bundled workloads.

    Raises `WorkloadError` naming the folders looked in and the nearest name there.
    """
    wanted = Path(path).expanduser()
    if wanted.is_absolute():
        candidates = [wanted]
    else:
        candidates = list(dict.fromkeys([folder / wanted, wanted, data_folder("workloads") / wanted]))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    for candidate in candidates:
        if candidate.is_dir():
            raise WorkloadError(f"{candidate}: got a folder; allowed: a trace file")
    folders = ", ".join(dict.fromkeys(str(candidate.parent.resolve()) for candidate in candidates))
    raise WorkloadError(f"{path}: no such file{_nearest(candidates)}; looked in {folders}")


def trace_paths(settings: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """Each `path` of a trace below plain settings, which need not be right otherwise, and where it stands."""
    if isinstance(settings, list):
        for place, value in enumerate(settings):
            yield from trace_paths(value, (*keys, place))
    if not isinstance(settings, dict):
        return
    path = settings.get("path")
    if settings.get("type") in _TRACE_TYPES and isinstance(path, str):
        yield (*keys, "path"), path
    for key, value in settings.items():
        yield from trace_paths(value, (*keys, key))


def missing_traces(settings: Any, folder: Path) -> Iterator[tuple[Keys, str]]:
    """Where, below plain settings, a `path` names no trace, and why."""
    for keys, path in trace_paths(settings):
        try:
            find_trace(path, folder)
        except WorkloadError as error:
            yield from ((keys, problem) for problem in error.problems)


def _nearest(candidates: list[Path]) -> str:
    for candidate in candidates:
        beside = [each.name for each in candidate.parent.glob("*")]
        for near in difflib.get_close_matches(candidate.name, beside, n=1):
            return f"; did you mean '{near}'?"
    return ""
