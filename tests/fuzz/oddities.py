"""Oddities: values, data and bytes that are wrong in some way, and data that a JSON Schema allows."""

from __future__ import annotations

import copy
import math
from random import Random
from typing import Any

Schema = dict[str, Any]

BIG = (2**31 - 1, 2**31, 2**32, 10**9, 10**12, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 10**30, 10**400)
FLOATS = (5e-324, 1e-320, 1e-300, 1e-30, 1e-12, 1e9, 1e15, 1e30, 1e154, 1e300, 1e308, math.inf, math.nan)
TEXTS = (
    *("", " ", "\0", "a\rb", "x" * 300, "é" * 300, "\U0010ffff", "../..", "/", ".", "~", "-", "=1+1", "%s{}"),
    *("nan", "inf", "-0", "1e3", "1_000", "0x10", "null", "no", "2024-01-01", "[", "{a", "&a", "*a", "!x"),
    *("module:Class", "os:system", "a/" * 200, "\x1b[31m", "\ud800".encode("utf-16", "surrogatepass").hex()),
)
WORDS = ("a", "type", "path", "x.y", "0", "vllm", "tiny", "h200", "poisson", "azure-like.csv", "r0", "ttft_s")


def odd(random: Random) -> Any:
    """A value that hardly anything takes."""
    match random.randrange(9):
        case 0 | 1:
            return random.choice((-1, 1)) * random.choice(BIG)
        case 2 | 3:
            return random.choice((-1, 1, 1)) * random.choice(FLOATS)
        case 4:
            return random.choice((0, -1, 0.0, -0.0, 1, 0.5, True, False, None))
        case 5:
            return random.choice(TEXTS)
        case 6:
            return [odd(random) for _ in range(random.randrange(4))]
        case 7:
            return {random.choice(WORDS): odd(random) for _ in range(random.randrange(3))}
    return nested(random.choice((3, 30, 100)), random)


