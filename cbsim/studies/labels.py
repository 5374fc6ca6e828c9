"""Labels: what tables and pictures call the points of a sweep and the settings it varies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MUTE = frozenset({"name", "type", "value"})
"""Last parts of keys that say nothing beyond the part before them."""
_VAGUE = frozenset({"count", "limit", "max", "mean", "median", "min", "p90", "path"})
"""Last parts that say little without the part before them."""


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """As few of the last parts of each dotted key as tell it from the others and say what it is."""
    parts = {key: key.split(".") for key in keys}
    parts = {key: own[:-1] if len(own) > 1 and own[-1] in _MUTE else own for key, own in parts.items()}
    short = {}
    for key, own in parts.items():
        size = 2 if own[-1] in _VAGUE else 1
        # The place of an item of a list says little without the list.
        size += own[-size].isdecimal()
        others = [other for name, other in parts.items() if name != key]
        while size < len(own) and any(other[-size:] == own[-size:] for other in others):
            size += 1
        short[key] = ".".join(own[-size:])
    return short if len(set(short.values())) == len(short) else {key: key for key in keys}


def point_name(values: Mapping[str, Any], keys: Sequence[str]) -> str:
    """`vllm, max_tokens_per_step 1024`: the names of its settings in order of `keys`; empty without keys."""
    return ", ".join(setting_names(values, keys))


def setting_names(values: Mapping[str, Any], keys: Sequence[str], code: str = "") -> list[str]:
    """What a point is, a text for each of some keys: words alone, other values after their settings.

    Words of settings that are called the same, such as the roles of two pools, stand after them too. `code`
    is put around names.
    """
    short, last = short_keys(keys), [key.rpartition(".")[2] for key in keys]
    return [
        f"{code}{values[key]}{code}"
        if is_word(values[key]) and (name in _MUTE or last.count(name) == 1)
        else f"{code}{short[key]}{code} {plain_text(values[key])}"
        for key, name in zip(keys, last, strict=True)
    ]


def is_word(value: Any) -> bool:
    """Whether a value says what it is without its setting."""
    return isinstance(value, str) and value[:1].isalpha()


def plain_text(value: Any) -> str:
    """A swept value as an experiment file would have it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def label_values(swept: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Swept values as table cells: plain values as they are, mappings and lists as the shortest clear text.

    Beside texts other values are texts too, so that a column has one type.

    A mapping is told by its `type` (or `name`), and by those settings in which others of that type on its
    axis differ from it; so is each in a list, beside the lists of such mappings.
    """
    cells: list[dict[str, Any]] = [{} for _ in swept]
    for key in dict.fromkeys(key for values in swept for key in values):
        axis = [values.get(key) for values in swept]
        for cell, value in zip(cells, axis, strict=True):
            # A name alone stands for a mapping with nothing but a type.
            alike = [
                {"type": other} if isinstance(other, str) else other
                for other in axis
                if _kind(other) == _kind(value)
            ]
            cell[key] = full_text(value, alike)
        if len({isinstance(cell[key], str) for cell in cells if cell[key] is not None}) == 2:
            for cell in cells:
                cell[key] = cell[key] if cell[key] is None else plain_text(cell[key])
    return cells


def _kind(value: Any) -> Any:
    """The type of a mapping, or its name alone; those of the mappings in a list; `None` for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        return [_kind(item) for item in value]
    return str(value.get("type") or value.get("name") or "") if isinstance(value, Mapping) else None


def full_text(value: Any, alike: Sequence[Any] = ()) -> Any:
    """A value as a cell; of a mapping, or of those in a list, what all those `alike` have is left out."""
    if isinstance(value, Mapping):
        kind = _kind(value)
        told = [
            f"{key}={full_text(item)}"
            for key, item in value.items()
            if item != kind and any(other.get(key) != item for other in alike or [{}])
        ]
        if not (told or kind) and alike:  # the only one that has no name
            return full_text(value)
        return f"{kind}({', '.join(told)})" if told else kind
    if isinstance(value, (list, tuple)):
        rows = list(zip(*alike, strict=True)) if _kind(value) is not None else []
        told = [str(full_text(item, rows[place] if rows else ())) for place, item in enumerate(value)]
        return f"[{', '.join(told)}]"
    return value
