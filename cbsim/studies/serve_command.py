"""Serve commands of vLLM, SGLang and TensorRT-LLM, found in a line, a script or a YAML of containers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cbsim.base.errors import ConfigError
from cbsim.base.paths import YAML_SUFFIXES, is_file
from cbsim.base.text_files import read_text
from cbsim.config.document import MAX_FILE_BYTES
from cbsim.config.engine_flags import FLAGS, Flag
from cbsim.config.yaml_text import parse_documents
from cbsim.studies.bench_traffic import BenchTraffic, traffic_of

_STARTS = (
    ("vLLM", r"(?:\S*/)?vllm serve"),
    ("vLLM", r"\S*vllm\.entrypoints\.(?:openai\.)?api_server"),
    ("SGLang", r"\S*sglang\.launch_server"),
    ("SGLang", r"(?:\S*/)?sglang serve"),
    ("TensorRT-LLM", r"(?:\S*/)?trtllm-serve(?: serve)?"),
    ("vLLM", r"(?:\S*/)?vllm[\w-]*[:@][\w.:-]+|vllm/vllm-openai"),
)
"""What a command begins with: words, the last ones those of an image that serves by itself."""
_ENDS = {"\n", ";", "&", "&&", "|", "||", ">", ">>", "(", ")", ";;", "|&", "&>"}
_RELEASE = re.compile(r"\bvllm[\w-]*(?:==|~=|:)v?(\d+)\.(\d+)")

_SECRET = re.compile(r"((?:--[\w-]*(?:key|token|secret)|\b\w*(?:KEY|TOKEN|SECRET|PASSWORD))[= ])\S+")
"""What is not printed again."""


@dataclass(frozen=True, slots=True)
class ServeCommand:
    """One command: its engine, and its flags as they are written."""

    engine: str
    flags: tuple[tuple[str, str | None], ...]
    """Names without dashes, in kebab case, and values; a positional word is `model`."""
    text: str
    """As a line of shell, without secrets."""
    environment: tuple[str, ...] = ()
    """Names of variables that are set before the command."""


@dataclass(slots=True)
class Source:
    """Where commands come from."""

    text: str
    commands: list[ServeCommand] = field(default_factory=list)
    traffic: BenchTraffic | None = None
    """What the first benchmark among them sends."""
    num_replicas: int | None = None
    """Of a deployment, where a YAML says."""

    @property
    def release(self) -> tuple[int, int] | None:
        """The first vLLM release that an image's tag or a requirement names."""
        found = _RELEASE.search(self.text)
        return (int(found[1]), int(found[2])) if found else None


def read_source(given: str) -> Source:
    """The serve commands in a line of shell, or in the file that it names. Raises `ConfigError` for none."""
    path, shown = Path(given), "COMMAND"
    is_named = is_file(path)
    text = read_text(path, ConfigError, MAX_FILE_BYTES) if is_named else given
    if is_named:
        shown = given
    elif path.suffix in YAML_SUFFIXES and " " not in given:
        raise ConfigError(f"{given}: no such file")
    is_yaml = is_named and path.suffix in YAML_SUFFIXES
    documents = parse_documents(text, given) if is_yaml else []
    lines = list(_of_yaml(documents, given) if is_yaml else _of_shell(text, shown))
    commands = [found for words in lines if (found := _command(words)) is not None]
    traffic = next((sent for words in lines if (sent := traffic_of(words)) is not None), None)
    source = Source(text, commands, traffic, _replicas(documents))
    if not source.commands:
        raise ConfigError(
            f"{shown}: no serve command; expected vllm serve, python -m vllm.entrypoints.openai.api_server, "
            "python -m sglang.launch_server or trtllm-serve, or an image of vLLM with its arguments"
        )
    return source


