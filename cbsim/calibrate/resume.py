"""Resume: what a killed calibration left in a folder, kept if it is of the same plan on the same device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cbsim.calibrate.meta import Meta, read_meta
from cbsim.calibrate.plan import PlanPoint
from cbsim.calibrate.point import Point
from cbsim.calibrate.pointsfile import read_points, write_points
from cbsim.errors import CalibrationError

SOFTWARE = ("torch", "threads", "attention")
"""Of `meta.software` what timings of one file must have in common."""


def check_resumable(out: Path, meta: Meta) -> None:
    """Raise `CalibrationError` if a folder holds timings of another model, device or plan."""
    if not (out / "points.csv").exists():
        return
    if not (out / "meta.json").exists():
        raise CalibrationError(f"{out}: holds points.csv without meta.json; give another --out")
    before, wanted = _identity(read_meta(out / "meta.json")), _identity(meta)
    differing = [
        f"{out}: holds timings of another {name}: {before[name]}, not {wanted[name]}; give another --out"
        for name in wanted
        if name in before and before[name] != wanted[name]
    ]
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


def _identity(meta: Meta) -> dict[str, str]:
    """What timings of one file must have in common, by the name a reader knows it by."""
    model = {name if name == "name" else f"model's {name}": str(value) for name, value in meta.model.items()}
    return {
        "plan": meta.source,
        "device": meta.device,
        "model": model.pop("name"),
        **model,
        "tensor parallelism": str(meta.tensor_parallel),
        **{name: meta.software[name] for name in SOFTWARE if name in meta.software},
    }
