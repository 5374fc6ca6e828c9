"""From pydantic's errors to lines to act on: place, key, what was got, what is expected, the nearest name."""

from __future__ import annotations

import types
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from cbsim.base.errors import PluginError
from cbsim.base.registry import did_you_mean
from cbsim.base.units import MEGA
from cbsim.config.document import Document, describe_value
from cbsim.config.engine_flags import did_you_mean_key
from cbsim.config.section import ByType, Named, Section
from cbsim.config.yaml_text import Keys

_BOUNDS = ((Gt, "gt", ">"), (Ge, "ge", ">="), (Lt, "lt", "<"), (Le, "le", "<="))
_PLAIN = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}


@dataclass(frozen=True, slots=True)
class Expected:
    """The type of a setting with everything that restricts it."""

    annotation: Any
    marks: tuple[Any, ...] = ()
    discriminator: str | None = None

    @classmethod
    def of(cls, annotation: Any, marks: Iterable[Any] = (), discriminator: Any = None) -> Expected:
        """What may stand where a type is annotated so."""
        if get_origin(annotation) is Annotated:
            annotation, *inner = get_args(annotation)
            return cls.of(annotation, (*marks, *inner), discriminator)
        found: list[Any] = []
        for mark in marks:
            found += mark.metadata if isinstance(mark, FieldInfo) else (mark,)
            discriminator = getattr(mark, "discriminator", None) or discriminator
        return cls(annotation, tuple(found), discriminator if isinstance(discriminator, str) else None)

    @classmethod
    def of_field(cls, info: FieldInfo) -> Expected:
        """What a section's field may hold."""
        return cls.of(info.annotation, info.metadata, info.discriminator)

    @property
    def by_type(self) -> ByType | None:
        """The registry that decides, if the setting is a part chosen by its `type`."""
        return next((mark for mark in self.marks if isinstance(mark, ByType)), None)

    @property
    def named(self) -> Named | None:
        """The folder of names, if the setting may be a name."""
        return next((mark for mark in self.marks if isinstance(mark, Named)), None)

    @property
    def default_name(self) -> str | None:
        """The name or `type` that stands where an experiment says nothing."""
        return next((mark.default for mark in (self.named, self.by_type) if mark and mark.default), None)

    @property
    def holds_mapping(self) -> bool:
        """Whether a section or another mapping may stand here."""
        return self.by_type is not None or any(
            member.is_section or get_origin(member.annotation) is dict for member in self.members()
        )

    @property
    def is_section(self) -> bool:
        """Whether a section of one kind is what stands here."""
        return isinstance(self.annotation, type) and issubclass(self.annotation, Section)

    def members(self) -> list[Expected]:
        """The alternatives of a union, each with the key that tells it apart; itself alone if it is none."""
        if get_origin(self.annotation) not in (Union, types.UnionType):
            return [self]
        parts = [Expected.of(part, self.marks, self.discriminator) for part in get_args(self.annotation)]
        return [member for part in parts for member in part.members()]

    def section(self, value: Any) -> type[Section] | None:
        """The section that a mapping given here is read as, `None` if it can't be told."""
        if self.by_type is not None:
            name = value.get("type") if isinstance(value, Mapping) else None
            try:
                return self.by_type.config_class(name) if isinstance(name, str) else None
            except PluginError:
                return None
        sections = [member for member in self.members() if member.is_section]
        if len(sections) > 1 and isinstance(value, Mapping):
            sections = [each for each in sections if value.get(str(each.discriminator)) in each.tags()]
        return sections[0].annotation if len(sections) == 1 else None

    @property
    def short_form(self) -> str | None:
        """The key of a section that a number in its place stands for, if that may be given here."""
        forms = (member.annotation.short_form for member in self.members() if member.is_section)
        return next((form for form in forms if form is not None), None)

    def below(self, value: Any, key: str | int) -> Expected | None:
        """What may stand under a key of a mapping that is given here; `None` where that can't be told."""
        section = self.section(value)
        if section is None:
            return self.item(key)
        info = section.model_fields.get(str(key))
        return None if info is None else Expected.of_field(info)

    def tags(self) -> tuple[Any, ...]:
        """The values of the discriminating key that choose this section."""
        info = self.annotation.model_fields.get(self.discriminator)
        is_literal = info is not None and get_origin(info.annotation) is Literal
        return get_args(info.annotation) if info is not None and is_literal else ()

    def item(self, key: str | int) -> Expected | None:
        """What an item of this list or mapping may hold; `None` for what has no items."""
        for member in self.members():
            origin, arguments = get_origin(member.annotation), get_args(member.annotation)
            if isinstance(key, int) and origin in (list, tuple, frozenset, set):
                fixed = origin is tuple and Ellipsis not in arguments and key < len(arguments)
                return Expected.of(arguments[key if fixed else 0])
            if isinstance(key, str) and origin in (dict, Mapping):
                return Expected.of(arguments[1])
        return None

    def words(self, names: Iterable[str] | None = None) -> str:
        """`an integer >= 1 or null`, `one of 'a', 'b'`, `a mapping with type: x, y`.

        `names` are those of the parts to choose from, by default all that are installed.
        """
        by_name = f"a name in configs/{self.named.folder} or " if self.named else ""
        if self.by_type is not None:
            known = self.by_type.registry.names() if names is None else names
            return f"{by_name}a mapping with type: {', '.join(known)}"
        if by_name:
            return f"{by_name}a mapping"
        members = self.members()
        tagged = [member for member in members if member.discriminator and member.is_section]
        words = [member._own_words() for member in members if member not in tagged]
        if tagged:
            tags = ", ".join(str(tag) for member in tagged for tag in member.tags())
            words.insert(0, f"a mapping with {tagged[0].discriminator}: {tags}")
        return " or ".join(dict.fromkeys(words))

    def _own_words(self) -> str:
        annotation = self.annotation
        if annotation in _PLAIN:
            return f"{_PLAIN[annotation]}{self._bounds() if annotation in (int, float) else ''}"
        origin, arguments = get_origin(annotation), get_args(annotation)
        if self.is_section or origin in (dict, Mapping):
            return "a mapping"
        if origin is Literal:
            names = ", ".join(repr(name) for name in arguments)
            return names if len(arguments) == 1 else f"one of {names}"
        if origin in (list, tuple):
            items = dict.fromkeys(Expected.of(part).words() for part in arguments if part is not Ellipsis)
            return f"a list{self._length()} of ({' and '.join(items)})"
        return str(getattr(annotation, "__name__", annotation))

    def _bounds(self) -> str:
        found = [
            f"{sign} {_shown(getattr(mark, attribute))}"
            for mark in self.marks
            for kind, attribute, sign in _BOUNDS
            if isinstance(mark, kind)
        ]
        return f" {' and '.join(found)}" if found else ""

    def _length(self) -> str:
        least = next((mark.min_length for mark in self.marks if isinstance(mark, MinLen)), 0)
        most = next((mark.max_length for mark in self.marks if isinstance(mark, MaxLen)), None)
        if most is not None:
            return f" of {least} to {most} items"
        return f" of at least {least}" if least > 1 else ""


