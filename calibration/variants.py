"""Models with other dtypes than their own, by name."""

from __future__ import annotations

from cbsim.base.errors import CalibrationError
from cbsim.lab.calibrate.named_spec import load_model
from cbsim.specs import ModelSpec

VARIANT_DTYPES = ("weight_dtype", "kv_dtype")
"""What follows a model's name and a colon each."""


def load_variant(text: str) -> ModelSpec:
    """A model as `NAME`, `NAME:WEIGHTS` or `NAME:WEIGHTS:KV`: `llama-3-8b:fp8`; raises as `load_model`."""
    name, *dtypes = text.split(":")
    if len(dtypes) > len(VARIANT_DTYPES):
        raise CalibrationError(f"model '{text}': expected NAME, NAME:WEIGHTS or NAME:WEIGHTS:KV")
    return load_model(name, **dict(zip(VARIANT_DTYPES, dtypes, strict=False)))


def variant_name(model: ModelSpec) -> str:
    """A model's name with the dtypes that differ from its activations': `llama-3-8b-fp8-kv-fp8`."""
    weights = "" if model.weight_dtype in (None, model.dtype) else f"-{model.weight_dtype}"
    kv = "" if model.kv_dtype in (None, model.dtype) else f"-kv-{model.kv_dtype}"
    return f"{model.name}{weights}{kv}"
