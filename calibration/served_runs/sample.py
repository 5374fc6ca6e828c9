"""The sample of served runs in the package that holds the kernel timings, put right and sifted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from calibration.served_runs.checkpoints import CHECKPOINTS, Checkpoint
from calibration.served_runs.rules import (
    APART,
    APART_CORRECTIONS,
    APART_EXCLUSIONS,
    CORRECTIONS,
    EXCLUSIONS,
    INFERENCE_MAX,
    RUNNER,
    Correction,
    Exclusion,
    model_of,
)
from cbsim.base.errors import CalibrationError
from cbsim.base.units import MS_PER_S
from cbsim.lab.calibrate.nvidia_tables import PACKAGE, open_package
from cbsim.specs import ParallelSpec

SAMPLE = "silicon_sample.csv"
ORIGIN = "silicon_data_source"
CONCURRENCY = r"silicon_concurrency=(\d+)"
DATED = r"(?:source_file=)?\d{4}-\d\d-\d\d|db-dump"
RENAMED = {
    "backend": "framework",
    "backend_version": "version",
    "tp_size": "tensor",
    "attention_dp_size": "data",
    "moe_tp_size": "expert_tensor",
    "moe_ep_size": "expert",
    "silicon_ttft_ms": "ttft_ms",
    "silicon_tpot_ms": "tpot_ms",
}
COLUMNS = ("id", ORIGIN, "model_path", "precision", "system", "mode", "isl", "osl", "batch_size", *RENAMED)
TEXTS = ("precision", "backend_version")
"""Columns that may be empty throughout."""
COUNTS = ["tensor", "data", "expert_tensor", "expert"]
SPLIT = dict(zip(("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size"), COUNTS, strict=True))
ROLES = ("prefill", "decode")
OF_WORKERS = {f"{role}_{theirs}": f"{role}_{ours}" for role in ROLES for theirs, ours in SPLIT.items()}
OF_WORKERS |= {f"{role}_num_workers": f"{role}_workers" for role in ROLES}
"""Columns of servers that prefill and decode apart."""


class Workers(NamedTuple):
    """Equal workers: how many, and how the GPUs of each share the model."""

    number: int
    parallel: ParallelSpec


class ServedRun(NamedTuple):
    """A server under a closed loop of equal requests; the latencies are means over them, seconds."""

    id: str
    checkpoint: Checkpoint
    framework: str
    version: str
    """The framework's release, empty where it isn't said."""
    system: str
    origin: str
    """Whose measurement it is: `INFERENCE_MAX` or `RUNNER`."""
    parallel: ParallelSpec
    num_prompt_tokens: int
    num_output_tokens: int
    clients: int
    """Clients of all ranks together."""
    ttft_s: float
    tpot_s: float
    num_workers: int = 1
    """Servers, or those that decode."""
    prefill: Workers | None = None
    """Who computes the prompts, where that isn't done by those who decode."""
    seats: int | None = None
    """Requests that a worker decodes at a time, where that is fewer than its clients send."""

    @property
    def clients_of_rank(self) -> int:
        """Those whose requests one rank of data parallelism serves."""
        return max(1, self.clients // (self.num_workers * self.parallel.data))

    @property
    def servers(self) -> tuple[ServedRun, ...]:
        """The run as each kind of its workers sees it, those that decode last."""
        if self.prefill is None:
            return (self,)
        number, parallel = self.prefill
        return (self._replace(parallel=parallel, num_workers=number, prefill=None, seats=None), self)


class Sifted(NamedTuple):
    """The runs that can be predicted, and how many rows each rule took."""

    num_rows: int
    corrected: list[tuple[str, int]]
    left_out: list[tuple[str, int]]
    runs: list[ServedRun]


def read_sample(wheel: Path | None) -> pd.DataFrame:
    """The sample as it is, in our names. Raises `CalibrationError` if it isn't there or isn't what it was."""
    folder, version = open_package(wheel)
    try:
        with (folder / SAMPLE).open("rb") as file:
            sample = pd.read_csv(file, dtype=dict.fromkeys(TEXTS, object))
    except (OSError, KeyError) as error:
        raise CalibrationError(f"{PACKAGE} {version} has no {SAMPLE}") from error
    missing = [column for column in COLUMNS if column not in sample]
    if missing:
        raise CalibrationError(f"{SAMPLE} of {PACKAGE} {version}: no column {', '.join(missing)}")
    return sample.reindex(columns=[*COLUMNS, *OF_WORKERS]).rename(columns={**RENAMED, **OF_WORKERS})


def sift(sample: pd.DataFrame) -> Sifted:
    """Put rows of servers that do both right, leave out what can't be predicted."""
    return _sifted(sample, CORRECTIONS, EXCLUSIONS)


def sift_apart(sample: pd.DataFrame) -> Sifted:
    """The same of servers that prefill and decode apart; `tensor` and the like are of those that decode."""
    rows = sample[sample["mode"] == APART]
    # 0 means that there is none.
    counts = {f"{role}_{name}": rows[f"{role}_{name}"].clip(lower=1) for role in ROLES for name in COUNTS}
    of_decode: dict[str, Any] = {"seats": np.nan}
    of_decode |= {name: counts[f"decode_{name}"] for name in COUNTS}
    return _sifted(rows.assign(**counts, **of_decode), APART_CORRECTIONS, APART_EXCLUSIONS)


def _sifted(
    sample: pd.DataFrame, corrections: Iterable[Correction], exclusions: Iterable[Exclusion]
) -> Sifted:
    rows = _described(sample)
    corrected, left_out = [], []
    for correction in corrections:
        chosen = correction.takes(rows)
        for column, values in correction.values(rows[chosen]).items():
            rows.loc[chosen, column] = values
        corrected.append((correction.name, int(chosen.sum())))
    for exclusion in exclusions:
        chosen = exclusion.takes(rows)
        rows = rows[~chosen]
        left_out.append((exclusion.name, int(chosen.sum())))
    return Sifted(len(sample), corrected, left_out, sorted(_runs(rows), key=_order))


def _described(sample: pd.DataFrame) -> pd.DataFrame:
    """What rows say in so many words, those that say more first among equals."""
    rows = sample.assign(
        clients=pd.to_numeric(sample[ORIGIN].str.extract(CONCURRENCY, expand=False)),
        origin=np.where(sample[ORIGIN].str.match(DATED), INFERENCE_MAX, RUNNER),
        has_data=sample["data"].notna(),
        model=model_of(sample),
    )
    with_experts = {name.model for name in CHECKPOINTS.values() if name.has_experts}
    rows["has_experts"] = rows["model"].isin(with_experts)
    rows[COUNTS] = rows[COUNTS].fillna(1).astype(int)
    is_repeated = rows["model_path"].str.contains("DeepSeek-V3")
    order = rows.assign(
        lacks_workers=(rows["mode"] == APART) & rows["decode_workers"].isna(),
        unsaid=rows["version"].isna(),
        is_repeated=is_repeated,
    )
    by = ["lacks_workers", "unsaid", "is_repeated"]
    return rows.loc[order.sort_values(by, kind="stable").index]


def _runs(rows: pd.DataFrame) -> list[ServedRun]:
    precisions = rows["precision"].fillna("bf16")
    versions = rows["version"].fillna("")
    return [
        ServedRun(
            row["id"],
            CHECKPOINTS[row["model_path"], precision],
            row["framework"],
            version,
            row["system"],
            row["origin"],
            ParallelSpec(tensor=row["tensor"], expert=row["expert"], data=row["data"]),
            int(row["isl"]),
            int(row["osl"]),
            int(row["clients"]),
            row["ttft_ms"] / MS_PER_S,
            row["tpot_ms"] / MS_PER_S,
            *(_workers(row) if row["mode"] == APART else ()),
        )
        for row, precision, version in zip(rows.to_dict("records"), precisions, versions, strict=True)
    ]


def _workers(row: dict[str, Any]) -> tuple[int, Workers, int | None]:
    """How many decode, who computes the prompts, and how many requests those decode at a time."""
    tensor, expert, data = (int(row[f"prefill_{name}"]) for name in ("tensor", "expert", "data"))
    parallel = ParallelSpec(tensor=tensor, expert=expert, data=data)
    seats = None if np.isnan(row["seats"]) else int(row["seats"])
    return int(row["decode_workers"]), Workers(int(row["prefill_workers"]), parallel), seats


def _order(run: ServedRun) -> tuple[object, ...]:
    parallel = run.parallel
    split = (parallel.tensor, parallel.expert, parallel.data)
    sizes = (run.num_prompt_tokens, run.num_output_tokens, run.clients)
    return (run.checkpoint.model, run.checkpoint.dtype, run.framework, run.system, split, sizes, run.id)


def every(runs: Sequence[ServedRun], of_each: int) -> list[ServedRun]:
    """At most `of_each` runs of each model, dtype and framework, evenly spread over their order."""
    groups: dict[object, list[ServedRun]] = {}
    for run in runs:
        groups.setdefault((run.checkpoint.model, run.checkpoint.dtype, run.framework), []).append(run)
    chosen: list[ServedRun] = []
    for group in groups.values():
        places = np.unique(np.linspace(0, len(group) - 1, min(of_each, len(group))).round().astype(int))
        chosen += [group[place] for place in places]
    return chosen