def _shown(bound: float) -> str:
    """A bound without an exponent where it is a whole number."""
    return f"{bound:,}" if isinstance(bound, int) and bound >= MEGA else f"{bound:g}"


def validation_problems(
    error: ValidationError, model: type[Section], document: Document, already_told: Container[str] = ()
) -> list[str]:
    """One line for each mistake in `document`, which failed to be read as `model`.

    Nothing more is said of the top-level keys in `already_told`.
    """
    told: dict[str, None] = {}
    answered: dict[str, None] = {}
    for detail in error.errors(include_url=False):
        if detail["loc"] and detail["loc"][0] in already_told:
            continue
        found = _Located(model, document.data, detail)
        lines = answered if found.is_answered else told
        lines[document.place(found.keys).problem(found.message())] = None
    return list(told or answered)


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
            if len(expected.members()) > 1 and step not in {*section.model_fields, *self._value}:
                self._in_union = True
                return
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
        # What checks a section as a whole stands before its name: `function-after[check(), Name]`.
        is_named = str(step).removesuffix("]").rpartition(", ")[2] == section.__name__
        return is_named or any(step in each for each in tags)

    @property
    def is_answered(self) -> bool:
        """Whether another error of the same union says it better: one within the section a mapping means, or
        within the items of a list.
        """
        if self._expected is None:
            return False
        if isinstance(self._value, list) and self._detail["type"] == "model_type":
            return self._expected.item(0) is not None
        if not self._in_union:
            return False
        return isinstance(self._value, dict) and self._expected.section(self._value) is not None

    def message(self) -> str:
        """What is wrong there."""
        words = self._expected.words() if self._expected is not None else ""
        context = self._detail.get("ctx", {})
        got = describe_value(self._value)
        match self._detail["type"]:
            case "extra_forbidden":
                *above, name = map(str, self.keys)
                return f"unknown key{did_you_mean_key('.'.join(above), name, [*self._owner.model_fields])}"
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
