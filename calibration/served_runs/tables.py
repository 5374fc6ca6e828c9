"""What a reader gets: `served-runs.csv`, Markdown tables of errors, the picture's columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from calibration.served_runs.assumptions import Assumption
from calibration.served_runs.checkpoints import MINIMAX, R1
from calibration.served_runs.marks import (
    APART_MARKS,
    DATA,
    MARKS,
    R1_OF_ONE_RELEASE,
    TENSOR,
    WITH_CONSTANT,
    Mark,
)
from calibration.served_runs.picture import ServedSeries
from calibration.served_runs.sample import ServedRun, Sifted
from cbsim.base.paths import write_text
from cbsim.base.units import markdown_table
from cbsim.lab.calibrate.accuracy import Errors

SIGNIFICANT_DIGITS = 6
MISSING = "-"
FRAMEWORKS = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
GROUP = ["model", "dtype", "framework"]
CONSTANT = "constant_tpot_s"
"""TPOT with a step's constant from other GPUs' runs."""
ESTIMATE = "aiconfigurator_tpot_s"
RELEASE = "0.5.9"
ERRORS_HEADER = ("", "runs", "TPOT", "bias", "mark", "TPOT by the formula", "bias", "TTFT", "bias")
ESTIMATOR_HEADER = ("", "runs", "cbsim", "aiconfigurator", "cbsim nearer")


class Answer(NamedTuple):
    """What was predicted of a run, seconds; NaN where nothing was."""

    ttft_s: float
    tpot_s: float
    formula_tpot_s: float
    aiconfigurator_ttft_s: float = np.nan
    aiconfigurator_tpot_s: float = np.nan


def runs_table(predicted: Iterable[tuple[ServedRun, Answer]]) -> pd.DataFrame:
    """One row a run; seconds, rounded as they are written, so that the file gives the same errors."""
    rows = []
    for run, answer in predicted:
        parallel, checkpoint = run.parallel, run.checkpoint
        row = {
            "id": run.id,
            "model": checkpoint.model,
            "dtype": checkpoint.dtype,
            "framework": FRAMEWORKS.get(run.framework, run.framework),
            "version": run.version,
            "system": run.system,
            "tensor": parallel.tensor,
            "expert": parallel.expert,
            "data": parallel.data,
            "num_prompt_tokens": run.num_prompt_tokens,
            "num_output_tokens": run.num_output_tokens,
            "clients": run.clients,
            "measured_ttft_s": run.ttft_s,
            "simulated_ttft_s": answer.ttft_s,
            "measured_tpot_s": run.tpot_s,
            "simulated_tpot_s": answer.tpot_s,
            "formula_tpot_s": answer.formula_tpot_s,
            "aiconfigurator_ttft_s": answer.aiconfigurator_ttft_s,
            ESTIMATE: answer.aiconfigurator_tpot_s,
            **_workers(run),
        }
        rows.append({key: _rounded(value) for key, value in row.items()})
    return pd.DataFrame(rows)


def _workers(run: ServedRun) -> dict[str, object]:
    """Of servers that prefill and decode apart: how many decode, and who computes the prompts."""
    if run.prefill is None:
        return {}
    number, parallel = run.prefill
    split = {f"prefill_{name}": getattr(parallel, name) for name in ("tensor", "expert", "data")}
    return {"decode_workers": run.num_workers, "prefill_workers": number, **split}


def _rounded(value: object) -> object:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value


def write_runs(table: pd.DataFrame, path: Path) -> None:
    """Write the rows, whole or not at all. Raises `CbsimError` if they can't be written."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def sifting_table(sifted: Sifted) -> str:
    """How many rows of the sample each rule took."""
    rows = [("rows of the sample", f"{sifted.num_rows:,}")]
    rows += [(f"put right: {name}", f"{number:,}") for name, number in sifted.corrected]
    rows += [(f"left out: {name}", f"{number:,}") for name, number in sifted.left_out]
    return markdown_table(("", "rows"), [*rows, ("**left**", f"{len(sifted.runs):,}")])


def errors(table: pd.DataFrame, predicted: str, measured: str) -> Errors:
    """How far a column of predictions is from one of measurements."""
    return Errors.of(table[predicted].to_numpy(np.float64), table[measured].to_numpy(np.float64))


def groups(table: pd.DataFrame) -> dict[tuple[str, str, str], pd.DataFrame]:
    """The rows of each model, dtype and framework, in order."""
    found = table.groupby(GROUP, sort=True)
    return {(str(key[0]), str(key[1]), str(key[2])): rows for key, rows in found}


def errors_table(table: pd.DataFrame) -> str:
    """By model, dtype and framework, percent: of the simulation, the mark beside it, and of the formula."""
    rows = []
    for (model, dtype, framework), ours in groups(table).items():
        name = f"{model} {dtype}, {framework}"
        rows.append(_errors_row(name, ours, MARKS.get((model, dtype))))
        of_release = ours[ours["version"] == RELEASE]
        if model == R1 and framework == FRAMEWORKS["sglang"] and len(of_release):
            rows.append(_errors_row(f"{name} {RELEASE} alone", of_release, R1_OF_ONE_RELEASE))
        if model == MINIMAX and ours["system"].nunique() > 1:
            shifted = ours.assign(simulated_tpot_s=with_constant(ours))
            rows.append(_errors_row(f"{name}, with other GPUs' constant", shifted, WITH_CONSTANT))
    return markdown_table(ERRORS_HEADER, rows)


