"""The folder of a scaling study: what has been measured so far, so that a second call goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cbsim
from cbsim.base.paths import write_text
from cbsim.lab.bench.machine import Machine
from cbsim.lab.bench.scaling import ScalePoint
from cbsim.lab.bench.work_timing import Measured
from cbsim.results.manifest import hash_files, hash_mapping
from cbsim.results.output import BENCH, check_bench_target, is_bench_folder
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_cost_model, make_workload


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
        check_bench_target(folder)
        self.folder = folder
        self._machine = machine
        self._code = hash_mapping([digest for _, digest in _code_hashes()])
        self._hashes: dict[Path, str] = {}
        self._entries: dict[str, Entry] = {}
        if is_bench_folder(folder):
            self._entries = _read(folder / BENCH)

    def key(self, point: ScalePoint) -> str:
        """What a point's figures depend on, as a hash. Raises `CbsimError` for files that can't be read."""
        experiment = Experiment.from_mapping(point.settings)
        files = [*make_workload(experiment).inputs(), *make_cost_model(experiment).inputs()]
        self._hashes |= hash_files(path for path in files if path not in self._hashes)
        machine = asdict(self._machine) | {"load": None}
        return hash_mapping([self._code, machine, point.settings, [self._hashes[path] for path in files]])

    def get(self, key: str) -> Entry | None:
        """What was measured under a key."""
        return self._entries.get(key)

    def forget(self) -> None:
        """Measure everything anew."""
        self._entries = {}

    def put(self, key: str, entry: Entry) -> None:
        """Keep what was measured. Raises `CbsimError` if it can't be written."""
        self._entries[key] = entry
        measured = {key: asdict(entry) for key, entry in self._entries.items()}
        content = {"machine": asdict(self._machine), "measured": measured}
        write_text(self.folder / BENCH, json.dumps(content, indent=2) + "\n")


def _read(path: Path) -> dict[str, Entry]:
    """The entries of a file; none of one that is damaged, whose points are then measured anew."""
    try:
        read: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["measured"]
        return {
            key: Entry(Measured(**entry["measured"]), float(entry["wall_s"])) for key, entry in read.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _code_hashes() -> list[tuple[str, str]]:
    """Every file of the package with its hash: figures of other code are not mixed with this one's."""
    root = Path(cbsim.__file__).parent
    hashes = hash_files(path for path in root.rglob("*.py") if "_data" not in path.parts)
    return [(path.relative_to(root).as_posix(), digest) for path, digest in hashes.items()]
