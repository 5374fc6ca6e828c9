"""From pydantic's errors to lines to act on: place, key, what was got, what is expected, the nearest name."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cbsim.base.registry import did_you_mean
from cbsim.config.document import Document, describe_value
from cbsim.config.expected import Expected
from cbsim.config.section import Section
from cbsim.config.yaml_text import Keys


def validation_problems(
    error: ValidationError, model: type[Section], document: Document, already_told: Container[str] = ()
) -> list[str]:
    """One line for each mistake in `document`, which failed to be read as `model`.

    Nothing more is said of the top-level keys in `already_told`.
    """
    told: dict[str, None] = {}
    for detail in error.errors(include_url=False):
        if detail["loc"] and detail["loc"][0] in already_told:
            continue
        found = _Finder(model, document.data).find(detail["loc"])
        if found.is_answered(detail["type"]):
            continue
        told[document.place(found.place_of(detail["type"])).problem(found.message(detail))] = None
    return list(told)


def plain_words(detail: ErrorDetails) -> str:
    """A mistake in a file that is no configuration: its key, and what pydantic says."""
    key = ".".join(map(str, detail["loc"]))
    said = detail["msg"].removeprefix("Value error, ")
    return f"{key}: {said}" if key else said


class _Finder:
    """Follows pydantic's location, in which unions add labels of their own, to the key in the document."""

    def __init__(self, model: type[Section], data: Any) -> None:
        self.keys: Keys = ()
        self.value = data
        self.expected: Expected | None = Expected(model)
        self.owner: type[Section] = model
        """The section that the last key belongs to."""
        self.in_union = False
        """Whether one alternative of several is what the error speaks of."""

    def find(self, location: tuple[str | int, ...]) -> _Finder:
        for step in location:
            self._follow(step)
        return self

    def _follow(self, step: str | int) -> None:
        if self.expected is None:
            return
        section = self.expected.section(self.value)
        if section is not None and self._names_section(step, section):
            return
        if section is not None and isinstance(self.value, dict):
            info = section.model_fields.get(str(step))
            self.owner = section
            self._descend(step, Expected.of_field(info) if info is not None else None)
            return
        item = self.expected.item(step)
        is_there = isinstance(self.value, list | tuple | dict) and _has(self.value, step)
        if item is not None and is_there:
            self._descend(step, item)
        else:
            self.in_union = True

    def _names_section(self, step: str | int, section: type[Section]) -> bool:
        """Whether a step is a union's label for the section, not a key."""
        assert self.expected is not None
        if len(self.expected.members()) == 1 and self.expected.by_type is None:
            return False
        if isinstance(self.value, dict) and step in section.model_fields:
            return False
        tags = [
            tag
            for m in self.expected.members()
            if m.discriminator and m.annotation is section
            for tag in m.tags()
        ]
        return step == section.__name__ or step in tags

    def _descend(self, step: str | int, expected: Expected | None) -> None:
        self.keys = (*self.keys, step)
        self.value = self.value[step] if _has(self.value, step) else None
        self.expected = expected
        self.in_union = False

    def is_answered(self, kind: str) -> bool:
        """Whether another error of the same union says it better: one within the section a mapping means."""
        if not self.in_union or self.expected is None:
            return False
        return isinstance(self.value, dict) and self.expected.section(self.value) is not None

    def place_of(self, kind: str) -> Keys:
        """The key to name: of a part without a known type, its `type`."""
        if kind in ("unknown_type", "union_tag_invalid") and isinstance(self.value, dict):
            return (*self.keys, "type")
        return self.keys

    def message(self, detail: ErrorDetails) -> str:
        """What is wrong there."""
        words = self.expected.words() if self.expected is not None else ""
        match detail["type"]:
            case "extra_forbidden":
                return f"unknown key{did_you_mean(str(self.keys[-1]), self.owner.model_fields)}"
            case "missing":
                return f"missing; expected {words}"
            case "unknown_type":
                return self._unknown_type(detail)
            case "union_tag_invalid":
                tag = str(detail["ctx"]["tag"])
                allowed = [name.strip("'") for name in detail["ctx"]["expected_tags"].split(", ")]
                return f"got '{tag}'{did_you_mean(tag, allowed)}"
            case "no_type" | "union_tag_not_found" if isinstance(self.value, dict):
                return f"has no type; expected {words}"
            case "value_error" | "assertion_error":
                return str(detail["ctx"]["error"])
            case "literal_error":
                return f"got {describe_value(self.value)}; expected {words}{self._near(words)}"
        got = (
            _count(self.value) if detail["type"] in ("too_short", "too_long") else describe_value(self.value)
        )
        return f"got {got}; expected {words or detail['msg']}"

    def _unknown_type(self, detail: ErrorDetails) -> str:
        problem = detail.get("ctx", {}).get("problem")
        if problem:
            return str(problem)
        return f"got {describe_value(self.value['type'])}; {detail['msg']}"

    def _near(self, words: str) -> str:
        names = words.split("'")[1::2]
        near = did_you_mean(str(self.value), names)
        return near if "did you mean" in near else ""


def _has(value: Any, step: str | int) -> bool:
    if isinstance(value, dict):
        return step in value
    return isinstance(value, list | tuple) and isinstance(step, int) and step < len(value)


def _count(value: Any) -> str:
    return f"{len(value)} items" if isinstance(value, list | tuple | dict | str) else describe_value(value)
