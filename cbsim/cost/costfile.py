"""CostFile: a fitted step form on disk, `cost.json`, with what it was fitted to and how far that reaches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from cbsim.base.errors import CalibrationError
from cbsim.base.paths import data_folder, is_file, write_text
from cbsim.base.records import column_pieces
from cbsim.base.registry import did_you_mean
from cbsim.base.text_files import read_text
from cbsim.base.trust import check_path
from cbsim.config.mistakes import plain_words
from cbsim.config.section import Section
from cbsim.cost.form import StepForm
from cbsim.specs import GpuSpec, ModelSpec, ParallelSpec

SHAPE_FIELDS = (
    "num_layers",
    "hidden_size",
    "num_heads",
    "num_kv_heads",
    "head_size",
    "intermediate_size",
    "vocab_size",
    "dtype",
)
"""The figures of a model that its kernels' times depend on."""


class Box(Section):
    """The largest sizes measured; beyond them the form extrapolates."""

    max_tokens: int = Field(ge=1)
    """Tokens through one dense layer."""
    max_logits: int = Field(ge=1)
    """Rows of logits."""
    max_decodes: int = Field(ge=1)
    max_context_tokens: int = Field(ge=1)
    """KV entries read by one layer's attention."""
    max_attention_pairs: int = Field(ge=1)
    """(query, key) pairs of one layer's attention."""

    def num_outside(self, steps: Mapping[str, NDArray[Any]]) -> int:
        """How many steps of a run log lie outside."""
        names = ("num_decode_tokens", "num_prefill_tokens", "num_logits", "num_context_tokens")
        num_outside = 0
        for decodes, prompts, logits, context, pairs in column_pieces(steps, (*names, "num_attention_pairs")):
            tokens = np.add(decodes, prompts, dtype=np.int64)
            outside = (decodes > self.max_decodes) | (tokens > self.max_tokens)
            outside |= (logits > self.max_logits) | (context > self.max_context_tokens)
            outside |= pairs > self.max_attention_pairs
            num_outside += int(outside.sum())
        return num_outside


Percent = Annotated[int | float, Field(ge=-1e9, le=1e9)]
"""An error, or how many points it is of."""


class CostFile(Section):
    """What `cost.json` holds."""

    format: Literal["cbsim-cost/1"]
    gpu: str | None
    """Name of the GPU in `configs/gpus`, if it is one of them."""
    device: str
    """The device as it calls itself."""
    model: dict[str, int | str]
    """The model's name and the figures its kernels depend on."""
    tensor_parallel: int = Field(ge=1)
    expert_parallel: int = Field(default=1, ge=1)
    data_parallel: int = Field(default=1, ge=1)
    form: StepForm
    box: Box
    assumptions: list[str] = Field(default_factory=list)
    """Sentences for every run's notes: what was not measured and is taken from the form."""
    accuracy: dict[str, dict[str, dict[str, Percent]]] = Field(default_factory=dict)
    """Errors by kind of point, as `calibrate fit` reports them."""
    points_sha256: str
    """Hash of the points that were fitted."""

    @model_validator(mode="after")
    def _model_is_whole(self) -> CostFile:
        missing = [key for key in ("name", *SHAPE_FIELDS) if key not in self.model]
        if missing:
            raise ValueError(f"model lacks {', '.join(missing)}")
        return self

    def save(self, path: Path) -> None:
        """Write the file whole or not at all. Raises `CbsimError` if it can't be written."""
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @property
    def parallel(self) -> ParallelSpec:
        """How GPUs shared the model."""
        return ParallelSpec(tensor=self.tensor_parallel, expert=self.expert_parallel, data=self.data_parallel)

    def mismatch(self, model: ModelSpec, parallel: ParallelSpec) -> list[str]:
        """What differs between the model measured and the one asked for: `num_layers 32, not 36`."""
        plain = {"weight_dtypes": f"all {self.model['dtype']}", "kv_dtype": self.model["dtype"]}
        wanted = {**plain, **model_shape(model), "tensor_parallel": parallel.tensor}
        measured = {**plain, **self.model, "tensor_parallel": self.tensor_parallel}
        if model.experts is not None:
            wanted |= {"expert_parallel": parallel.expert, "data_parallel": parallel.data}
            measured |= {"expert_parallel": self.expert_parallel, "data_parallel": self.data_parallel}
        return [
            f"{key} {measured.get(key, 'none')}, not {wanted.get(key, 'none')}"
            for key in dict.fromkeys([*wanted, *measured])
            if key != "name" and measured.get(key) != wanted.get(key)
        ]


