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
        found = _Located(model, document.data, detail)
        if not found.is_answered:
            told[document.place(found.keys).problem(found.message())] = None
    return list(told)


def plain_words(detail: ErrorDetails) -> str:
    """A mistake in a file that is no configuration: its key, and what pydantic says."""
    key = ".".join(map(str, detail["loc"]))
    said = detail["msg"].removeprefix("Value error, ")
    return f"{key}: {said}" if key else said


class _Located:
    """An error of pydantic's with its key in the document; unions add labels to the keys of its location."""

    def __init__(self, model: type[Section], data: Any, detail: ErrorDetails) -> None:
        self.keys: Keys = ()
        self._detail = detail
        self._value = data
        self._expected: Expected | None = Expected(model)
        self._owner: type[Section] = model
        """The section that the last key belongs to."""
        self._in_union = False
        """Whether one alternative of several is what the error speaks of."""
        for step in detail["loc"]:
            if self._expected is not None:
                self._follow(step, self._expected)
        if detail["type"] in ("unknown_type", "union_tag_invalid") and isinstance(self._value, dict):
            self.keys = (*self.keys, "type")

    def _follow(self, step: str | int, expected: Expected) -> None:
        section = expected.section(self._value)
        if section is not None and self._is_label(step, expected, section):
            return
        item = expected.item(step)
        if section is not None and isinstance(self._value, dict):
            info = section.model_fields.get(str(step))
            self._owner = section
            item = Expected.of_field(info) if info is not None else None
        elif item is None or not _has(self._value, step):
            self._in_union = True
            return
        self.keys = (*self.keys, step)
        self._value = self._value[step] if _has(self._value, step) else None
        self._expected = item
        self._in_union = False

    def _is_label(self, step: str | int, expected: Expected, section: type[Section]) -> bool:
        """Whether a step is a union's label for the section, not a key."""
        members = expected.members()
        if len(members) == 1 and expected.by_type is None:
            return False
        if isinstance(self._value, dict) and step in section.model_fields:
            return False
        tags = [each.tags() for each in members if each.discriminator and each.annotation is section]
        return step == section.__name__ or any(step in each for each in tags)

    @property
    def is_answered(self) -> bool:
        """Whether another error of the same union says it better: one within the section a mapping means."""
        if not self._in_union or self._expected is None:
            return False
        return isinstance(self._value, dict) and self._expected.section(self._value) is not None

    def message(self) -> str:
        """What is wrong there."""
        words = self._expected.words() if self._expected is not None else ""
        context = self._detail.get("ctx", {})
        got = describe_value(self._value)
        match self._detail["type"]:
            case "extra_forbidden":
                return f"unknown key{did_you_mean(str(self.keys[-1]), self._owner.model_fields)}"
            case "missing":
                return f"missing; expected {words}"
            case "unknown_type":
                if problem := context.get("problem"):
                    return str(problem)
                return f"got {describe_value(self._value['type'])}; {self._detail['msg']}"
            case "union_tag_invalid":
                tag = str(context["tag"])
                allowed = [name.strip("'") for name in context["expected_tags"].split(", ")]
                return f"got '{tag}'{did_you_mean(tag, allowed)}"
            case "no_type" | "union_tag_not_found" if isinstance(self._value, dict):
                return f"has no type; expected {words}"
            case "value_error" | "assertion_error":
                return str(context["error"])
            case "literal_error":
                near = did_you_mean(str(self._value), words.split("'")[1::2])
                return f"got {got}; expected {words}{near if 'did you mean' in near else ''}"
            case "too_short" | "too_long" if isinstance(self._value, list | tuple | dict | str):
                got = f"{len(self._value)} items"
        return f"got {got}; expected {words or self._detail['msg']}"


def _has(value: Any, step: str | int) -> bool:
    if isinstance(value, dict):
        return step in value
    return isinstance(value, list | tuple) and isinstance(step, int) and step < len(value)
