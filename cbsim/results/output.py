"""Output: how folders of runs, sweeps and so on are known, so that nobody's files are written over."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cbsim.base.errors import CbsimError, damage, refusals
from cbsim.base.paths import is_file, is_folder
from cbsim.base.text_files import read_json
from cbsim.results.tables import TABLES

MANIFEST, ANSWER, TUNE_ANSWER, BENCH = "manifest.json", "capacity.json", "tune.json", "bench.json"
_MARKS = {
    "run": (MANIFEST, {"versions", "seed", "inputs"}),
    "capacity": (ANSWER, {"slo", "plan", "contenders"}),
    "tune": (TUNE_ANSWER, {"slo", "objective", "best_config"}),
    "scaling study": (BENCH, {"machine", "measured"}),
}
"""Kind of folder -> the file that marks one, and the keys that it has."""
OBSERVER_FILES = "observer_files"
"""The manifest's key for the names of files that observers have written beside the run's own."""
FILES = "files"
"""The manifest's key for the SHA-256 of files beside it, by name; of a run's tables, of what they hold."""
REPORT = "report.html"
REPORT_MARK = '<meta name="generator" content="cbsim">'
"""What tells a report from any other page."""
PICTURE_MAKER = "cbsim"
_PICTURE_MARKS = {".png": b"Software\0cbsim", ".svg": b"<dc:title>cbsim</dc:title>"}
"""What tells a picture by cbsim from any other: the name of its maker, as PNG and SVG keep it."""
_RUN_PICTURES = ("latency_cdfs", "timeline", "utilization")
RUN_FILES = {
    *("config.yaml", MANIFEST, "summary.json", "timeline.json.gz"),
    *(f"{name}.parquet" for name in TABLES),
    *(f"{name}{suffix}" for name in _RUN_PICTURES for suffix in (".png", ".svg")),
}
"""What lies in a run folder, but for its report and the files of observers."""
_SWEEP_PICTURES = (*_RUN_PICTURES, "settings", "pareto")
POINTS = "points"
"""Where a sweep keeps its runs, and a capacity the figures of its own."""
_POINT = re.compile(r"[0-9a-f]{16}|\.[0-9a-f]{16}\.[^.]*\.partial")
"""What lies in the `points` of a sweep: run folders by their keys, and what killed processes left of some."""
_BEFORE_ANSWER = {POINTS, "curve.csv", "curve.parquet"}
"""What a capacity writes before its answer."""
_PROBE = re.compile(r"[0-9a-f]{16}\.json|\.[0-9a-f]{16}\.json\..*\.partial")
"""What lies in the `points` of a capacity or a tune."""
_PARTIAL = re.compile(r"^\.(.*?)(\.[0-9]+)?\.partial$")
"""What killed processes left of a file."""
_LITTER = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini")
"""What file managers leave in any folder that somebody has looked into: it is nobody's."""
_MARK_WITHIN = 1000
"""Bytes of a file in which its mark stands."""


def holds(folder: Path, kind: str) -> bool:
    """Whether a "run", a "capacity", a "tune" or a "scaling study" was written there, or a "sweep" has begun.

    A sweep has points, or a table of them.
    """
    if kind != "sweep":
        name, keys = _MARKS[kind]
        return keys <= _read(folder / name).keys()
    points = _names(folder / POINTS)
    if points is None:
        return _has_sweep_table(folder)
    if not all(map(_POINT.fullmatch, points)):
        return False
    return bool(points) or _has_sweep_table(folder) or _names(folder) == [POINTS]


def has_file(folder: Path, name: str) -> bool:
    """Whether a folder holds a file; an impossible folder holds none."""
    return is_file(folder / name)


def foreign_files(folder: Path) -> list[str]:
    """The names in a folder, sorted, that no run writes into its own."""
    observed = observer_files(folder)
    return sorted(
        path.name
        for path in folder.iterdir()
        if not (_is_of_run(path) or path.name in observed or _LITTER.fullmatch(path.name))
    )


def observer_files(folder: Path) -> list[str]:
    """Names of the files that observers of the run there have written, by its manifest."""
    names = _read(folder / MANIFEST).get(OBSERVER_FILES)
    if not isinstance(names, list):
        return []
    return [name for name in names if isinstance(name, str) and Path(name).name == name]


def check_run_target(folder: Path) -> None:
    """Raise `CbsimError` unless nothing, an empty folder or a run is where a run is to go.

    A run beside which there lie files of another origin is not replaced, for they would be lost.
    """
    if _is_free(folder):
        return
    if not holds(folder, "run"):
        raise other_origin(folder, "run")
    foreign = foreign_files(folder)
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise CbsimError(
            f"{folder}: holds '{foreign[0]}'{more}, which no run has written; name another folder, or move it"
        )


