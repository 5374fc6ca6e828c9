"""Resume: what a killed calibration left in a folder, kept if it is of the same plan on the same device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cbsim.base.errors import CalibrationError
from cbsim.lab.calibrate.meta import Meta
from cbsim.lab.calibrate.point import Point
from cbsim.lab.calibrate.pointsfile import read_points, write_points
from cbsim.lab.calibrate.profile_folder import origin_of
from cbsim.lab.calibrate.timing_plan import PlanPoint

SOFTWARE = {"torch": "version of torch", "threads": "number of threads", "attention": "attention backend"}
"""Of `meta.software` what timings of one file must have in common, and what a reader calls it."""


def check_resumable(out: Path, meta: Meta) -> None:
    """Raise `CalibrationError` if a folder holds timings of another model, device or plan."""
    saved = origin_of(out)
    if saved is None:
        return
    before, wanted = _identity(saved), _identity(meta)
    differs = [
        f"{name}: {before[name]}, not {wanted[name]}"
        for name in wanted
        if name in before and before[name] != wanted[name]
    ]
    if saved.model != meta.model:
        differs.insert(0, f"model: {_model(saved, meta)}, not {_model(meta, saved)}")
    differing = [f"{out}: holds timings of another {what}; give another --out" for what in differs]
    if differing:
        raise CalibrationError(*differing)


def resume(out: Path, meta: Meta, planned: Sequence[PlanPoint]) -> list[Point]:
    """The rows that are there already; a torn last one is dropped.

    Raises `CalibrationError` if they are of something else, `OSError` if the folder can't be written.
    """
    check_resumable(out, meta)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "points.csv"
    if not path.exists():
        return []
    if path.read_text(encoding="utf-8").count("\n") < 2:
        path.unlink()
        return []
    points = read_points(path, drop_torn_line=True)
    by_order = {point.order: point for point in planned}
    for point in points:
        expected = by_order.get(point.order)
        if expected is None or not _is_timing_of(point, expected):
            raise CalibrationError(f"{path}: row {point.order} is of another plan; give another --out")
    write_points(path, points)
    return points


def _is_timing_of(point: Point, planned: PlanPoint) -> bool:
    contexts = planned.contexts
    decodes = (len(contexts), sum(contexts), max(contexts, default=0))
    return point.key == (planned.op, planned.chunks, *decodes, planned.tokens, planned.num_logits)


def _model(meta: Meta, other: Meta) -> str:
    """A model by its name, or by what differs from another of the same name."""
    if meta.model["name"] != other.model["name"]:
        return str(meta.model["name"])
    figures = (f"{key} {value}" for key, value in meta.model.items() if other.model.get(key) != value)
    return f"{meta.model['name']} with {', '.join(figures)}"


def _identity(meta: Meta) -> dict[str, str]:
    """What timings of one file must have in common, by the name a reader knows it by."""
    software = {said: meta.software[name] for name, said in SOFTWARE.items() if name in meta.software}
    return {
        "plan": meta.source,
        "device": meta.device,
        "tensor parallelism": str(meta.tensor_parallel),
        **software,
    }
