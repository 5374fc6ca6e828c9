"""JSON Schema of a model of sections, for editors."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from cbsim.config.expected import Expected
from cbsim.config.section import Section, setting_docs


class _Generator(GenerateJsonSchema):
    """Sections with the docstrings under their keys, and without the titles that pydantic makes up."""

    def model_schema(self, schema: Any) -> Any:
        """See `GenerateJsonSchema.model_schema`."""
        made = super().model_schema(schema)
        for key, text in setting_docs(schema["cls"]).items():
            made["properties"][key]["description"] = text
        return made

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never: the key says it."""
        return False


def make_schema(model: type[Section]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what a file may hold: parts are `oneOf` the built-in ones."""
    schema = model.model_json_schema(schema_generator=_Generator)
    needed = [key for key in schema.get("required", []) if not _has_default(model, key)]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "required": needed}


def _has_default(model: type[Section], key: str) -> bool:
    expected = Expected.of_field(model.model_fields[key])
    marks = (expected.named, expected.by_type)
    return any(mark is not None and mark.default is not None for mark in marks)
