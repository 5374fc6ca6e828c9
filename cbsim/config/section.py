"""Section: the frozen, typed piece of configuration that every part keeps beside its class."""

from __future__ import annotations

import ast
import inspect
from itertools import zip_longest
from textwrap import dedent

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
        protected_namespaces=(),
        defer_build=True,
    )


def setting_docs(section: type[BaseModel]) -> dict[str, str]:
    """The docstring under each setting of a section, by its key.

    Read from the source when asked for: pydantic would do so for every class that is imported.
    """
    docs: dict[str, str] = {}
    for parent in reversed(section.__mro__):
        if not issubclass(parent, Section):
            continue
        (definition,) = ast.parse(dedent(inspect.getsource(parent))).body
        assert isinstance(definition, ast.ClassDef)
        for setting, following in zip_longest(definition.body, definition.body[1:]):
            if not (isinstance(setting, ast.AnnAssign) and isinstance(setting.target, ast.Name)):
                continue
            docs.pop(setting.target.id, None)
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                docs[setting.target.id] = inspect.cleandoc(str(following.value.value))
    return {key: text for key, text in docs.items() if key in section.model_fields}


class ComponentConfig(Section):
    """The settings of a part that is chosen by its `type`: a scheduler, a workload, a cost model."""

    type: str
    """Name of the part: built in, of an installed plug-in, or `module:Class`."""
