"""Reads the few kinds of Mermaid diagrams that the READMEs have, and nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NODE = re.compile(r"(\w+)(?:(\[\(|\(\[|\[/|\[)\"([^\"]+)\"(?:\)\]|\]\)|/\]|\]))?")
TRANSITION = re.compile(r"(\[\*\]|\w+) --> (\[\*\]|\w+): (.+)")
MESSAGE = re.compile(r"(\w+)(->>|-->>)(\w+): (.+)")
SEQUENCE_REST = re.compile(r"participant \w+|Note over \w+(, ?\w+)?: .+")


class Transition(NamedTuple):
    """An arrow from one state to another; `[*]` is where everything begins."""

    source: str
    target: str
    label: str
    inside: str | None = None
    """The state that holds both."""


class Message(NamedTuple):
    """An arrow of a sequence diagram: a call if it is solid, else an answer."""

    source: str
    target: str
    text: str
    is_call: bool


@dataclass
class Flowchart:
    """Nodes by name with the lines of their labels, and arrows between them."""

    labels: dict[str, list[str]] = field(default_factory=dict)
    shapes: dict[str, str] = field(default_factory=dict)
    """What opens a node's label: `[`, `[/`, `([`, `[(`."""
    arrows: list[tuple[str, str]] = field(default_factory=list)


def diagrams(path: Path, kind: str = "") -> list[list[str]]:
    """The statements of each diagram in a file, its kind first; those of one kind, if it is given."""
    found = [
        [line.strip() for line in block.splitlines() if line.strip()]
        for block in FENCE.findall(path.read_text(encoding="utf-8"))
    ]
    return [lines for lines in found if lines[0].startswith(kind)]


def read(lines: list[str]) -> Flowchart | list[Transition] | list[Message]:
    """A diagram of any of the three kinds. Raises `ValueError` for any line that is none of its."""
    kind = lines[0].split()[0]
    if kind == "flowchart":
        return flowchart(lines)
    if kind == "stateDiagram-v2":
        return transitions(lines)
    if kind == "sequenceDiagram":
        return messages(lines)
    raise ValueError(f"no kind of diagram: {lines[0]}")


def flowchart(lines: list[str]) -> Flowchart:
    """A `flowchart`: lines of nodes joined by arrows, each node labelled once."""
    found = Flowchart()
    if not re.fullmatch(r"flowchart (TD|LR)", lines[0]):
        raise ValueError(f"no flowchart: {lines[0]}")
    for line in lines[1:]:
        names = []
        for text in line.split(" --> "):
            node = NODE.fullmatch(text)
            if node is None:
                raise ValueError(f"no node: {text}")
            name, shape, label = node.groups()
            names.append(name)
            if label is not None:
                if name in found.labels:
                    raise ValueError(f"labelled twice: {name}")
                found.labels[name], found.shapes[name] = label.split("<br/>"), shape
        found.arrows += pairwise(names)
    bare = {name for arrow in found.arrows for name in arrow} - set(found.labels)
    if bare:
        raise ValueError(f"without a label: {', '.join(sorted(bare))}")
    return found


def transitions(lines: list[str]) -> list[Transition]:
    """A `stateDiagram-v2`, states within states one level deep."""
    found: list[Transition] = []
    inside: str | None = None
    for line in lines[1:]:
        opened = re.fullmatch(r"state (\w+) \{", line)
        arrow = TRANSITION.fullmatch(line)
        if opened and inside is None:
            inside = opened[1]
        elif line == "}" and inside is not None:
            inside = None
        elif arrow:
            found.append(Transition(arrow[1], arrow[2], arrow[3], inside))
        elif not re.fullmatch(r"direction (LR|TB)", line):
            raise ValueError(f"no transition: {line}")
    if inside is not None:
        raise ValueError(f"never closed: {inside}")
    return found


def messages(lines: list[str]) -> list[Message]:
    """A `sequenceDiagram`: the messages between its participants."""
    found: list[Message] = []
    participants = {line.split()[1] for line in lines if line.startswith("participant ")}
    for line in lines[1:]:
        message = MESSAGE.fullmatch(line)
        if message and {message[1], message[3]} <= participants:
            found.append(Message(message[1], message[3], message[4], message[2] == "->>"))
        elif not SEQUENCE_REST.fullmatch(line):
            raise ValueError(f"no message: {line}")
    return found
