"""The sample of served runs in the package that holds the kernel timings."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from calibration.served_runs.servers import Series
from cbsim.base.errors import CalibrationError
from cbsim.base.units import MS_PER_S
from cbsim.lab.calibrate.nvidia_tables import PACKAGE, NvidiaTables

SAMPLE = "silicon_sample.csv"
SIZES = ("tp_size", "isl", "osl")
MEASURED_MS = ("silicon_ttft_ms", "silicon_tpot_ms")
ORIGIN = "silicon_data_source"
CONCURRENCY = r"silicon_concurrency=(\d+)"
QUANTIZATION = ("precision", "gemm_quant_mode")
COLUMNS = (
    *("model_path", "backend", "backend_version", "system", "mode"),
    *QUANTIZATION,
    *SIZES,
    *MEASURED_MS,
    ORIGIN,
)


class ServedRun(NamedTuple):
    """A server under a closed loop of equal requests; the latencies are means over them, seconds."""

    version: str
    """Of the framework."""
    tensor_parallel: int
    num_prompt_tokens: int
    num_output_tokens: int
    concurrency: int
    ttft_s: float
    tpot_s: float


def read_runs(tables: NvidiaTables, series: Series) -> list[ServedRun]:
    """The bf16 runs of a series in which one replica served prompts and answers, in order of size.

    Raises `CalibrationError` if the sample isn't there, isn't what it was, or has no such run.
    """
    origin = f"{SAMPLE} of {PACKAGE} {tables.package_version}"
    try:
        with (tables.folder / SAMPLE).open("rb") as file:
            sample = pd.read_csv(file)
    except (OSError, KeyError) as error:
        raise CalibrationError(f"{PACKAGE} {tables.package_version} has no {SAMPLE}") from error
    missing = [column for column in COLUMNS if column not in sample]
    if missing:
        raise CalibrationError(f"{origin}: no column {', '.join(missing)}")
    wanted = {"model_path": series.path, "backend": series.framework, "system": tables.system, "mode": "agg"}
    chosen = sample[list(QUANTIZATION)].isna().all(axis=1)
    for column, value in wanted.items():
        chosen &= sample[column] == value
    rows = sample[chosen]
    clients = rows[ORIGIN].str.extract(CONCURRENCY, expand=False)
    rows = rows.assign(concurrency=pd.to_numeric(clients)).dropna(subset=["concurrency", *MEASURED_MS])
    if rows.empty:
        what = f"bf16 runs of {series.path} by {series.framework} on {tables.system}"
        raise CalibrationError(f"{origin}: no {what}")
    return sorted(
        ServedRun(
            str(row["backend_version"]),
            *(int(row[column]) for column in (*SIZES, "concurrency")),
            *(float(row[column]) / MS_PER_S for column in MEASURED_MS),
        )
        for row in rows.to_dict("records")
    )
