"""The capacity folder: `capacity.json` with the answer, `curve.parquet` and `curve.csv` with every run."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from cbsim.base.errors import CbsimError
from cbsim.base.paths import write_text
from cbsim.results.output import ANSWER, check_capacity_target, has_file
from cbsim.studies.capacity.answer import CapacityAnswer
from cbsim.studies.capacity.search import Plan
from cbsim.studies.capacity.verdict import Contender
from cbsim.studies.intervals import Interval
from cbsim.studies.sweep import save_table

_INTERVALS = ("rate_per_s", "against_first", "against_best")
"""The fields of a contender that are intervals."""


def to_json(answer: CapacityAnswer) -> dict[str, Any]:
    """Everything but the curve, as plain data; intervals as `estimate`, `low` and `high`."""
    told = {field.name: getattr(answer, field.name) for field in fields(answer) if field.name != "curve"}
    contenders = [_contender_to_json(contender) for contender in answer.contenders]
    return told | {"plan": asdict(answer.plan), "contenders": contenders}


def save_capacity(answer: CapacityAnswer, folder: Path) -> None:
    """Write the folder's files, each whole or not at all, the answer last.

    Raises `CbsimError` if they can't be written, or something other than a capacity is there.
    """
    check_capacity_target(folder)
    save_table(answer.curve, folder, "curve")
    text = json.dumps(to_json(answer), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / ANSWER, text + "\n")


def load_capacity(folder: Path) -> CapacityAnswer:
    """The answer in a folder. Raises `CbsimError` if its files are missing or damaged."""
    import pandas as pd

    if not has_file(folder, ANSWER):
        raise CbsimError(f"{folder}: is not a capacity's folder (it has no {ANSWER})")
    try:
        read = json.loads((folder / ANSWER).read_text(encoding="utf-8"))
        curve = pd.read_parquet(folder / "curve.parquet")
        plan, contenders = Plan(**read["plan"]), tuple(map(_contender, read["contenders"]))
        told = {name: read[name] for name in ("name", "slo", "resampled_from", "config", "manifest")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CbsimError(
            f"{folder}: is a damaged capacity folder, or that of an older cbsim ({error}); "
            "the same `cbsim capacity` with --out writes it anew from its points"
        ) from error
    return CapacityAnswer(plan=plan, contenders=contenders, curve=curve, **told)


def _contender(read: dict[str, Any]) -> Contender:
    intervals = {name: None if read[name] is None else Interval(**read[name]) for name in _INTERVALS}
    tuples = {name: tuple(read[name]) for name in ("own_rates_per_s", "reasons")}
    return Contender(**(read | intervals | tuples))


def _contender_to_json(contender: Contender) -> dict[str, Any]:
    told = asdict(contender)
    return told | {name: told[name] and told[name]._asdict() for name in _INTERVALS}
