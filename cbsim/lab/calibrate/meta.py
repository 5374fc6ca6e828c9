"""Meta: where points come from, as `meta.json` beside them says."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from cbsim.base.errors import CalibrationError
from cbsim.config.mistakes import plain_words
from cbsim.config.section import Section
from cbsim.cost.costfile import SHAPE_FIELDS


class Meta(Section):
    """Device, model and provenance of a set of points."""

    device: str
    """The device as it calls itself."""
    gpu: str | None = None
    """Name of the GPU in `configs/gpus`, if it is one of them."""
    model: dict[str, int | str]
    """The model's name and the figures its kernels depend on."""
    tensor_parallel: int = Field(default=1, ge=1)
    expert_parallel: int = Field(default=1, ge=1)
    data_parallel: int = Field(default=1, ge=1)
    source: str
    """Who measured what, with which software."""
    licence: str | None = None
    """Of the source's data, where it isn't this project's own."""
    date: str
    """When the points were made, ISO 8601."""
    command: str
    """The command that made them."""
    software: dict[str, str] = Field(default_factory=dict)
    """Versions: driver, torch, cbsim."""
    assumptions: list[str] = Field(default_factory=list)
    """What was not measured, a sentence each; it goes into every run's notes."""
    warnings: list[str] = Field(default_factory=list)
    """What to know about the timings: unstable clocks, points left out."""

    @property
    def parallel(self) -> str:
        """How GPUs shared the model, in words."""
        return f"{self.tensor_parallel} tensor, {self.expert_parallel} expert, {self.data_parallel} data"

    @model_validator(mode="after")
    def _model_is_whole(self) -> Meta:
        missing = [key for key in ("name", *SHAPE_FIELDS) if key not in self.model]
        numbers = (*SHAPE_FIELDS, "window", "num_windowed_layers")
        counts = {key: self.model[key] for key in numbers if key != "dtype" and key in self.model}
        wrong = [f"{key} {n!r}" for key, n in counts.items() if not (isinstance(n, int) and n > 0)]
        problems = [f"lacks {', '.join(missing)}"] if missing else []
        problems += [f"has {', '.join(wrong)}, expected whole numbers > 0"] if wrong else []
        if problems:
            raise ValueError(f"model {' and '.join(problems)}")
        return self


def save_meta(meta: Meta, path: Path) -> None:
    """Write `meta.json` whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(meta.model_dump_json(indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_meta(path: Path) -> Meta:
    """Read `meta.json`. Raises `CalibrationError` with one line for each mistake in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise CalibrationError(f"{path}: can't be read: {reason}; points need their meta.json") from error
    try:
        return Meta.model_validate_json(text)
    except ValidationError as error:
        raise CalibrationError(*(f"{path}: {plain_words(mistake)}" for mistake in error.errors())) from error
