"""What a setting may hold, in words: for error lines and for the reference."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo

from cbsim.base.errors import PluginError
from cbsim.base.units import MEGA
from cbsim.config.fields import ByType, Named
from cbsim.config.section import Section

_BOUNDS = ((Gt, "gt", ">"), (Ge, "ge", ">="), (Lt, "lt", "<"), (Le, "le", "<="))
_PLAIN = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}


@dataclass(frozen=True, slots=True)
class Expected:
    """The type of a setting with everything that restricts it."""

    annotation: Any
    metadata: tuple[Any, ...] = ()
    discriminator: str | None = None

    @classmethod
    def of_field(cls, info: FieldInfo) -> Expected:
        """What a section's field may hold."""
        discriminator = info.discriminator if isinstance(info.discriminator, str) else None
        return cls(info.annotation, tuple(info.metadata), discriminator)._unwrapped()

    @property
    def by_type(self) -> ByType | None:
        """The registry that decides, if the setting is a part chosen by its `type`."""
        return next((mark for mark in self.metadata if isinstance(mark, ByType)), None)

    @property
    def named(self) -> Named | None:
        """The folder of names, if the setting may be a name."""
        return next((mark for mark in self.metadata if isinstance(mark, Named)), None)

    @property
    def holds_mapping(self) -> bool:
        """Whether a section or another mapping may stand here."""
        return self.by_type is not None or any(
            _is_section(member.annotation) or get_origin(member.annotation) is dict
            for member in self.members()
        )

    def members(self) -> list[Expected]:
        """The alternatives of a union, each with the key that tells it apart; itself alone if it is none."""
        if get_origin(self.annotation) not in (Union, types.UnionType):
            return [self]
        parts = [
            Expected(part, self.metadata, self.discriminator)._unwrapped()
            for part in get_args(self.annotation)
        ]
        return [member for part in parts for member in part.members()]

    def section(self, value: Any) -> type[Section] | None:
        """The section that a mapping given here is read as, `None` if it can't be told."""
        if self.by_type is not None:
            name = value.get("type") if isinstance(value, Mapping) else None
            if not isinstance(name, str):
                return None
            try:
                return self.by_type.config_class(name)
            except PluginError:
                return None
        sections = [member for member in self.members() if _is_section(member.annotation)]
        if len(sections) > 1 and isinstance(value, Mapping):
            sections = [
                member for member in sections if value.get(str(member.discriminator)) in member.tags()
            ]
        return sections[0].annotation if len(sections) == 1 else None

    def tags(self) -> tuple[Any, ...]:
        """The values of the discriminating key that choose this section."""
        info = self.annotation.model_fields.get(self.discriminator)
        return (
            get_args(info.annotation) if info is not None and get_origin(info.annotation) is Literal else ()
        )

    def item(self, key: str | int) -> Expected | None:
        """What an item of this list or mapping may hold; `None` for what has no items."""
        for member in self.members():
            origin, arguments = get_origin(member.annotation), get_args(member.annotation)
            if isinstance(key, int) and origin in (list, tuple, frozenset, set):
                fixed = origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis)
                chosen = arguments[key] if fixed and key < len(arguments) else arguments[0]
                return Expected(chosen)._unwrapped()
            if isinstance(key, str) and origin in (dict, Mapping):
                return Expected(arguments[1])._unwrapped()
        return None

    def words(self) -> str:
        """`an integer >= 1 or null`, `one of 'a', 'b'`, `a mapping with type: x, y`."""
        if self.by_type is not None:
            return self.words_by_type(self.by_type.registry.names())
        if self.named is not None:
            return f"a name in configs/{self.named.folder} or a mapping"
        members = self.members()
        tagged = [member for member in members if member.discriminator and _is_section(member.annotation)]
        words = [member._own_words() for member in members if member not in tagged]
        if tagged:
            tags = ", ".join(str(tag) for member in tagged for tag in member.tags())
            words.insert(0, f"a mapping with {tagged[0].discriminator}: {tags}")
        return " or ".join(dict.fromkeys(words))

    def words_by_type(self, names: Iterable[str]) -> str:
        """The words for a part chosen by its type among these names."""
        by_name = f"a name in configs/{self.named.folder} or " if self.named is not None else ""
        return f"{by_name}a mapping with type: {', '.join(names)}"

    def _own_words(self) -> str:
        annotation = self.annotation
        if annotation in (int, float):
            return f"{_PLAIN[annotation]}{self._bounds()}"
        if annotation in _PLAIN:
            return _PLAIN[annotation]
        if _is_section(annotation):
            return "a mapping"
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Literal:
            names = ", ".join(repr(name) for name in arguments)
            return names if len(arguments) == 1 else f"one of {names}"
        if origin in (list, tuple):
            items = dict.fromkeys(
                Expected(part)._unwrapped().words() for part in arguments if part is not Ellipsis
            )
            return f"a list{self._length()} of ({' and '.join(items)})"
        if origin in (dict, Mapping):
            return "a mapping"
        return str(getattr(annotation, "__name__", annotation))

    def _bounds(self) -> str:
        found = []
        for mark in self._flat_metadata():
            for kind, attribute, sign in _BOUNDS:
                if isinstance(mark, kind):
                    found.append(f"{sign} {_shown(getattr(mark, attribute))}")
        return f" {' and '.join(found)}" if found else ""

    def _length(self) -> str:
        least = next((mark.min_length for mark in self._flat_metadata() if isinstance(mark, MinLen)), 0)
        most = next((mark.max_length for mark in self._flat_metadata() if isinstance(mark, MaxLen)), None)
        if most is not None:
            return f" of {least} to {most} items"
        return f" of at least {least}" if least > 1 else ""

    def _flat_metadata(self) -> Iterator[Any]:
        for mark in self.metadata:
            yield from mark.metadata if isinstance(mark, FieldInfo) else (mark,)

    def _unwrapped(self) -> Expected:
        """With what `Annotated` carries moved into the metadata."""
        if get_origin(self.annotation) is not Annotated:
            return self
        inner, *marks = get_args(self.annotation)
        named = [mark.discriminator for mark in marks if isinstance(mark, FieldInfo)]
        discriminator = next((name for name in named if isinstance(name, str)), self.discriminator)
        return replace(
            self, annotation=inner, metadata=(*self.metadata, *marks), discriminator=discriminator
        )._unwrapped()


def _shown(bound: float) -> str:
    """A bound without an exponent where it is a whole number."""
    return f"{bound:,}" if isinstance(bound, int) and bound >= MEGA else f"{bound:g}"


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