def check_target(folder: Path, kind: str) -> None:
    """Raise `CbsimError` unless nothing, an empty folder or one of its kind is where one is to go.

    `kind` is "sweep", "capacity", "tune" or "scaling study"; a search for a capacity, or for the best
    settings, may have begun there.
    """
    if _is_free(folder):
        return
    may_have_begun = kind == "tune"
    if kind == "capacity":
        may_have_begun = all(map(_is_of_capacity, _names(folder) or ()))
    points = _names(folder / POINTS) if may_have_begun else None
    is_other = any(holds(folder, other) for other in _MARKS if other != kind)
    has_begun = bool(points) and not is_other and all(map(_PROBE.fullmatch, points or ()))
    if has_begun or (holds(folder, kind) and not (kind == "sweep" and holds(folder, "run"))):
        return
    for other in (*_MARKS, "sweep"):
        if holds(folder, other):
            raise CbsimError(f"{folder}: holds a {other}; name another folder for the {kind}")
    raise other_origin(folder, kind)


def check_report_target(path: Path) -> None:
    """Raise `CbsimError` if a file stands there that is no report, or the file can't be written."""
    if not _exists(path):
        return
    if is_folder(path):
        raise CbsimError(f"{path}: is a folder; expected the name of a file")
    if not is_report(path):
        raise other_origin(path, "report", "file")


def is_report(path: Path) -> bool:
    """Whether a file is a report of cbsim's."""
    return REPORT_MARK.encode() in _beginning(path)


def drawn_from_sweep(folder: Path) -> list[Path]:
    """What cbsim has made of the table of the sweep there: pictures, intervals and the report.

    Files of the same names that somebody else has made are left out.
    """
    pictures = [folder / f"{name}{suffix}" for name in _SWEEP_PICTURES for suffix in _PICTURE_MARKS]
    intervals = [folder / "intervals.csv", folder / "intervals.parquet"]
    found = [path for path in pictures if _PICTURE_MARKS[path.suffix] in _beginning(path)]
    for path in intervals:
        content = _beginning(path, size=-1)
        if b"num_replicates" in content and b"num_requests.low" in content:
            found.append(path)
    return [*found, folder / REPORT] if is_report(folder / REPORT) else found


def other_points(folder: Path, points: Iterable[str]) -> list[Path]:
    """The runs in a sweep's folder that belong to none of its points: those of former sweeps."""
    names = _names(folder / POINTS) or []
    others = (folder / POINTS / name for name in sorted({*names} - {*points}) if _POINT.fullmatch(name))
    return [path for path in others if holds(path, "run")]


def _beginning(path: Path, size: int = _MARK_WITHIN) -> bytes:
    """The first bytes of a file, all of them for -1; none if it can't be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(size)
    except OSError:
        return b""


def other_origin(path: Path, expected: str, wanted: str = "folder") -> CbsimError:
    """The error for a path at which something other than what is `expected` stands and would be lost."""
    kind = "folder" if is_folder(path) else "file"
    told = f"a {kind} that is no {expected} stands there; name another {wanted}, or remove it"
    return CbsimError(f"{path}: {told}")


def _is_free(folder: Path) -> bool:
    """Whether nothing or an empty folder is there. Raises `CbsimError` if no folder can be."""
    if not _exists(folder):
        return True
    with refusals(folder, "read"):
        return is_folder(folder) and not any(not _LITTER.fullmatch(path.name) for path in folder.iterdir())


def _exists(path: Path) -> bool:
    """Whether something is there. Raises `CbsimError` if nothing can be, for its name or one above it."""
    with refusals(path, "written"), suppress(FileNotFoundError):
        path.stat()
        return True
    return False


def _is_of_run(path: Path) -> bool:
    if is_folder(path):
        return False
    if path.name == REPORT:
        return is_report(path)
    name = path.name
    return name in RUN_FILES or _PARTIAL.sub(r"\1", name) in RUN_FILES


def _is_of_capacity(name: str) -> bool:
    """Whether a capacity has what is called so before its answer is there, killed processes' included."""
    partial = _PARTIAL.match(name)
    return name in _BEFORE_ANSWER or (partial is not None and partial[1] in {ANSWER, *_BEFORE_ANSWER})


def _names(folder: Path) -> list[str] | None:
    """What lies in a folder, litter apart; `None` if it can't be read."""
    try:
        return [path.name for path in folder.iterdir() if not _LITTER.fullmatch(path.name)]
    except OSError:
        return None


def _has_sweep_table(folder: Path) -> bool:
    import pyarrow.parquet as pq

    try:
        return {"point", "error"} <= set(pq.read_schema(folder / "table.parquet").names)
    except damage():
        return False


def _read(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; nothing if it can't be read or holds something else."""
    try:
        return read_json(path)
    except CbsimError:
        return {}
