"""Result: what a run gives back, in memory and as a run folder."""

from __future__ import annotations

import hashlib
import html
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from cbsim.base.errors import CbsimError, damage, refusals
from cbsim.base.paths import is_folder, scratch_folder
from cbsim.base.text_files import read_json
from cbsim.config.document import read_document
from cbsim.config.yaml_text import dump_yaml
from cbsim.observers import Observer
from cbsim.observers.audience import write_files
from cbsim.results.measured import MeasureConfig
from cbsim.results.metrics import LATENCIES, Summary
from cbsim.results.output import (
    FILES,
    MANIFEST,
    OBSERVER_FILES,
    check_run_target,
    foreign_files,
    has_file,
    holds,
    observer_files,
)
from cbsim.results.run_files import check_run_file
from cbsim.results.run_log import RunLog
from cbsim.results.slo import Slo
from cbsim.results.table_file import hash_table, read_table, write_tables
from cbsim.results.tables import TABLES, ArrowTable, to_frame

if TYPE_CHECKING:
    import pandas as pd

_DEPENDENCIES = ("matplotlib", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml", "simpy")


def make_manifest(
    seed: int, files: Iterable[Path] = (), specs: Mapping[str, BaseModel] | None = None
) -> dict[str, Any]:
    """Versions, seed, and the SHA-256 of every input: files read, and specs ("model", "gpu") as resolved.

    Raises `CbsimError` naming every file that can't be read.
    """
    inputs = [{"spec": kind, "sha256": hash_spec(spec)} for kind, spec in sorted((specs or {}).items())]
    hashes = hash_files(files)
    # A path that holds from any folder: runs are read elsewhere than where they were made.
    inputs += [{"file": str(path.absolute()), "sha256": digest} for path, digest in hashes.items()]
    return {"versions": dict(_versions()), "seed": seed, "inputs": inputs}


def hash_files(files: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of each file, in order of path. Raises `CbsimError` naming every file that can't be read."""
    hashes: dict[Path, str] = {}
    problems: list[str] = []
    for path in sorted(set(files)):
        try:
            with path.open("rb") as stream:
                hashes[path] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            problems.append(f"{path}: can't be read: {error.strerror}")
    if problems:
        raise CbsimError(*problems)
    return hashes


def hash_folder(folder: Path, *names: str) -> dict[str, str]:
    """SHA-256 of some files in a folder, by name; raises as `hash_files`."""
    return {path.name: digest for path, digest in hash_files(folder / name for name in names).items()}


def hash_spec(spec: BaseModel) -> str:
    """SHA-256 of a section's values, whatever file they came from."""
    return hash_mapping(spec.model_dump(mode="json"))


def hash_mapping(mapping: Any) -> str:
    """SHA-256 of plain data as canonical JSON: keys sorted, no blanks, floats by their shortest digits."""
    text = json.dumps(mapping, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _versions() -> dict[str, str]:
    dependencies = {name: package_version(name) for name in _DEPENDENCIES}
    return {"cbsim": package_version("cbsim"), "python": platform.python_version(), **dependencies}


def package_version(distribution: str) -> str:
    """The version of an installed distribution."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


CONFIG, SUMMARY = "config.yaml", "summary.json"


@dataclass(eq=False, repr=False)
class Result:
    """One run: `summary` and `config` at hand, its tables as DataFrames that are made when first asked for.

    `make_tables` gives the Arrow table of a name in `TABLES` in pieces, none where it wasn't recorded.
    """

    summary: Summary
    config: dict[str, Any]
    """The resolved configuration, as in `config.yaml`."""
    manifest: dict[str, Any]
    make_tables: Callable[[str], Iterator[ArrowTable]]
    observers: Sequence[Observer] = ()
    """Who watched the run, with what they saw; nobody where it was read from a folder."""

    @classmethod
    def from_log(
        cls,
        log: RunLog,
        summary: Summary,
        config: dict[str, Any],
        manifest: dict[str, Any],
        observers: Sequence[Observer] = (),
        measured: RunLog | None = None,
    ) -> Result:
        """The result of a run that has just ended; `measured` is the record that its figures are about."""
        return cls(summary, config, manifest, partial(_from_log, log, measured or log), tuple(observers))

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.config.get("name", "run"))

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures must know: backlog, assumed figures, uncalibrated steps."""
        return list(self.summary["notes"])

    @property
    def slo(self) -> dict[str, Any]:
        """The limits the run was given, seconds, as the experiment's file has them."""
        return self.promised.plain()

    @property
    def promised(self) -> Slo:
        """The same as a value that tells what is met."""
        return Slo.of(self.config.get("slo"))

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row a request in order of arrival; see `cbsim.results.tables.REQUESTS`."""
        return self._frame("requests")

    @cached_property
    def measured(self) -> pd.DataFrame:
        """The requests that the figures are about: all of them, unless the experiment has a `measure`."""
        measure = MeasureConfig.model_validate(self.config.get("measure") or {})
        if not measure:
            return self.requests
        return self.requests.iloc[measure.rows(self.requests["arrival_s"].to_numpy("float64"))]

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row a step in order of (start, replica); see `cbsim.results.tables.STEPS`."""
        return self._frame("steps")

    @cached_property
    def events(self) -> pd.DataFrame:
        """One row an event in the order they happened; see `cbsim.results.tables.EVENT_ROWS`."""
        return self._frame("events")

    @cached_property
    def batches(self) -> pd.DataFrame | None:
        """One row a slice of a step; `None` without `output.batches`; see `cbsim.results.tables.BATCHES`."""
        return None if self.make_table("batches") is None else self._frame("batches")

    @cached_property
    def visits(self) -> pd.DataFrame | None:
        """One row a visit of a request to a replica, see `tables.VISITS`; `None` of former versions' runs."""
        return None if self.make_table("visits") is None else self._frame("visits")

    @cached_property
    def replicas(self) -> pd.DataFrame | None:
        """One row a change of a replica, see `tables.REPLICAS`; `None` where none can change."""
        return None if self.make_table("replicas") is None else self._frame("replicas")

    @cached_property
    def itl(self) -> pd.DataFrame:
        """The distribution of inter-token gaps at evenly spaced quantiles; see `cbsim.results.tables.ITL`."""
        return self._frame("itl")

    def save(self, folder: str | Path) -> Path:
        """Write the run folder, whole or not at all; a former run there is replaced, anything else refused.

        Where `folder` is a link, it stays, and what it points to is written. Returns the folder. Raises
        `CbsimError` if something other than a run is there (`output.check_run_target`), or if it can't
        be written.
        """
        _write_whole(Path(folder), self._write_files)
        return Path(folder)

    def _write_files(self, folder: Path) -> None:
        (folder / CONFIG).write_text(dump_yaml(self.config), encoding="utf-8", newline="")
        names = write_files(self.observers, folder)
        manifest = self.manifest | ({OBSERVER_FILES: names} if names else {})
        (folder / SUMMARY).write_text(_json(self.summary), encoding="utf-8", newline="")
        hashes = {name: _digest(folder / name) for name in (CONFIG, SUMMARY)}
        for name in TABLES:
            digest = write_tables(self.make_tables(name), folder / f"{name}.parquet", name)
            if digest is not None:
                hashes[f"{name}.parquet"] = digest
        (folder / MANIFEST).write_text(_json(manifest | {FILES: hashes}), encoding="utf-8", newline="")

    def make_table(self, name: str) -> ArrowTable | None:
        """The Arrow table of a name in `TABLES`; `None` where it wasn't recorded."""
        import pyarrow as pa

        tables = list(self.make_tables(name))
        return pa.concat_tables(tables) if tables else None

    def _frame(self, name: str) -> pd.DataFrame:
        return to_frame(self.make_table(name))

    def __repr__(self) -> str:
        finished, total = self.summary["num_finished"], self.summary["num_requests"]
        return f"Result({self.name}: {finished} of {total} requests finished)"

    def _repr_html_(self) -> str:
        """What a notebook shows: how many were served, the latencies, seconds, and the notes."""
        import pandas as pd

        summary = self.summary
        rows = {name: summary[name] for name in LATENCIES if summary.get(name)}
        table = pd.DataFrame(rows).T.to_html(float_format=lambda value: f"{value:.4g}")
        rate = summary.get("request_throughput_per_s")
        head = [f"{self!r}", *([f"{rate:.3g} requests/s"] if rate else [])]
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in summary.get("notes", ()))
        return f"<p><b>{html.escape(', '.join(head))}</b></p>{table}<ul>{notes}</ul>"


def load_run(folder: str | Path) -> Result:
    """The result in a run folder; its tables are read when first asked for.

    Raises `CbsimError` if it is no run folder or a file of it is missing or damaged.
    """
    source = Path(folder)
    if not os.path.exists(source):  # noqa: PTH110 - a name that is too long is nowhere, and no error
        raise CbsimError(f"{source}: no such folder; allowed: a run folder")
    if not holds(source, "run"):
        why = f"its {MANIFEST} is no run's" if has_file(source, MANIFEST) else f"it has no {MANIFEST}"
        raise CbsimError(f"{source}: is not a run folder ({why})")
    summary = load_summary(source)
    with _telling_damage(source):
        manifest = read_json(source / MANIFEST)
        check_run_file(source / MANIFEST, manifest)
        config = read_document(source / CONFIG).data
        check_run_file(source / CONFIG, config)
    for name in (SUMMARY, CONFIG):
        with _telling_damage(source):
            digest = _digest(source / name)
        check_hash(source / name, manifest, digest)
    return Result(summary, config, manifest, partial(_from_folder, source, manifest, summary["num_requests"]))


def load_summary(folder: Path) -> Summary:
    """The figures of a run folder alone. Raises `CbsimError` as `load_run` does."""
    with _telling_damage(folder):
        summary: Summary = read_json(folder / SUMMARY)
        check_run_file(folder / SUMMARY, summary)
    return summary


@contextmanager
def _telling_damage(folder: Path) -> Iterator[None]:
    """Say of what is wrong with a file of a run folder that it is one."""
    try:
        yield
    except CbsimError as error:
        told = (problem.removeprefix(f"{folder}{os.sep}") for problem in error.problems)
        raise CbsimError(*(f"{folder}: is a damaged run folder: {each}" for each in told)) from None


def is_whole_run(folder: Path) -> bool:
    """Whether a run folder has all its files, each of them readable as far as a table's footer tells."""
    import pyarrow.parquet as pq

    try:
        result = load_run(folder)
        for name in _table_files(folder):
            pq.read_metadata(folder / name)
    except CbsimError:
        return False
    except damage():
        return False
    has_all = all(has_file(folder, name) for name in observer_files(folder))
    return has_all and "goodput_per_s" in result.summary


def remove_damaged_run(folder: Path) -> None:
    """Make room for a run where a damaged one lies, of whose files none is of another origin."""
    if is_folder(folder) and not holds(folder, "run") and not foreign_files(folder):
        shutil.rmtree(folder)


def copy_run(source: Path, folder: Path, changed: dict[str, Any]) -> None:
    """Write a run folder again elsewhere, with some keys `changed` in its configuration and its manifest.

    Raises `CbsimError` as `load_run` does for the source, and as `Result.save` for the copy.
    """
    run = load_run(source)

    def write(copy: Path) -> None:
        for name in (SUMMARY, *_table_files(source), *observer_files(source)):
            shutil.copyfile(source / name, copy / name)
        (copy / CONFIG).write_text(dump_yaml(run.config | changed), encoding="utf-8", newline="")
        hashes = known_hashes(run.manifest)
        hashes |= {CONFIG: _digest(copy / CONFIG)} if hashes else {}
        (copy / MANIFEST).write_text(
            _json(run.manifest | changed | {FILES: hashes}), encoding="utf-8", newline=""
        )

    _write_whole(folder, write)


def _table_files(folder: Path) -> list[str]:
    """The names of the tables that a run folder must have, and of the optional ones that it has."""
    return [
        f"{name}.parquet"
        for name, kind in TABLES.items()
        if not kind.is_optional or (folder / f"{name}.parquet").exists()
    ]


def _from_log(log: RunLog, measured: RunLog, name: str) -> Iterator[ArrowTable]:
    """A table of all that happened, but for the distribution of gaps, which is a figure."""
    return TABLES[name].tables(measured if name == "itl" else log)


def _from_folder(
    folder: Path, manifest: Mapping[str, Any], num_requests: int, name: str
) -> Iterator[ArrowTable]:
    """A table of a run whose figures are about so many requests, at least."""
    path = folder / f"{name}.parquet"
    if path.name not in _table_files(folder):
        return
    table = read_table(path, name)
    check_hash(path, manifest, hash_table(table, name))
    if name == "requests" and len(table) < num_requests:
        raise CbsimError(f"{path}: got {len(table):,} rows; expected {num_requests:,}, as in {SUMMARY}")
    yield table


def check_hash(path: Path, manifest: Mapping[str, Any], digest: str) -> None:
    """Raise `CbsimError` if the hash of a file is not the one that the manifest of its folder has, if any."""
    if known_hashes(manifest).get(path.name, digest) != digest:
        raise CbsimError(
            f"{path}: is not the file that was written here: altered since, or of another run; allowed: that "
            f"file, or any where the manifest has no hash of it"
        )


SHA256 = "sha256"
"""The key, in a file of plain data, of the hash of all else that it holds."""


def sealed(told: Mapping[str, Any]) -> str:
    """Plain data as the text of a JSON file, with their hash."""
    plain = json.loads(_json(dict(told)))
    return _json(plain | {SHA256: hash_mapping(plain)})


def check_seal(path: Path, told: dict[str, Any]) -> None:
    """Raise `CbsimError` if a file's hash is not that of all else in it; there is none of former versions."""
    known = told.pop(SHA256, None)
    if known is not None and known != hash_mapping(told):
        raise CbsimError(f"{path}: was altered since it was written; the same command writes it anew")


def known_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The hashes of files in a manifest; none in those of former versions."""
    hashes = manifest.get(FILES) if isinstance(manifest, dict) else None
    return {**hashes} if isinstance(hashes, dict) else {}


def _digest(path: Path) -> str:
    """SHA-256 of a file; of a summary, of all but what the simulation took, which no two runs share."""
    if path.name == SUMMARY:
        summary = read_json(path)
        try:
            return hash_mapping({key: value for key, value in summary.items() if key != "simulation"})
        except ValueError as error:
            raise CbsimError(f"{path}: got NaN or an infinite number; expected finite ones") from error
    return hash_files([path])[path]


def _write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Have a run folder's files written into an empty folder, which then takes its place; see `save`."""
    check_run_target(folder)
    target = Path(os.path.realpath(folder))
    with refusals(folder, "written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target) as scratch:
            written = scratch / "new"
            written.mkdir()
            write(written)
            _replace_folder(written, target, former=scratch / "former")


def _replace_folder(written: Path, target: Path, former: Path) -> None:
    """Put one folder in the place of another: `former` holds the old one until the new one stands."""
    if not target.exists():
        written.rename(target)
        return
    target.rename(former)
    try:
        written.rename(target)
    except OSError:
        former.rename(target)
        raise
    shutil.rmtree(former)


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