def model_shape(model: ModelSpec) -> dict[str, int | str]:
    """The `model` of a cost file: `SHAPE_FIELDS`, and what else tells its kernels from a plain model's."""
    shape: dict[str, int | str] = {"name": model.name} | {key: getattr(model, key) for key in SHAPE_FIELDS}
    dtypes = {part.name: part.dtype for part in model.parts if part.dtype != model.dtype}
    if dtypes:
        shape["weight_dtypes"] = ", ".join(f"{part} {dtype}" for part, dtype in dtypes.items())
    if model.kv_dtype not in (None, model.dtype):
        shape["kv_dtype"] = str(model.kv_dtype)
    if model.window:
        shape |= {"window": model.window, "num_windowed_layers": model.num_windowed_layers}
    if model.attention_layers is not None:
        shape["attention"] = "; ".join(
            f"{kind.num_layers} layers of {kind.num_heads} heads, {kind.num_kv_heads} KV heads of "
            f"{kind.query_size} and {kind.value_size}"
            for kind in model.attention_kinds
        )
    if model.mla is not None:
        mla = model.mla
        shape["mla"] = (
            f"latent {mla.kv_lora_rank} + {mla.qk_rope_head_dim}, queries {mla.q_lora_rank or 'direct'}, "
            f"heads {mla.qk_nope_head_dim} and {mla.v_head_dim}"
        )
    if model.experts is not None:
        experts = model.experts
        shape["experts"] = (
            f"{experts.num_experts_per_token} of {experts.num_experts} with {experts.intermediate_size}, "
            f"shared {experts.shared_intermediate_size}, in {model.num_expert_layers} layers"
        )
    return shape


def read_cost_file(path: Path) -> CostFile:
    """Read `cost.json`. Raises `CalibrationError` with one line for each mistake in it."""
    text = read_text(path, CalibrationError)
    try:
        return CostFile.model_validate_json(text)
    except ValidationError as error:
        raise CalibrationError(*(_problem(path, mistake) for mistake in error.errors())) from error


def find_cost_file(profile: str) -> Path:
    """The `cost.json` meant by `GPU/MODEL` of the shipped profiles, by a folder or by the file itself.

    Raises `CalibrationError` with the nearest name if there is none.
    """
    for candidate in (Path(profile), Path(profile) / "cost.json", _shipped() / profile / "cost.json"):
        if is_file(candidate):
            check_path(candidate, _shipped(), error=CalibrationError)
            return candidate
    names = list(shipped_profiles())
    raise CalibrationError(f"no profile '{profile}'{did_you_mean(profile, names) if names else ''}")


def shipped_profile(model: ModelSpec, gpu: GpuSpec, parallel: ParallelSpec) -> str | None:
    """The name of the shipped profile of this very model, GPU and way to share it; `None` if none is."""
    for name, path in shipped_profiles(gpu.name).items():
        if not read_cost_file(path).mismatch(model, parallel):
            return name
    return None


def shipped_profiles(gpu: str = "*") -> dict[str, Path]:
    """The `cost.json` of each shipped profile, of one GPU or all, by its name `GPU/MODEL`."""
    folder = _shipped()
    paths = sorted(folder.glob(f"{gpu}/*/cost.json"))
    return {path.parent.relative_to(folder).as_posix(): path for path in paths}


def _shipped() -> Path:
    return data_folder("calibration") / "profiles"


def _problem(path: Path, mistake: ErrorDetails) -> str:
    if mistake["type"] == "json_invalid":
        return f"{path}: not a cost profile: {mistake['msg']}"
    got = mistake["input"]
    shown = f", got {got!r}" if isinstance(got, str | int | float) else ""
    return f"{path}: {plain_words(mistake)}{shown}"
