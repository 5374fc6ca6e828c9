"""Where a trace file is: beside the experiment, in the current folder, or among the bundled workloads."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cbsim.base.errors import WorkloadError
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
        from cbsim.base.paths import data_folder

        candidates = list(dict.fromkeys([folder / wanted, wanted, data_folder("workloads") / wanted]))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    for candidate in candidates:
        if candidate.is_dir():
            raise WorkloadError(f"{candidate}: got a folder; allowed: a trace file")
    raise WorkloadError(f"{path}: no such file{_nearest(candidates)}; looked in {_folders(candidates)}")


def missing_traces(settings: Any, folder: Path, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """Where, below plain settings that need not be right otherwise, a `path` names no trace, and why."""
    if isinstance(settings, list):
        for place, value in enumerate(settings):
            yield from missing_traces(value, folder, (*keys, place))
    if not isinstance(settings, dict):
        return
    path = settings.get("path")
    if settings.get("type") in _TRACE_TYPES and isinstance(path, str):
        try:
            find_trace(path, folder)
        except WorkloadError as error:
            yield from (((*keys, "path"), problem) for problem in error.problems)
    for key, value in settings.items():
        yield from missing_traces(value, folder, (*keys, key))


def _nearest(candidates: list[Path]) -> str:
    for candidate in candidates:
        if candidate.parent.is_dir():
            names = [each.name for each in candidate.parent.iterdir()]
            near = difflib.get_close_matches(candidate.name, names, n=1)
            if near:
                return f"; did you mean '{near[0]}'?"
    return ""


def _folders(candidates: list[Path]) -> str:
    return ", ".join(dict.fromkeys(str(candidate.parent.resolve()) for candidate in candidates))
