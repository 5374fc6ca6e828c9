"""Profile folder: points, their origin and the form fitted to them, written together or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cbsim.base.errors import CalibrationError
from cbsim.base.scratch_folder import scratch_folder
from cbsim.cost.costfile import CostFile
from cbsim.lab.calibrate.fit import Report, fit_cost_file
from cbsim.lab.calibrate.meta import Meta, read_meta, save_meta
from cbsim.lab.calibrate.point import Point
from cbsim.lab.calibrate.pointsfile import read_points, write_points

POINTS, META, COST = "points.csv", "meta.json", "cost.json"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise `CalibrationError` for what the system says against writing there."""
    try:
        yield
    except OSError as error:
        raise CalibrationError(f"{folder}: can't be written: {error.strerror or error}") from error


def origin_of(folder: Path) -> Meta | None:
    """Where the points in a folder come from, None without any; `CalibrationError` if nothing says so."""
    with writing(folder):
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if POINTS not in names:
        return None
    if META not in names:
        raise CalibrationError(f"{folder}: holds {POINTS} without {META}; give another --out")
    return read_meta(folder / META)


def check_profile_target(folder: Path, meta: Meta) -> None:
    """Raise `CalibrationError` if points of another origin are there, which would be lost."""
    before = origin_of(folder)
    if before is None:
        return
    pairs = {
        "model": (before.model.get("name"), meta.model.get("name")),
        "device": (before.device, meta.device),
        "tensor parallelism": (before.tensor_parallel, meta.tensor_parallel),
        "source": (before.source, meta.source),
    }
    differing = [
        f"{folder}: holds points of another {name}: {old}, not {new}; give another --out"
        for name, (old, new) in pairs.items()
        if old != new
    ]
    if differing:
        raise CalibrationError(*differing)


def write_profile(
    folder: Path, points: Sequence[Point], meta: Meta, seed: int = 0
) -> tuple[CostFile, Report]:
    """Fit points and write them with `meta.json` and `cost.json`.

    Points are fitted as they stand in the file, rounded. Raises `CalibrationError` if they can't be fitted,
    the folder holds others or can't be written; nothing in it has changed then.
    """
    check_profile_target(folder, meta)
    with writing(folder):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with scratch_folder(folder / POINTS) as scratch:
                write_points(scratch / POINTS, points)
                cost, report = fit_cost_file(read_points(scratch / POINTS), meta, scratch / POINTS, seed)
                save_meta(meta, scratch / META)
                cost.save(scratch / COST)
                for name in (POINTS, META, COST):
                    (scratch / name).replace(folder / name)
        finally:
            if is_new:
                with suppress(OSError):  # it isn't empty, as it should be
                    folder.rmdir()
    return cost, report


def fit_profile(folder: Path, meta: Meta, seed: int = 0) -> tuple[CostFile, Report]:
    """Fit the points that a folder holds and add `cost.json`; raises as `write_profile` does."""
    with writing(folder):
        cost, report = fit_cost_file(read_points(folder / POINTS), meta, folder / POINTS, seed)
        cost.save(folder / COST)
    return cost, report
