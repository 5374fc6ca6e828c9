"""Naming: what a name in place of a mapping stands for: a file in `configs/`, or a part's `type`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cbsim.base.errors import ConfigError
from cbsim.base.paths import YAML_SUFFIXES, data_folder, display_path, yaml_names
from cbsim.base.registry import did_you_mean
from cbsim.config.document import Document, read_document
from cbsim.config.expected import Expected
from cbsim.config.fields import ForeignForm, Named
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
        names = {key: expected.default_name for key, expected in self._fields.items()}
        return {key: name for key, name in names.items() if name is not None}

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

        `at` is where the name stands, if not in the field itself. Raises `ConfigError` for an unknown name;
        in a list of parts one is left to be told as a wrong value.
        """
        at = (key,) if at is None else at
        name, expected = document.get(at), self._fields.get(key)
        if expected is None:
            return
        if isinstance(name, list) and (item := expected.item(0)):
            for i, each in enumerate(name):
                self._expand_type(document, (*at, i), each, item)
        named = expected.named
        if isinstance(name, dict) and named and named.foreign:
            self._translate(document, at, named.foreign)
        if not isinstance(name, str):
            return
        path = self._path(name, named) if named else None
        if path is not None:
            content = self._read(path, named)
            document.put(at, content.data, content)
            if named and named.foreign:
                self._translate(document, at, named.foreign)
        elif not self._expand_type(document, at, name, expected) and (expected.named or expected.by_type):
            raise ConfigError(document.place(at).problem(self._unknown(key, name, expected)))

    def _expand_type(self, document: Document, at: Keys, name: Any, expected: Expected) -> bool:
        """Put a part's settings in the place of its `type`; whether there is such a part."""
        if expected.by_type is None or not isinstance(name, str):
            return False
        is_known = ":" in name or name in expected.by_type.registry.names()
        if is_known:
            document.put(at, {"type": name}, document.place(at).where)
        return is_known

    def _translate(self, document: Document, at: Keys, form: ForeignForm) -> None:
        """Put our keys in the place of others', if that is what a mapping has."""
        given, place = document.get(at), document.place(at)
        if not given.keys() & {*form.marks}:
            return
        try:
            document.put(at, form.translate(given), place.where)
        except ConfigError as error:
            raise ConfigError(*map(place.problem, error.problems)) from None

    def _path(self, name: str, named: Named) -> Path | None:
        """The file that a name means: a YAML, one of another form, or one that is shipped."""
        here = [self._folder / name, Path(name)]
        shipped = data_folder("configs") / named.folder / f"{name}.yaml"
        if Path(name).name == name and shipped.is_file():
            return shipped
        if Path(name).suffix in YAML_SUFFIXES:
            return next((path for path in here if path.is_file()), None)
        found = map(named.foreign.find, here) if named.foreign else ()
        return next((path for path in found if path is not None), None)

    def _read(self, path: Path, named: Named | None) -> Document:
        if path not in self._files:
            shown = display_path(path)
            is_foreign = path.suffix not in YAML_SUFFIXES and named and named.foreign
            document = Document(is_foreign.read(shown), str(shown)) if is_foreign else read_document(shown)
            if document.problems:
                raise ConfigError(*document.problems)
            self._files[path] = document
        return self._files[path]

    def _unknown(self, key: str, name: str, expected: Expected) -> str:
        if Path(name).suffix in YAML_SUFFIXES or Path(name).suffix == ".json":
            return f"{name}: no such file"
        known, kind = [], key
        if expected.named:
            here = (self._folder / name, Path(name))
            if expected.named.foreign and any(path.is_dir() for path in here):
                return f"{name}: a folder without a {expected.named.kind}'s file"
            known, kind = yaml_names(data_folder("configs") / expected.named.folder), expected.named.kind
        if expected.by_type:
            known, kind = [*known, *expected.by_type.registry.names()], expected.by_type.registry.kind
        return f"unknown {kind} '{name}'{did_you_mean(Path(name).name.lower(), known)}"
