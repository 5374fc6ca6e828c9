"""Profile folder: points, their origin and the form fitted to them, written together or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cbsim.base.errors import CalibrationError, refusals
from cbsim.base.paths import scratch_folder
from cbsim.cost.costfile import CostFile
from cbsim.lab.calibrate.accuracy import Report
from cbsim.lab.calibrate.fit import fit_cost_file
from cbsim.lab.calibrate.point import Point
from cbsim.lab.calibrate.pointsfile import Meta, read_meta, read_points, save_meta, write_points
from cbsim.lab.calibrate.timing_plan import PlanPoint

POINTS, META, COST = "points.csv", "meta.json", "cost.json"
LEFT_OUT, UNDER_WAY = "left_out.csv", ".under-way"
SOFTWARE = {
    "torch": "version of torch",
    "threads": "number of threads",
    "attention": "attention backend",
    "layers": "kind of kernels",
}
"""Of `meta.software` what timings of one file must have in common, and what a reader calls it."""


def check_profile_target(folder: Path, meta: Meta) -> None:
    """Raise `CalibrationError` if points of another origin are there, which would be lost."""
    before = _origin(folder)
    if before is not None:
        figures = {
            "model": (before.model["name"], meta.model["name"]),
            "device": (before.device, meta.device),
            "parallelism": (before.parallel, meta.parallel),
            "source": (before.source, meta.source),
        }
        _refuse_others(folder, "points", figures)


def check_resumable(folder: Path, meta: Meta) -> None:
    """Raise `CalibrationError` if timings of another model, device or plan are there."""
    before = _origin(folder)
    if before is not None:
        figures: dict[str, tuple[object, object]] = {
            "model": (_model(before, meta), _model(meta, before)),
            "plan": (before.source, meta.source),
            "device": (before.device, meta.device),
            "parallelism": (before.parallel, meta.parallel),
        }
        for name, said in SOFTWARE.items():
            if name in before.software and name in meta.software:
                figures[said] = before.software[name], meta.software[name]
        _refuse_others(folder, "timings", figures)


def resume(folder: Path, meta: Meta, planned: Sequence[PlanPoint]) -> list[Point]:
    """The rows that a killed run of the same plan left there; a torn last one is dropped.

    Raises `CalibrationError` if they are of something else, `OSError` if the folder can't be written.
    """
    check_resumable(folder, meta)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / POINTS
    if not path.exists():
        return []
    written = path.read_bytes()
    whole_lines = written[: written.rfind(b"\n") + 1]
    if whole_lines.count(b"\n") < 2:
        path.unlink()
        return []
    if whole_lines != written:
        path.write_bytes(whole_lines)
    points = read_points(path)
    keys = {point.order: point.timed(0.0).key for point in planned}
    for point in points:
        if point.key != keys.get(point.order):
            raise CalibrationError(f"{path}: row {point.order} is of another plan; give another --out")
    return points


def write_profile(
    folder: Path, points: Sequence[Point], meta: Meta, seed: int = 0
) -> tuple[CostFile, Report]:
    """Fit points and write them with `meta.json` and `cost.json`.

    Points are fitted as they stand in the file, rounded. Raises `CalibrationError` if they can't be fitted,
    the folder holds others or can't be written; nothing in it has changed then.
    """
    with written_points(folder, points, meta) as scratch:
        return _fit_and_save(scratch, meta, seed)


@contextmanager
def written_points(folder: Path, points: Sequence[Point], meta: Meta) -> Iterator[Path]:
    """A folder with the points and `meta.json`, to which the caller adds `cost.json`; then all of it is moved
    to `folder`.
    """
    check_profile_target(folder, meta)
    with refusals(folder, "written", CalibrationError):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with scratch_folder(folder / POINTS) as scratch:
                write_points(scratch / POINTS, points)
                save_meta(meta, scratch / META)
                yield scratch
                # Points last: a folder with them and without `meta.json` belongs to nobody.
                for name in (META, COST, POINTS):
                    (scratch / name).replace(folder / name)
        finally:
            if is_new:
                with suppress(OSError):  # it isn't empty, as it should be
                    folder.rmdir()


def fit_profile(folder: Path, meta: Meta, seed: int = 0) -> tuple[CostFile, Report]:
    """Fit the points that a folder holds and add `cost.json`; raises as `write_profile` does."""
    with refusals(folder, "written", CalibrationError):
        return _fit_and_save(folder, meta, seed)


def _fit_and_save(folder: Path, meta: Meta, seed: int) -> tuple[CostFile, Report]:
    cost, report = fit_cost_file(read_points(folder / POINTS), meta, folder / POINTS, seed)
    cost.save(folder / COST)
    return cost, report


def _origin(folder: Path) -> Meta | None:
    """Where the points in a folder come from, None without any; `CalibrationError` if nothing says so."""
    with refusals(folder, "written", CalibrationError):
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if POINTS not in names:
        return None
    if META not in names:
        raise CalibrationError(f"{folder}: holds {POINTS} without {META}; give another --out")
    return read_meta(folder / META)


def _refuse_others(folder: Path, held: str, figures: Mapping[str, tuple[object, object]]) -> None:
    """Raise `CalibrationError` with a line for each figure that is another one in the folder."""
    problems = [
        f"{folder}: holds {held} of another {name}: {old}, not {new}; give another --out"
        for name, (old, new) in figures.items()
        if old != new
    ]
    if problems:
        raise CalibrationError(*problems)


def _model(meta: Meta, other: Meta) -> str:
    """A model by its name, or by what differs from another of the same name."""
    if meta.model["name"] != other.model["name"]:
        return str(meta.model["name"])
    figures = (f"{key} {value}" for key, value in meta.model.items() if other.model.get(key) != value)
    return f"{meta.model['name']} with {', '.join(figures)}"