def _of_shell(text: str, shown: str) -> Iterator[list[str]]:
    """The words of each command of a shell script."""
    text = re.sub(r"(?m)^\s*(#|```).*$", "", text.replace("\r\n", "\n"))
    lexer = shlex.shlex(re.sub(r"\\\n", " ", text), posix=True, punctuation_chars=";<>|&()\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words: list[str] = []
    try:
        for word in lexer:
            if word.strip("\n") in _ENDS or not word.strip("\n"):
                yield words
                words = []
            else:
                words.append(word)
    except ValueError as error:
        raise ConfigError(f"{shown}: can't be split into words: {str(error).lower()}") from None
    yield words


def _of_yaml(documents: list[Any], shown: str) -> Iterator[list[str]]:
    """The words of each container's command in a YAML, its image first."""
    for container in _containers(documents):
        variables = _variables(container.get("env") or container.get("environment"))
        words = [str(container.get("image") or "")]
        for key in ("entrypoint", "command", "args"):
            words += _words(container.get(key), shown)
        words = [_filled_in(word, variables) for word in words]
        script = next(
            (words[i + 1] for i, word in enumerate(words[:-1]) if re.fullmatch(r"-\w*c", word)), None
        )
        yield from _of_shell(script, shown) if script else [words]


def _filled_in(word: str, variables: dict[str, str]) -> str:
    """A word with `$(NAME)`, `${NAME}` and `${NAME:-default}` replaced where they are known."""
    pattern = r"\$+[({](\w+)(?::?-([^)}]*))?[)}]"
    return re.sub(pattern, lambda found: variables.get(found[1], found[2] or found[0]), word)


def _containers(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping that has an image, a command or arguments."""
    if isinstance(node, dict):
        if node.keys() & {"command", "args", "entrypoint", "image"}:
            yield node
        node = list(node.values())
    for inner in node if isinstance(node, list) else ():
        yield from _containers(inner)


def _replicas(node: Any) -> int | None:
    """The first number of `replicas` (Kubernetes, compose)."""
    if isinstance(node, dict):
        number = node.get("replicas")
        if isinstance(number, int) and not isinstance(number, bool) and number >= 1:
            return number
        node = list(node.values())
    found = (_replicas(inner) for inner in (node if isinstance(node, list) else ()))
    return next((number for number in found if number is not None), None)


def _words(given: Any, shown: str) -> list[str]:
    if isinstance(given, str):
        return [word for words in _of_shell(given.replace("\n", " "), shown) for word in words]
    return [str(word) for word in given] if isinstance(given, list) else []


def _variables(given: Any) -> dict[str, str]:
    """A container's environment, as Kubernetes or compose write it."""
    if isinstance(given, dict):
        return {str(name): str(value) for name, value in given.items()}
    pairs = [
        (item.get("name"), item.get("value")) if isinstance(item, dict) else str(item).partition("=")[::2]
        for item in (given if isinstance(given, list) else ())
    ]
    return {str(name): str(value) for name, value in pairs if value is not None}


def _command(words: list[str]) -> ServeCommand | None:
    """The serve command among some words, if there is one."""
    for engine, pattern in _STARTS:
        for start in range(len(words)):
            for length in (2, 1):
                if re.fullmatch(pattern, " ".join(words[start : start + length])):
                    before = [re.match(r"([A-Za-z_]\w*)=", word) for word in words[:start]]
                    after = words[start + length :]
                    is_image = pattern == _STARTS[-1][1]
                    if is_image and (words[start - 1] in ("-v", "--name", "-t") or after[:1] == ["bench"]):
                        continue
                    flags = tuple(_flags(after, FLAGS[engine]))
                    return ServeCommand(
                        engine,
                        flags,
                        _SECRET.sub(r"\1...", shlex.join(words)),
                        tuple(m[1] for m in before if m),
                    )
    return None


def _flags(words: list[str], known: dict[str, Flag]) -> Iterator[tuple[str, str | None]]:
    """Names and values; the dotted parts of JSON (`--speculative-config.method eagle3`) as `name.part`."""
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        if word.startswith("#"):
            return
        if not word.startswith("-"):
            yield "model", word
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("_", "-")
        if equals:
            yield name, value
            continue
        short = re.fullmatch(r"(tp|pp|dp|O)(\d+)", name)
        if short and name not in known:
            yield short[1], short[2]
            continue
        following = words[place] if place < len(words) else "-"
        flag = known.get(name) or known.get(name.removeprefix("no-"))
        takes = not following.startswith("-") or re.fullmatch(r"-\d[\d.]*", following) is not None
        if flag is not None and flag.is_switch:
            takes = following.lower() in ("true", "false")
        yield name, following if takes else None
        place += takes
        while takes and flag is not None and flag.reason and place < len(words) and words[place].isdigit():
            place += 1  # of a list, as --cudagraph-capture-sizes 1 2 4