def nested(depth: int, random: Random) -> Any:
    """A value so many mappings or lists deep."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if random.random() < 0.5 else {"a": value}
    return value


def paths_in(data: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value in nested data, itself apart."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path for key, value in items for path in ((*above, key), *paths_in(value, (*above, key)))]


def at(data: Any, path: tuple[Any, ...]) -> Any:
    """The value at a place of nested data."""
    for key in path:
        data = data[key]
    return data


def mutated(random: Random, data: Any) -> Any:
    """The same data with one thing in it replaced, removed, added, moved or of another type."""
    data = copy.deepcopy(data)
    places = paths_in(data)
    if not places or random.random() < 0.02:
        return odd(random)
    path = random.choice(places)
    holder, key = at(data, path[:-1]), path[-1]
    match random.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[random.choice((*WORDS, *TEXTS))] = odd(random)
        case 2:
            holder[key] = copy.deepcopy(at(data, random.choice(places)))
        case 3:
            holder[key] = random.choice(([holder[key]], {"a": holder[key]}, str(holder[key])))
        case 4 if isinstance(holder[key], int | float) and abs(holder[key]) < 1e300:
            holder[key] *= random.choice((-1, 0, 2, 1e-9, 1e12, 1e200))
        case _:
            holder[key] = odd(random)
    return data


def damaged(random: Random, content: bytes) -> bytes:
    """The same bytes with something in them cut, changed, repeated, or in another encoding."""
    where = random.randrange(len(content) + 1)
    match random.randrange(9):
        case 0:
            return content[:where]
        case 1:
            return content[:where] + random.randbytes(random.randrange(1, 9)) + content[where + 1 :]
        case 2:
            text = random.choice(
                (*TEXTS, "9" * 5000, "[" * 5000, '{"a":' * 2000, "\r", '"', '"\r"', ",,,", "\n\n")
            )
            return content[:where] + text.encode() + content[where:]
        case 3:
            encoding = random.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7"))
            return content.decode("utf-8", "replace").encode(encoding)
        case 4:
            return content.replace(b"\n", random.choice((b"\r", b"\r\n", b"\n\n", b"\0", b" ")))
        case 5:
            lines = content.split(b"\n")
            lines.insert(random.randrange(len(lines)), random.choice(lines))
            return b"\n".join(lines)
        case 6:
            number = random.choice((*BIG, *FLOATS, "", "-1", "x"))
            digits = [place for place, byte in enumerate(content) if 48 <= byte < 58] or [0]
            start = end = random.choice(digits)
            while end < len(content) and content[end] in b"0123456789.e":
                end += 1
            return content[:start] + str(number).encode() + content[end:]
        case 7:
            return random.choice(
                (b"", b"\xef\xbb\xbf", b"\0" * 100, b"PAR1", b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
            ) + (content if random.random() < 0.5 else b"")
    return random.randbytes(random.randrange(200))


class Drawing:
    """Draws what a JSON Schema allows: small numbers, and any of the keys."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def resolved(self, node: Schema) -> Schema:
        """A node with its references followed and its `allOf` merged."""
        while "$ref" in node or "allOf" in node:
            parts = node.get("allOf", [])
            if "$ref" in node:
                parts = [*parts, self._schema["$defs"][node["$ref"].rpartition("/")[2]]]
            merged: Schema = {}
            for part in (
                *map(self.resolved, parts),
                {k: v for k, v in node.items() if k not in ("$ref", "allOf")},
            ):
                both = {**merged.get("properties", {}), **part.get("properties", {})}
                merged = {**merged, **part, **({"properties": both} if both else {})}
            node = merged
        return node

    def alternatives(self, node: Schema) -> list[Schema]:
        """What may stand at a node."""
        node = self.resolved(node)
        either = node.get("oneOf") or node.get("anyOf")
        return [each for part in either for each in self.alternatives(part)] if either else [node]

    def value(self, random: Random, node: Schema, depth: int = 0) -> Any:
        """A value that a node allows, as far as the schema tells."""
        node = random.choice(self.alternatives(node))
        if "const" in node:
            return node["const"]
        if "enum" in node:
            return random.choice(node["enum"])
        match node.get("type"):
            case "integer":
                least = max(node.get("minimum", 0), node.get("exclusiveMinimum", -1) + 1)
                return least + random.choice((0, 1, random.randrange(8), random.randrange(200)))
            case "number":
                most = node.get("maximum", node.get("exclusiveMaximum", 1000.0))
                return random.choice((0.5, 1.0, 2, 10 ** random.uniform(-4, 3))) * min(1.0, most)
            case "boolean":
                return random.random() < 0.5
            case "array":
                items = (
                    [node["items"]] * random.randrange(1, 4)
                    if "items" in node
                    else node.get("prefixItems", [])
                )
                return [self.value(random, item, depth + 1) for item in items]
            case "object":
                fields = node.get("properties", {})
                chosen = [
                    key
                    for key in fields
                    if key in node.get("required", ()) or (depth < 4 and random.random() < 0.25)
                ]
                return {key: self.value(random, fields[key], depth + 1) for key in chosen}
            case "null":
                return None
        return random.choice(WORDS)

    def somewhere(self, random: Random, data: Any) -> tuple[tuple[str, ...], Schema]:
        """A key that the data's sections may have, and its node; those of the parts that it names by type."""
        path: tuple[str, ...] = ()
        node = self.resolved(self._schema)
        while fields := node.get("properties"):
            key = random.choice(list(fields))
            path, below = (*path, key), fields[key]
            data = data.get(key) if isinstance(data, dict) else None
            kind = data.get("type") if isinstance(data, dict) else None
            inside = [each for each in self.alternatives(below) if each.get("properties")]
            same = [each for each in inside if each["properties"].get("type", {}).get("const") == kind]
            if not inside or random.random() < 0.2:
                return path, below
            node = random.choice(same or inside)
        return path, node


def put(data: Any, path: tuple[str, ...], value: Any) -> None:
    """Set a key of nested mappings, which are made where they are missing."""
    for key in path[:-1]:
        if not isinstance(data.get(key), dict):
            data[key] = {}
        data = data[key]
    data[path[-1]] = value
