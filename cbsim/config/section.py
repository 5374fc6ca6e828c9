"""Section: the frozen, typed piece of configuration that every part keeps beside its class."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A mapping of an experiment file: unknown keys, NaN and values of the wrong type are mistakes.

    The docstring under each setting is its entry in `configs/reference.md` and in the JSON Schema.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class ComponentConfig(Section):
    """The settings of a part that is chosen by its `type`: a scheduler, a workload, a cost model."""

    type: str
    """Name of the part: built in, of an installed plug-in, or `module:Class`."""