def kinds(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of servers that prefill and decode apart, by what those who decode share."""
    is_data = table["data"] > 1
    return {TENSOR: table[~is_data], DATA: table[is_data]}


def apart_table(table: pd.DataFrame) -> str:
    """The same of servers that prefill and decode apart, by kind of worker and by group."""
    rows = []
    for kind, ours in kinds(table).items():
        if len(ours):
            rows.append(_errors_row(kind, ours, APART_MARKS[kind]))
        for (model, dtype, framework), some in groups(ours).items():
            rows.append(_errors_row(f"{model} {dtype}, {framework}", some, None, is_part=True))
    return markdown_table(ERRORS_HEADER, rows)


def apart_estimator_table(table: pd.DataFrame) -> str:
    """Errors of the rows that aiconfigurator estimated, percent, by kind of worker: TPOT, then TTFT."""
    both = table[table[ESTIMATE].notna()]
    rows = []
    for kind, ours in [*kinds(both).items(), ("**all**", both)]:
        if len(ours):
            ttft = [
                _spread(errors(ours, f"{whose}_ttft_s", "measured_ttft_s"))
                for whose in ("simulated", "aiconfigurator")
            ]
            rows.append((*_estimator_row(kind, ours), *ttft))
    return markdown_table((*ESTIMATOR_HEADER, "TTFT: cbsim", "aiconfigurator"), rows)


def with_constant(rows: pd.DataFrame) -> pd.Series:
    """Simulated TPOT with what other GPUs' runs lack at the median added to every step, seconds."""
    lacking = rows["measured_tpot_s"] - rows["simulated_tpot_s"]
    found = rows["simulated_tpot_s"].copy()
    for system in rows["system"].unique():
        is_here = rows["system"] == system
        found[is_here] += lacking[~is_here].median()
    return found


def _errors_row(
    name: str, table: pd.DataFrame, mark: Mark | None, *, is_part: bool = False
) -> tuple[str, ...]:
    tpot = errors(table, "simulated_tpot_s", "measured_tpot_s")
    cells = [
        name if is_part else f"**{name}**",
        f"{len(table)}",
        _spread(tpot),
        f"{tpot.bias_pct:+.1f}",
        _against(tpot, mark),
    ]
    for predicted in ("formula_tpot", "simulated_ttft"):
        figures = errors(table, f"{predicted}_s", f"measured_{predicted[-4:]}_s")
        cells += [_spread(figures), f"{figures.bias_pct:+.1f}"]
    return tuple(cells)


def _against(found: Errors, mark: Mark | None) -> str:
    if mark is None:
        return MISSING
    is_met = found.median_pct <= mark.median and found.p90_pct <= mark.p90
    return f"{mark.median:g} / {mark.p90:g}{', met' if is_met else ', missed'}"


def estimator_table(table: pd.DataFrame) -> str:
    """TPOT of the rows that aiconfigurator estimated, by group: both errors, and how often we are nearer."""
    both = table[table[ESTIMATE].notna()]
    rows = [
        _estimator_row(f"{model} {dtype}, {framework}", ours)
        for (model, dtype, framework), ours in groups(both).items()
    ]
    return markdown_table(ESTIMATOR_HEADER, [*rows, _estimator_row("**all**", both)])


def _estimator_row(name: str, rows: pd.DataFrame) -> tuple[str, ...]:
    ours, theirs = (
        (rows[column] / rows["measured_tpot_s"] - 1).abs() for column in ("simulated_tpot_s", ESTIMATE)
    )
    cells = [_spread(errors(rows, column, "measured_tpot_s")) for column in ("simulated_tpot_s", ESTIMATE)]
    return (name, f"{len(rows)}", *cells, f"{(ours < theirs).mean():.0%}")


def assumptions_table(tables: Mapping[Assumption, pd.DataFrame]) -> str:
    """What each assumption makes of the errors of every group, percent."""
    whole = groups(next(iter(tables.values())))
    names = [f"{model}, {framework}" for model, _, framework in whole]
    header = ["assumed", *(f"{name}: {latency}" for name in names for latency in ("TPOT", "TTFT"))]
    rows = []
    for assumption, table in tables.items():
        ours, cells = groups(table), [assumption.text]
        for key in whole:
            for latency in ("tpot", "ttft"):
                cells.append(_with_bias(ours[key], latency) if key in ours else MISSING)
        rows.append(tuple(cells))
    return markdown_table(header, rows)


def _with_bias(table: pd.DataFrame, latency: str) -> str:
    figures = errors(table, f"simulated_{latency}_s", f"measured_{latency}_s")
    return f"{_spread(figures)}, {figures.bias_pct:+.1f}"


def _spread(figures: Errors) -> str:
    return f"{_figure(figures.median_pct)} / {_figure(figures.p90_pct)}"


def _figure(percent: float) -> str:
    return f"{percent:.0f}" if percent >= 9.95 else f"{percent:.1f}"


def shown(table: pd.DataFrame) -> list[ServedSeries]:
    """The picture's columns: one series a model."""
    columns = ("tensor", "clients", "simulated_tpot_s", "measured_tpot_s")
    return [
        ServedSeries(str(model), *(rows[column].to_numpy(np.float64) for column in columns))
        for model, rows in table.assign(tensor=table["tensor"] * table["data"]).groupby("model")
    ]
