"""Reference: every section and key of an experiment file, as Markdown and as JSON Schema."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from cbsim.config.bounds import MAX_BLOCKS_IN_ALL, MAX_IN_A_RUN, bounds_table
from cbsim.config.mistakes import Expected
from cbsim.config.section import ComponentConfig, Section, setting_docs

_PREAMBLE = """\
# Experiment files

Every setting of an experiment, made from the code by `cbsim schema --out configs`; don't edit it by hand.
Where a key takes a name in `configs/`, a path to a YAML file does too. Durations are in seconds, sizes in
bytes unless the key says otherwise. `--set KEY=VALUE` sets any key by its dotted name.
"""

_BOUNDS = f"""\
## Bounds

Numbers that no service has are mistakes, in every section and in those of plug-ins: the first row that a key
fits holds for it. Whole numbers are below 2^31, but for those of 64 bits; the least is that of other numbers.
Prompts and answers have at most 100,000,000 tokens, a generator makes at most 1,000,000,000 requests, a
session has at most 1,000 turns. A run has at most {MAX_IN_A_RUN:,} requests, of a kilobyte each in memory,
and its replicas {MAX_BLOCKS_IN_ALL:,} KV blocks, where each has a record of 64 bytes: with prefix caching,
groups of layers or a connector. A run or traffic of more than 31 years, or of more than 1,000,000,000
requests a second, is noted.
"""


def make_reference(model: type[Section]) -> str:
    """The whole reference: a table for the top, for each section, and for each built-in part."""
    parts = [_PREAMBLE, _table(model)]
    told: set[type[Section]] = set()
    for key, info in model.model_fields.items():
        expected = Expected.of_field(info)
        item = expected.item(0)
        by_type = expected.by_type or (item and item.by_type)
        if by_type:
            parts.append(f"## `{key}`\n\n{_sentence(setting_docs(model), key)}\n")
            for name in by_type.registry.builtin_names():
                value = f"{{type: {name}}}" if expected.by_type else f"[{{type: {name}}}]"
                parts += _chapter(f"### `{key}: {value}`", by_type.config_class(name), told)
            continue
        for section, *_ in _sections(expected):
            parts += _chapter(f"## `{key}`", section, told)
    rows = ["| keys | least above 0 | most | why |", "|---|---|---|---|"]
    rows += ["| " + " | ".join(row) + " |" for row in bounds_table()]
    return "\n".join([*parts, _BOUNDS, *rows, ""])


def _chapter(
    heading: str, section: type[Section], told: set[type[Section]], parts: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A section, and after it those that its keys hold, unless `told` of already.

    `parts` are those that share it, where several do: by tag what each does.
    """
    told.add(section)
    yield f"{heading}\n\n{inspect.cleandoc(section.__doc__ or '')}\n"
    if parts is not None and len(parts) > 1:
        yield "\n".join(f"* `{tag}`: {meaning}" for tag, meaning in parts.items()) + "\n"
    yield _table(section)
    titles: dict[type[Section], list[str]] = {}
    sharing: dict[type[Section], dict[str, str]] = {}
    for key, info in section.model_fields.items():
        for inner, tag, meaning in _sections(Expected.of_field(info)):
            if inner in told:
                continue
            titles.setdefault(inner, []).append(f"`{key}: {{type: {tag}}}`" if tag else f"`{key}`")
            sharing.setdefault(inner, {})[tag] = meaning
    for inner, names in titles.items():
        yield from _chapter(f"#### {', '.join(names)}", inner, told, sharing[inner])


def _sections(expected: Expected) -> Iterator[tuple[type[Section], str, str]]:
    """The sections that may stand in a setting, each with the tag that chooses it, and what that does."""
    for member in expected.members():
        item = member.item(0)
        if member.by_type is not None:
            registry = member.by_type.registry
            for name in registry.builtin_names():
                meaning = inspect.cleandoc(registry.get(name).__doc__ or "").partition("\n")[0]
                yield member.by_type.config_class(name), name, meaning
        elif member.is_section:
            yield member.annotation, str(member.tags()[0]) if member.tags() else "", ""
        elif item is not None and item.is_section:
            yield item.annotation, "", ""


def _table(section: type[Section]) -> str:
    rows = ["| key | expects | default | meaning |", "|---|---|---|---|"]
    docs = setting_docs(section)
    for key, info in section.model_fields.items():
        if key == "type":
            continue
        expected = Expected.of_field(info)
        cells = (f"`{key}`", _words(expected), _default(info, expected), _sentence(docs, key))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n" if len(rows) > 2 else ""


def _words(expected: Expected) -> str:
    """What it may hold, whatever plug-ins are installed here."""
    item = expected.item(0)
    if item is not None and item.by_type is not None:
        return f"a list of ({_words(item)})"
    return expected.words(expected.by_type.registry.builtin_names() if expected.by_type else None)


def _sentence(docs: Mapping[str, str], key: str) -> str:
    return " ".join(docs.get(key, "").split())


def _default(info: FieldInfo, expected: Expected) -> str:
    if expected.default_name is not None:
        return f"`{expected.default_name}`"
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, ComponentConfig):
        return f"`{value.type}`"
    return "the section's own" if isinstance(value, Section) else f"`{json.dumps(value)}`"


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
    needed = [
        key
        for key in schema.get("required", [])
        if Expected.of_field(model.model_fields[key]).default_name is None
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "required": needed}
