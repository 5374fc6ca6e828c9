"""Section: the frozen, typed piece of configuration beside each part's class, and markers of its fields."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from textwrap import dedent
from typing import Any, ClassVar, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from cbsim.base.errors import PluginError
from cbsim.base.registry import Registry, located_from_here
from cbsim.config.bounds import beyond_bounds


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

    short_form: ClassVar[str | None] = None
    """The key that a number alone stands for, where one may be given in place of this mapping."""

    @field_validator("*")
    @classmethod
    def _is_of_a_service(cls, value: Any, info: ValidationInfo) -> Any:
        """Numbers that no service has are mistakes; see `bounds`."""
        if problem := beyond_bounds(info.field_name or "", value):
            raise ValueError(problem)
        return value


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

    def missing_files(self) -> Iterator[tuple[str, str]]:
        """Keys that name a file which is not there, each with what is wrong."""
        return iter(())


FOLDER = "folder"
"""In the context of a validation: where relative names start."""


@dataclass(frozen=True, slots=True)
class ByType:
    """The settings of a part of `registry`, which its `type` chooses; a text stands for its `type` alone."""

    registry: Registry[Any]
    default: str | None = None
    """The `type` used where an experiment says nothing."""

    def config_class(self, name: str, folder: Path | None = None) -> type[ComponentConfig]:
        """The settings' class of a part. Raises `PluginError` if there is no such part or it has none."""
        part = self.registry.get(name, folder)
        config = getattr(part, "Config", None)
        if not (isinstance(config, type) and issubclass(config, ComponentConfig)):
            raise PluginError(
                f"{self.registry.kind} '{name}': {part.__name__}.Config is missing; expected a subclass of "
                "ComponentConfig"
            )
        return config

    def validate(self, value: Any, info: ValidationInfo) -> ComponentConfig:
        """The settings in a mapping, typed; raises pydantic's errors, prefixed by none.

        Third parties' modules are looked for in the folder of the context too: `{FOLDER: path}`.
        """
        if isinstance(value, ComponentConfig):
            return value
        if isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, dict):
            raise PydanticCustomError("not_a_mapping", "not a mapping")
        name = value.get("type")
        if "type" not in value:
            raise PydanticCustomError("no_type", "{names}", {"names": ", ".join(self.registry.names())})
        if not isinstance(name, str):
            raise PydanticCustomError(
                "unknown_type", "expected the name of a {kind}", {"kind": self.registry.kind}
            )
        folder: Path | None = (info.context or {}).get(FOLDER)
        if folder is not None:
            name = located_from_here(name, folder)
        try:
            config = self.config_class(name, folder)
        except PluginError as error:
            raise PydanticCustomError("unknown_type", "{problem}", {"problem": error.problems[0]}) from None
        return config.model_validate({**value, "type": name}, context=info.context)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate by `type`; serialise with the settings of the class chosen."""
        return core_schema.with_info_plain_validator_function(
            self.validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda config: config.model_dump()
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """One of the built-in parts by `type`, or a third party's with any settings."""
        names = self.registry.builtin_names()
        built_in = [
            {
                "allOf": [handler(self.config_class(name).__pydantic_core_schema__)],
                "properties": {"type": {"const": name}},
                "required": ["type"],
            }
            for name in names
        ]
        plugin = {
            "type": "object",
            "description": f"A {self.registry.kind} of an installed plug-in, or `module:Class`.",
            "properties": {"type": {"type": "string", "not": {"enum": names}}},
            "required": ["type"],
        }
        either: JsonSchemaValue = {
            "oneOf": [*built_in, plugin, {"type": "string", "description": "Its type, or a file's name."}]
        }
        return either if self.default is None else {**either, "default": self.default}


class ForeignForm(NamedTuple):
    """A form in which others write down what a section holds: with files and keys of theirs."""

    marks: tuple[str, ...]
    """Keys that tell a mapping of theirs: it has one of them."""
    find: Callable[[Path], Path | None]
    """Their file that a path means, if it means one."""
    read: Callable[[Path], dict[str, Any]]
    """What such a file holds. Raises `ConfigError`."""
    translate: Callable[[dict[str, Any]], dict[str, Any]]
    """A mapping of theirs as ours. Raises `ConfigError` with lines without a place."""
    ours: str = ""
    """A key that every mapping of ours has, and none of theirs."""


@dataclass(frozen=True, slots=True)
class Named:
    """A mapping, or the name of a YAML file in `configs/FOLDER` that holds it."""

    kind: str
    """What it is the name of, in messages."""
    folder: str
    default: str | None = None
    """The name used where an experiment says nothing."""
    foreign: ForeignForm | None = None
    """Another form that it may have."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """A name or the mapping itself."""
        by_name = {"type": "string", "description": f"A name in configs/{self.folder}."}
        either: JsonSchemaValue = {"anyOf": [by_name, handler(schema)]}
        if self.foreign is not None:
            by_name["description"] = f"A name in configs/{self.folder}, or a path."
            either["anyOf"] += [{"type": "object", "required": [mark]} for mark in self.foreign.marks]
        return either if self.default is None else {**either, "default": self.default}
