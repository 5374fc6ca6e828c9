"""Run files: what `manifest.json`, `summary.json` and `config.yaml` of a run must hold for its readers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cbsim.base.errors import CbsimError
from cbsim.config.bounds import MOST_I64
from cbsim.config.mistakes import plain_words
from cbsim.results.measured import MeasureConfig
from cbsim.results.slo import SloConfig
from cbsim.results.table_file import MOST
from cbsim.specs import GpuSpec, ModelSpec, ParallelSpec


class _Kinds(BaseModel):
    """Keys of a file that are read; there may be others."""

    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, defer_build=True, protected_namespaces=()
    )


_Count = Annotated[int, Field(ge=0, le=MOST_I64)]
_Figure = Annotated[float, Field(ge=-MOST, le=MOST)] | None


class _Input(_Kinds):
    file: str | None = None
    spec: str | None = None
    sha256: str

    @model_validator(mode="after")
    def _check_what(self) -> Self:
        if (self.file is None) == (self.spec is None):
            raise ValueError("expected one of file and spec")
        return self


class RunManifest(_Kinds):
    """`manifest.json`."""

    versions: dict[str, str]
    seed: int
    inputs: list[_Input]
    observer_files: list[str] | None = None


class Distribution(_Kinds):
    """Figures of a latency, seconds."""

    mean: _Figure
    p50: _Figure
    p90: _Figure
    p95: _Figure
    p99: _Figure
    max: _Figure


_Share = Annotated[float, Field(ge=0, le=1 + 1e-9)] | None


class RunSummary(_Kinds):
    """`summary.json`; what former versions do not write is not required."""

    num_requests: _Count
    num_finished: _Count
    num_rejected: _Count
    makespan_s: _Figure
    request_throughput_per_s: _Figure
    output_token_throughput_per_s: _Figure
    total_token_throughput_per_s: _Figure
    goodput_per_s: _Figure
    slo_attainment: _Share
    slo_met: bool | None = None
    ttft_s: Distribution | None
    tpot_s: Distribution | None
    itl_s: Distribution | None
    e2e_s: Distribution | None
    queue_s: Distribution | None
    num_steps: _Count
    num_preemptions: _Count
    num_tokens_recomputed: _Count | None = None
    busy_fraction: _Figure
    mfu: _Figure
    mbu: _Figure
    kv_utilization: dict[str, _Figure]
    prefix_hit_rate: _Share
    simulation: dict[str, _Figure]
    notes: list[str]
    kv_waste: dict[str, _Figure] | None = None
    rejection_reasons: dict[str, _Count] | None = None
    kv_cache_tokens: dict[str, _Count | None] | None = None
    longest_context_tokens: _Count | None = None
    longest_request_tokens: _Count | None = None
    cost_per_million_tokens: _Figure | None = None
    num_tokens_found_again: _Count | None = None
    num_failed: _Count | None = None
    interval: dict[str, Any] | None = None
    parts: dict[str, dict[str, dict[str, _Figure]]] | None = None


class _Part(_Kinds):
    type: str


class _Scheduler(_Kinds):
    type: str
    max_num_seqs: Annotated[int, Field(ge=1)] | None = None
    max_tokens_per_step: Annotated[int, Field(ge=1)] | None = None


class _Workload(_Kinds):
    type: str
    path: str | None = None
    concurrency: Annotated[int, Field(ge=1)] | None = None
    arrivals: dict[str, Any] | None = None


class _Cache(_Kinds):
    block_size: Annotated[int, Field(ge=1)]


class _Replicas(_Kinds):
    count: Annotated[int, Field(ge=1)]
    tensor_parallel: Annotated[int, Field(ge=1)] | None = None


class _Pool(_Kinds):
    name: str
    count: Annotated[int, Field(ge=1)]
    gpu: str | dict[str, Any] | None = None
    parallel: ParallelSpec | None = None


class _Cluster(_Kinds):
    pools: list[_Pool]


class RunConfig(_Kinds):
    """`config.yaml`, as far as anybody reads it who does not run it."""

    name: str
    model: ModelSpec
    gpu: GpuSpec
    workload: _Workload
    scheduler: _Scheduler
    kv_cache: _Cache
    cost_model: _Part
    replicas: _Replicas
    parallel: ParallelSpec | None = None
    cluster: _Cluster | None = None
    slo: SloConfig | None = None
    measure: MeasureConfig | None = None
    front_end_s: Annotated[float, Field(ge=0)] | None = None


_FILES: dict[str, type[_Kinds]] = {
    "manifest.json": RunManifest,
    "summary.json": RunSummary,
    "config.yaml": RunConfig,
}


def check_run_file(path: Path, content: Any) -> None:
    """Raise `CbsimError` with a line for each thing in a run's file that is not what its name says."""
    try:
        _FILES[path.name].model_validate(content)
    except ValidationError as error:
        told = (plain_words(detail) for detail in error.errors(include_url=False, include_input=False))
        raise CbsimError(*(f"{path}: {each}" for each in told)) from None
