"""Models and GPUs by name: what `--model` and `--gpu` mean, and which GPU a device is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from cbsim.base.errors import CalibrationError
from cbsim.base.paths import YAML_SUFFIXES, data_folder, is_file, yaml_names
from cbsim.base.registry import did_you_mean
from cbsim.config.document import read_document
from cbsim.config.mistakes import plain_words
from cbsim.config.section import Section
from cbsim.specs import GpuSpec, ModelSpec, huggingface

S = TypeVar("S", bound=Section)

OTHER_CARDS = {"pcie", "nvl", "ti", "laptop", "d", "3e"}
"""Words in the name of a card that has a better known one's chip, but not its peaks."""


def load_model(name: str, **changes: str | None) -> ModelSpec:
    """A model by its name in `configs/models` or by its file, ours or Hugging Face's.

    `changes` that aren't `None` replace what is there.

    Raises `CalibrationError` with the nearest name if there is none, or with every mistake in the file.
    """
    return _load_spec(ModelSpec, "model", name, {key: to for key, to in changes.items() if to is not None})


def load_gpu(name: str) -> GpuSpec:
    """A GPU by its name in `configs/gpus` or by the path of its file; raises as `load_model` does."""
    return _load_spec(GpuSpec, "gpu", name, {})


def gpu_of_device(device: str) -> str | None:
    """The name in `configs/gpus` of a device that calls itself so: `NVIDIA H200` is `h200`.

    None if no GPU there is it for sure.
    """
    words = " ".join(re.findall("[a-z0-9]+", device.lower()))
    told = OTHER_CARDS.intersection(words.split())
    names = yaml_names(data_folder("configs") / "gpus")
    fitting = [
        name
        for name in names
        if told.issubset(parts := name.split("-")) and all(_stands_in(part, words) for part in parts)
    ]
    return fitting[0] if len(fitting) == 1 else None


def _stands_in(part: str, words: str) -> bool:
    """Whether words hold `rtx4090` as `rtx 4090`, or `80g` as `80gb`, but not `h200` as `gh200`."""
    return re.search(r"(?<![a-z0-9])" + " ?".join(part) + r"(?!\d)", words) is not None


def _load_spec(spec: type[S], kind: str, name: str, changes: dict[str, str]) -> S:
    folder = data_folder("configs") / f"{kind}s"
    path = Path(name) if Path(name).suffix in YAML_SUFFIXES else folder / f"{name}.yaml"
    foreign = huggingface.find(Path(name)) if spec is ModelSpec and not is_file(path) else None
    if foreign is None and not is_file(path):
        raise CalibrationError(f"no {kind} '{name}'{did_you_mean(name, yaml_names(folder))}")
    try:
        if foreign is not None:
            return spec.model_validate(huggingface.translate(huggingface.read(foreign)) | changes)
        return spec.model_validate(read_document(path).data | changes)
    except ValidationError as error:
        raise CalibrationError(*(f"{path}: {plain_words(mistake)}" for mistake in error.errors())) from error
