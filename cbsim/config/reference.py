"""Reference: every section and key of an experiment file as Markdown, from the docstrings beside them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from cbsim.config.expected import Expected
from cbsim.config.section import Section

_PREAMBLE = """\
# Experiment files

Every setting of an experiment, made from the code by `cbsim schema --out configs`; don't edit it by hand.
Where a key takes a name in `configs/`, a path to a YAML file does too. Durations are in seconds, sizes in
bytes unless the key says otherwise. `--set KEY=VALUE` sets any key by its dotted name.
"""


def make_reference(model: type[Section]) -> str:
    """The whole reference: one table for the top, one for each section, one for each built-in part."""
    parts = [_PREAMBLE, _table(model)]
    for key, info in model.model_fields.items():
        expected = Expected.of_field(info)
        if expected.by_type is not None:
            parts.append(f"## `{key}`\n\n{_sentence(info)}\n")
            for name in expected.by_type.registry.builtin_names():
                parts += _chapter(f"### `{key}: {{type: {name}}}`", expected.by_type.config_class(name))
            continue
        for section in _sections(expected):
            parts += _chapter(f"## `{key}`", section)
    return "\n".join(parts)


def _chapter(heading: str, section: type[Section], level: int = 0) -> Iterator[str]:
    """A section with its own sub-sections after it."""
    about = inspect.cleandoc(section.__doc__ or "")
    yield f"{heading}\n\n{about}\n"
    yield _table(section)
    for key, info in section.model_fields.items():
        for inner in _sections(Expected.of_field(info)):
            tags = [
                tag
                for member in Expected.of_field(info).members()
                if member.annotation is inner
                for tag in _tags(member)
            ]
            title = f"{key}: {{type: {tags[0]}}}" if tags else key
            yield from _chapter(f"#### `{title}`", inner, level + 1)


def _sections(expected: Expected) -> list[type[Section]]:
    found: list[type[Section]] = []
    for member in expected.members():
        if isinstance(member.annotation, type) and issubclass(member.annotation, Section):
            found.append(member.annotation)
    return found


def _tags(member: Expected) -> tuple[Any, ...]:
    return member.tags() if member.discriminator else ()


def _table(section: type[Section]) -> str:
    rows = ["| key | expects | default | meaning |", "|---|---|---|---|"]
    for key, info in section.model_fields.items():
        expected = Expected.of_field(info)
        cells = (f"`{key}`", expected.words(), _default(info, expected), _sentence(info))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _sentence(info: FieldInfo) -> str:
    return " ".join((info.description or "").split())


def _default(info: FieldInfo, expected: Expected) -> str:
    for mark in (expected.named, expected.by_type):
        if mark is not None and mark.default is not None:
            return f"`{mark.default}`"
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, Section):
        return "the section's own"
    return f"`{json.dumps(value)}`"
