"""Naming: what a name in place of a mapping stands for: a file in `configs/`, or a part's `type`."""

from __future__ import annotations

from pathlib import Path

from cbsim.base.errors import ConfigError
from cbsim.base.paths import YAML_SUFFIXES, data_folder, display_path, yaml_names
from cbsim.base.registry import did_you_mean
from cbsim.config.document import Document, read_document
from cbsim.config.expected import Expected
from cbsim.config.section import Section
from cbsim.config.yaml_text import Keys


class Names:
    """Looks up names for the fields of one model; each file is read once."""

    def __init__(self, model: type[Section], folder: Path) -> None:
        """Names with a YAML suffix are files, relative to `folder`."""
        self._fields = {key: Expected.of_field(info) for key, info in model.model_fields.items()}
        self._folder = folder
        self._files: dict[Path, Document] = {}

    def defaults(self) -> dict[str, str]:
        """The names that stand where a document says nothing."""
        defaults = {}
        for key, expected in self._fields.items():
            for mark in (expected.named, expected.by_type):
                if mark is not None and mark.default is not None:
                    defaults[key] = mark.default
        return defaults

    def expand_all(self, document: Document) -> dict[str, str]:
        """Put mappings in the place of all names; returns an error line for each unknown one, by field."""
        unknown = {}
        for key in self._fields:
            try:
                self.expand(document, key)
            except ConfigError as error:
                unknown[key] = "\n".join(error.problems)
        return unknown

    def expand(self, document: Document, key: str, at: Keys | None = None) -> None:
        """Put the mapping that it stands for in the place of a name, if the field `key` holds one.

        `at` is where the name stands, if not in the field itself. Raises `ConfigError` for an unknown name.
        """
        at = (key,) if at is None else at
        name, expected = document.get(at), self._fields.get(key)
        if isinstance(name, list) and expected is not None:
            self._expand_items(document, expected, at, name)
        if not isinstance(name, str) or expected is None:
            return
        place = document.place(at)
        if expected.named is not None:
            path = self._path(name, expected.named.folder)
            if path is not None:
                content = self._read(path)
                document.put(at, content.data, content)
                return
        if expected.by_type is not None and (":" in name or name in expected.by_type.registry.names()):
            document.put(at, {"type": name}, place.where)
            return
        if expected.named is not None or expected.by_type is not None:
            raise ConfigError(place.problem(self._unknown(name, expected)))

    def _expand_items(self, document: Document, expected: Expected, at: Keys, items: list[object]) -> None:
        """The same for the items of a list of parts; unknown names are left to be told as wrong values."""
        item = expected.item(0)
        if item is None or item.by_type is None:
            return
        for i, name in enumerate(items):
            if isinstance(name, str) and (":" in name or name in item.by_type.registry.names()):
                document.put((*at, i), {"type": name}, document.place((*at, i)).where)

    def known(self, key: str) -> list[str]:
        """Every name that may stand in a field."""
        expected = self._fields[key]
        files = yaml_names(data_folder("configs") / expected.named.folder) if expected.named else []
        return [*files, *(expected.by_type.registry.names() if expected.by_type else [])]

    def _path(self, name: str, folder: str) -> Path | None:
        if Path(name).suffix in YAML_SUFFIXES:
            candidates = [self._folder / name, Path(name)]
        elif Path(name).name == name:
            candidates = [data_folder("configs") / folder / f"{name}.yaml"]
        else:
            return None
        return next((path for path in candidates if path.is_file()), None)

    def _read(self, path: Path) -> Document:
        if path not in self._files:
            document = read_document(display_path(path))
            if document.problems:
                raise ConfigError(*document.problems)
            self._files[path] = document
        return self._files[path]

    def _unknown(self, name: str, expected: Expected) -> str:
        if Path(name).suffix in YAML_SUFFIXES:
            return f"{name}: no such file"
        kind = (
            expected.by_type.registry.kind
            if expected.by_type
            else str(expected.named and expected.named.kind)
        )
        key = next(key for key, field in self._fields.items() if field is expected)
        return f"unknown {kind} '{name}'{did_you_mean(name, self.known(key))}"
