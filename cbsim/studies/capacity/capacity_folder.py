"""The capacity folder: `capacity.json` with the answer, `curve.parquet` and `curve.csv` with every run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cbsim.base.errors import CbsimError
from cbsim.base.paths import write_text
from cbsim.results.output import ANSWER, check_capacity_target, has_file
from cbsim.studies.capacity.answer import CapacityAnswer
from cbsim.studies.capacity.capacity_plan import Plan
from cbsim.studies.capacity.verdict import Contender
from cbsim.studies.intervals import Interval
from cbsim.studies.sweep import save_table


def to_json(answer: CapacityAnswer) -> dict[str, Any]:
    """Everything but the curve, as plain data; intervals as `estimate`, `low` and `high`."""
    return {
        "name": answer.name,
        "slo": dict(answer.slo),
        "plan": asdict(answer.plan),
        "resampled_from": answer.resampled_from,
        "contenders": [
            {
                "label": contender.label,
                "swept": dict(contender.swept),
                "verdict": contender.verdict,
                "rate_per_s": _interval_to_json(contender.rate_per_s),
                "own_rates_per_s": list(contender.own_rates_per_s),
                "against_first": _interval_to_json(contender.against_first),
                "against_best": _interval_to_json(contender.against_best),
                "alone": contender.alone,
                "reasons": list(contender.reasons),
            }
            for contender in answer.contenders
        ],
        "config": dict(answer.config),
        "manifest": dict(answer.manifest),
    }


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
    intervals = {
        name: None if read[name] is None else Interval(**read[name])
        for name in ("rate_per_s", "against_first", "against_best")
    }
    tuples = {name: tuple(read[name]) for name in ("own_rates_per_s", "reasons")}
    return Contender(**(read | intervals | tuples))


def _interval_to_json(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else interval._asdict()
