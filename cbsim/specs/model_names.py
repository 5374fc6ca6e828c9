"""Names of models on Hugging Face, and the shipped model that each one is."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from cbsim.base.errors import ConfigError
from cbsim.base.paths import data_folder
from cbsim.base.registry import did_you_mean
from cbsim.specs.precision import WeightDtype

_WEIGHTS: dict[str, WeightDtype] = {
    **dict.fromkeys(("fp8", "float8"), "fp8"),
    **dict.fromkeys(("awq", "gptq", "int4", "w4a16", "4bit", "autoround"), "int4"),
    **dict.fromkeys(("int8", "w8a8", "8bit"), "int8"),
    **dict.fromkeys(("nvfp4", "fp4"), "nvfp4"),
    "mxfp4": "mxfp4",
}
"""Words of a checkpoint's name that say how its weights are stored."""
_IDLE = {
    "meta",
    "hf",
    "it",
    "instruct",
    "chat",
    "base",
    "thinking",
    "dynamic",
    "quantized",
    "bf16",
    "bnb",
    "g128",
}
"""Words that change nothing of what is computed; dates (2507) and versions (v0.3) don't either."""
_SAME_AS = {
    "deepseek-r1-distill-llama-8b": "llama-3.1-8b",
    "deepseek-r1-distill-llama-70b": "llama-3.3-70b",
    "deepseek-r1-distill-qwen-32b": "qwen2.5-32b",
    "deepseek-v3.1": "deepseek-v3",
    "qwq-32b": "qwen2.5-32b",
}


class KnownModel(NamedTuple):
    """A shipped model that stands for one of Hugging Face."""

    name: str
    """As in `configs/models/NAME.yaml`."""
    weight_dtype: WeightDtype | None
    """Of the weights, where the name tells it."""
    is_exact: bool
    """Whether the shipped figures are of this very checkpoint."""


def find_model(name: str) -> KnownModel:
    """The shipped model of a name such as `meta-llama/Llama-3.1-8B-Instruct`, or of a folder called so.

    Raises `ConfigError` without a place for a name that is none of theirs.
    """
    core, dtype = _core(name)
    published = _published()
    known = _SAME_AS.get(core) or published.get(core)
    if known is None:
        near = did_you_mean(core, {*published.values()})
        hint = near if "did you mean" in near else ""
        raise ConfigError(f"'{name}' is no shipped model{hint}")
    return KnownModel(known, dtype, name.rstrip("/").lower() in (known, published.get(f"={known}")))


def _core(name: str) -> tuple[str, WeightDtype | None]:
    """A name's last part without the words that change nothing, and what it tells of weights."""
    words = re.split(r"[-_]", name.rstrip("/").rpartition("/")[2].lower().removesuffix(".gguf"))
    dtype = next((_WEIGHTS[word] for word in words if word in _WEIGHTS), None)
    is_idle = [
        word in _WEIGHTS or word in _IDLE or (re.fullmatch(r"\d{4}|v\d+(\.\d+)*", word) and place > 1)
        for place, word in enumerate(words)
    ]
    return "-".join(word for word, idle in zip(words, is_idle, strict=True) if not idle), dtype


@cache
def _published() -> dict[str, str]:
    """Shipped names by their own and by the published one, which the first line of each file tells; and
    `=NAME` to the published one in full.
    """
    found: dict[str, str] = {}
    for path in sorted((data_folder("configs") / "models").glob("*.yaml")):
        with path.open(encoding="utf-8") as file:
            full = re.match(r"# ([\w.-]+/[\w.-]+)", file.readline())
        found[path.stem] = path.stem
        if full:
            found.setdefault(_core(full[1].rstrip(":"))[0], path.stem)
            found[f"={path.stem}"] = full[1].rstrip(":").lower()
    return found
