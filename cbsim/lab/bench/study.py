"""A scaling study measured point by point, what was measured kept in its folder, the time left told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cbsim
from cbsim.base.errors import CbsimError
from cbsim.base.paths import write_text
from cbsim.base.text_files import read_json
from cbsim.lab.bench.scaling import ScalePoint
from cbsim.lab.bench.work_timing import Machine, Measured, in_fresh_process, measure_scaled, num_runs
from cbsim.results.output import BENCH, check_target, holds
from cbsim.results.result import hash_files, hash_mapping
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_cost_model, make_workload


@dataclass(frozen=True, slots=True)
class Row:
    """A point and what became of it."""

    point: ScalePoint
    measured: Measured | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StudyProgress:
    """How far a study is."""

    num_points: int
    """Different points; one that stands on two axes counts once."""
    num_done: int
    """Points measured or failed, those that were there already included."""
    num_reused: int
    current: ScalePoint | None
    """The point that is measured now; `None` at the end."""
    time_left_s: float | None
    """Wall-clock seconds to go at the pace so far; `None` while there is none."""


class StudyInterrupted(KeyboardInterrupt):
    """Somebody stopped a study; `rows` is what it has measured."""

    def __init__(self, rows: Sequence[Row], text: str) -> None:
        super().__init__(text)
        self.rows = rows


@dataclass(frozen=True, slots=True)
class Entry:
    """One measured point: its figures, and the seconds that measuring it took on the wall."""

    measured: Measured
    wall_s: float


class Ledger:
    """Keeps what was measured in a folder's `bench.json`, written anew after each point.

    A figure holds for the code, the machine, the settings and the files it was measured with: anything else
    makes another key. Raises `CbsimError` if something other than a study is in the folder.
    """

    def __init__(self, folder: Path, machine: Machine) -> None:
        check_target(folder, "scaling study")
        self.folder = folder
        self.entries: dict[str, Entry] = _read(folder / BENCH) if holds(folder, "scaling study") else {}
        """What was measured, by key."""
        self._machine = machine
        self._code = hash_mapping(_code_hashes())
        self._hashes: dict[Path, str] = {}

    def key(self, point: ScalePoint) -> str:
        """What a point's figures depend on, as a hash. Raises `CbsimError` for files that can't be read."""
        experiment = Experiment.from_mapping(point.settings)
        files = [*make_workload(experiment).inputs(), *make_cost_model(experiment).inputs()]
        self._hashes |= hash_files(path for path in files if path not in self._hashes)
        machine = asdict(self._machine) | {"load": None}
        return hash_mapping([self._code, machine, point.settings, [self._hashes[path] for path in files]])

    def put(self, key: str, entry: Entry) -> None:
        """Keep what was measured. Raises `CbsimError` if it can't be written."""
        self.entries[key] = entry
        measured = {key: asdict(entry) for key, entry in self.entries.items()}
        content = {"machine": asdict(self._machine), "measured": measured}
        write_text(self.folder / BENCH, json.dumps(content, indent=2) + "\n")


def measure_study(
    points: Sequence[ScalePoint], ledger: Ledger, progress: Callable[[StudyProgress], None] | None = None
) -> list[Row]:
    """A row a point, in order: each in a process of its own, or as the ledger has it.

    A point that fails leaves its error in its row. Raises `StudyInterrupted` for Ctrl-C, after which a second
    call goes on, and `CbsimError` if the ledger can't be written.
    """
    entries, errors = ledger.entries, dict[str, str]()
    keys = [ledger.key(point) for point in points]
    distinct = {key: points[keys.index(key)] for key in keys}
    # The cheapest first: they say how long the others will take.
    missing = [(key, point) for key, point in distinct.items() if key not in entries]
    missing.sort(key=lambda item: item[1].num_requests)
    num_points, num_reused = len(distinct), len(distinct) - len(missing)

    def tell(num_measured: int, current: ScalePoint | None) -> None:
        if progress is not None:
            known = [entries[key] for key in distinct if key in entries]
            left_s = time_left_s([point for _, point in missing[num_measured:]], known) if current else None
            progress(StudyProgress(num_points, num_reused + num_measured, num_reused, current, left_s))

    def rows() -> list[Row]:
        measured = {key: entry.measured for key, entry in entries.items()}
        return [Row(p, measured.get(key), errors.get(key)) for p, key in zip(points, keys, strict=True)]

    try:
        for place, (key, point) in enumerate(missing):
            tell(place, point)
            began = time.perf_counter()
            try:
                measured = in_fresh_process(measure_scaled, point.settings, point.small)
            except Exception as error:
                errors[key] = (
                    str(error) if isinstance(error, CbsimError) else f"{type(error).__name__}: {error}"
                )
            else:
                ledger.put(key, Entry(measured, time.perf_counter() - began))
    except KeyboardInterrupt:
        num_kept = sum(key in entries for key in distinct)
        kept = f"{num_kept} of {num_points} points kept in {ledger.folder}; the same call goes on"
        raise StudyInterrupted([row for row in rows() if row.measured is not None], kept) from None
    tell(len(missing), None)
    return rows()


def time_left_s(points: Sequence[ScalePoint], measured: Sequence[Entry]) -> float | None:
    """Wall-clock seconds that points will take, from what a process costs anyway and the mean pace."""
    if not measured:
        return None
    fixed_s = min(entry.wall_s - entry.measured.cpu_s * num_runs(entry.measured.cpu_s) for entry in measured)
    num_requests = sum(entry.measured.num_requests for entry in measured)
    s_per_request = sum(entry.measured.cpu_s for entry in measured) / num_requests
    run_s = [point.num_requests * s_per_request for point in points]
    return sum(max(0.0, fixed_s) + each_s * num_runs(each_s) for each_s in run_s)


def _read(path: Path) -> dict[str, Entry]:
    """The entries of a file; none of one that is damaged, whose points are then measured anew."""
    try:
        read: Mapping[str, Any] = read_json(path)["measured"]
        return {
            key: Entry(Measured(**entry["measured"]), float(entry["wall_s"])) for key, entry in read.items()
        }
    except (CbsimError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _code_hashes() -> list[str]:
    """The hash of every file of the package: figures of other code are not mixed with this one's."""
    root = Path(cbsim.__file__).parent
    return list(hash_files(path for path in root.rglob("*.py") if "_data" not in path.parts).values())
