"""Assembly: a document, the names it uses and the overrides, put together into typed sections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from cbsim.base.errors import ConfigError
from cbsim.base.paths import YAML_SUFFIXES, data_folder, display_path, is_file, is_folder, yaml_names
from cbsim.base.registry import did_you_mean
from cbsim.base.trust import check_path
from cbsim.config.document import SWEEP, TUNE, Document, Override, read_document, split_key
from cbsim.config.mistakes import Expected, validation_problems
from cbsim.config.section import FOLDER, ForeignForm, Named, Section
from cbsim.config.sweep_grid import AxisValue, Grid, parse_grid
from cbsim.config.tune_space import TuneSpace, parse_space
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
        if isinstance(name, dict) and named:
            self._complete(document, at, named)
            if named.foreign:
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

    def spell_out(self, document: Document, keys: Keys, at: Keys | None = None) -> None:
        """Put a mapping in the place of a number, or a name, that `keys` lead into, where either may stand.

        `at` is where the value of `keys` stands, if not there.
        """
        value, expected = document.data.get(str(keys[0])), self._fields.get(str(keys[0]))
        for key in keys[1:]:
            expected = expected and expected.below(value, key)
            value = value.get(key) if isinstance(value, dict) else None
        at = keys if at is None else at
        form, value = expected and expected.short_form, document.get(at)
        if form is not None and isinstance(value, int | float) and not isinstance(value, bool):
            document.put(at, {form: value}, document.place(at).where)
        elif expected is not None:
            self._expand_type(document, at, value, expected)

    def _complete(self, document: Document, at: Keys, named: Named) -> None:
        """Take what a mapping leaves out from the shipped one of its `name`, if it says little else."""
        given = document.get(at)
        name = given.get("name")
        shipped = data_folder("configs") / named.folder / f"{name}.yaml"
        if isinstance(name, str) and Path(name).name == name and is_file(shipped):
            content, place = self._read(shipped, named), document.place(at)
            # All but a few of its keys: a whole mapping stands for itself.
            if len(given.keys() & content.data.keys()) <= len(content.data) // 2:
                document.put(at, content.data | given, place.where)

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
        if not given.keys() & {*form.marks} or form.ours in given:
            return
        try:
            document.put(at, form.translate(given), place.where)
        except ConfigError as error:
            raise ConfigError(*map(place.problem, error.problems)) from None

    def _path(self, name: str, named: Named) -> Path | None:
        """The file that a name means: a YAML, one of another form, or one that is shipped."""
        here = [self._folder / name, Path(name)]
        shipped = data_folder("configs") / named.folder / f"{name}.yaml"
        if Path(name).name == name and is_file(shipped):
            return shipped
        if Path(name).suffix in YAML_SUFFIXES:
            found = next((path for path in here if is_file(path)), None)
        else:
            read = map(named.foreign.find, here) if named.foreign else ()
            found = next((path for path in read if path is not None), None)
        if found is not None:
            check_path(found, self._folder, error=ConfigError)
        return found

    def _read(self, path: Path, named: Named | None) -> Document:
        if path not in self._files:
            shown = display_path(path)
            is_foreign = path.suffix not in YAML_SUFFIXES and named and named.foreign
            document = Document(is_foreign.read(shown), str(shown)) if is_foreign else _read_once(path, shown)
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
            if expected.named.foreign and any(is_folder(path) for path in here):
                return f"{name}: a folder without a {expected.named.kind}'s file"
            known, kind = yaml_names(data_folder("configs") / expected.named.folder), expected.named.kind
        if expected.by_type:
            known, kind = [*known, *expected.by_type.registry.names()], expected.by_type.registry.kind
        return f"unknown {kind} '{name}'{did_you_mean(Path(name).name.lower(), known)}"


def _read_once(path: Path, shown: Path) -> Document:
    """As `read_document`; a shipped file is read again only where it has changed."""
    if not path.is_relative_to(data_folder("configs")):
        return read_document(shown)
    state = path.stat()
    return _read_shipped(shown, state.st_mtime_ns, state.st_size)


@cache
def _read_shipped(shown: Path, *state: int) -> Document:
    return read_document(shown)


S = TypeVar("S", bound=Section)


class Assembly(Generic[S]):
    """One document as `model`, and each point of its sweep, or setting of its tune, as one.

    Mistakes in names, overrides and the forms of sweep and tune are `problems`; those in values are found by
    `read`.
    """

    def __init__(
        self, model: type[S], document: Document, overrides: Sequence[Override], folder: Path
    ) -> None:
        self._model = model
        self._folder = folder
        self._names = Names(model, folder)
        self._overrides = overrides
        self.document = document.copy()
        self.grid = Grid()
        self.space: TuneSpace | None = None
        self.problems: list[str] = list(document.problems)
        """Mistakes found so far, none of them in values."""
        self.hints: list[str] = []
        """What the user may have meant, for where there are mistakes: lines of their own."""
        self._fill_in_defaults()
        # What sweep and tune vary decides where other overrides go, so it is settled first.
        for override in sorted(overrides, key=lambda override: override.keys[0] not in (SWEEP, TUNE)):
            self._tell(self._apply, override)
        self._tell(self._read_grid)
        self._tell(self._read_space)
        self._written = self.document.copy()
        # Names that all points share; unknown ones are told by `read`, which meets them again.
        self._names.expand_all(self.document)

    def read(self, document: Document) -> S:
        """The document, typed. Raises `ConfigError` with a line for each mistake."""
        unknown = self._names.expand_all(document)
        try:
            return self._model.model_validate(document.data, context={FOLDER: self._folder})
        except ValidationError as error:
            found = validation_problems(error, self._model, document, already_told=unknown)
            raise ConfigError(*dict.fromkeys([*unknown.values(), *found])) from None

    def whole(self) -> S:
        """The document itself, typed. Raises `ConfigError` with a line for each mistake of any kind."""
        try:
            found = self.read(self.document)
        except ConfigError as error:
            raise ConfigError(*self.problems, *error.problems) from None
        if self.problems:
            raise ConfigError(*self.problems)
        return found

    def points(self) -> Iterator[tuple[dict[str, Any], Document]]:
        """The swept values of each point, conditions not applied, and its document."""
        for values in self.grid.points():
            yield {value.key: value.value for value in values}, self.point(values)

    def point(self, values: Sequence[AxisValue]) -> Document:
        """The document with some values in their places, and without its sweep and its tune."""
        return self._with(self.document.copy(), values)

    def as_written(self, values: Sequence[AxisValue]) -> dict[str, Any]:
        """The settings of such a point, with all names kept that no value lies below."""
        return self._with(self._written.copy(), values).data

    def _with(self, document: Document, values: Sequence[AxisValue]) -> Document:
        for value in values:
            self._put(document, split_key(value.key), value.value, self.document, value.origin)
        for section in (SWEEP, TUNE):
            document.data.pop(section, None)
        return document

    def _fill_in_defaults(self) -> None:
        data, defaults = self.document.data, self._names.defaults()
        for key, info in self._model.model_fields.items():
            is_needed = info.is_required() and key not in defaults
            # Null means the same as nothing in an optional section, all its lines commented out.
            if data.get(key) is None and not is_needed and Expected.of_field(info).holds_mapping:
                data.pop(key, None)
        for key, name in defaults.items():
            data.setdefault(key, name)

    def _apply(self, override: Override) -> None:
        keys = self.document.placed(override.keys)
        for axis, items in self._axes():
            if keys[: len(axis)] == axis and len(keys) > len(axis):
                if keys == (*axis, "type"):
                    self.hints.append(_hint_of_type(override))
                for item in items:
                    self._apply_to_item(override, axis, item)
                return
        self._put(self.document, override.keys, override.value, override.origin)

    def _apply_to_item(self, override: Override, axis: Keys, item: Keys) -> None:
        """Set a key below what an axis sweeps as a whole: in each of its values."""
        if len(axis) == 1:
            self._names.expand(self.document, str(axis[0]), item)
        self._names.spell_out(self.document, axis, item)
        if isinstance(self.document.get(item), dict):
            self.document.put((*item, *override.keys[len(axis) :]), override.value, override.origin)

    def _axes(self) -> Iterator[tuple[Keys, list[Keys]]]:
        """The keys that sweep and tune vary, and where the values of each stand."""
        for origin, group in self._groups():
            for key, values in group.items():
                listed = (*origin, key)
                if isinstance(values, dict) and isinstance(values.get("choices"), list):
                    values, listed = values["choices"], (*listed, "choices")
                if isinstance(values, list):
                    yield self.document.placed(split_key(key)), [(*listed, i) for i in range(len(values))]

    def _groups(self) -> Iterator[tuple[Keys, dict[str, Any]]]:
        """What holds the keys that vary, and where it stands: sweep and tune, and a `zip:` of either."""
        for origin in ((SWEEP,), (SWEEP, "zip"), (TUNE,), (TUNE, "zip")):
            group = self.document.get(origin)
            if isinstance(group, dict):
                yield origin, group

    def _put(self, document: Document, keys: Keys, value: Any, *origin: Any) -> None:
        """Set a value; a name on the way to its key becomes the mapping that it stands for."""
        if len(keys) > 1:
            self._names.expand(document, str(keys[0]))
            for depth in range(1, len(keys)):
                self._names.spell_out(document, keys[:depth])
                if depth > 1:  # a part that stands further down, as a pool's own
                    self._names.expand(document, str(keys[depth - 1]), keys[:depth])
        document.put(keys, value, *origin)

    def _read_grid(self) -> None:
        seed = self.document.get(("seed",))
        self.grid = parse_grid(self.document, self._pinned(), seed if isinstance(seed, int) else 0)
        self._drop_pinned(SWEEP)
        sweep = self.document.get((SWEEP,))
        if not isinstance(sweep, dict):
            return
        if ("seed",) in self._pinned():
            sweep.pop("replicates", None)
        if not self.grid.axes:
            del self.document.data[SWEEP]

    def _read_space(self) -> None:
        self.space = parse_space(self.document, self._pinned())
        self._drop_pinned(TUNE)

    def _pinned(self) -> set[Keys]:
        """The keys that an override has set, items of lists by their number: they do not vary."""
        return {self.document.placed(override.keys) for override in self._overrides}

    def _drop_pinned(self, section: str) -> None:
        """Take the keys that an override has set out of a section that varies them."""
        for origin, group in list(self._groups()):
            if origin[0] != section:
                continue
            for key in [key for key in group if self.document.placed(split_key(key)) in self._pinned()]:
                del group[key]
            if group == {} and len(origin) > 1:
                del self.document.data[section]["zip"]

    def _tell(self, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except ConfigError as error:
            self.problems += error.problems


def _hint_of_type(override: Override) -> str:
    """How to give another type, of other settings, to what a sweep sets as a whole."""
    section = ".".join(map(str, override.keys[:-1]))
    whole = f"{section}={{type: {override.value}}}"
    if override.origin == "--set":
        whole = f"--set '{whole}'"
    return f"{override.origin}: {section}.type: the sweep sets the whole {section}; {whole} replaces it"


def nested_keys(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of nested settings."""
    for key, value in settings.items():
        yield f"{prefix}{key}"
        if isinstance(value, list):
            value = {item["name"]: item for item in value if isinstance(item, Mapping) and "name" in item}
        if isinstance(value, Mapping):
            yield from nested_keys(value, f"{prefix}{key}.")
