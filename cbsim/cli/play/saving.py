"""Saving: what was played, as an experiment file and, where requests were added, a trace beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml

from cbsim.base.errors import CbsimError
from cbsim.base.paths import YAML_SUFFIXES, data_folder, write_text
from cbsim.cli.play.settings import LIVE
from cbsim.config.document import read_document
from cbsim.config.section import Section
from cbsim.specs import GpuSpec, ModelSpec
from cbsim.studies.experiment import Experiment
from cbsim.workload.convert import convert
from cbsim.workload.request import Request
from cbsim.workload.request_source import Workload, WorkloadConfig

MARK = "# Played with cbsim."
"""How a saved file begins: such a file may be written over."""
_WIDTH = 110


class _Played(Workload):
    """Requests as they were played."""

    Config = WorkloadConfig

    def __init__(self, requests: Callable[[], Iterator[Request]]) -> None:
        super().__init__(WorkloadConfig(type="played"), seed=0, folder=Path())
        self._make = requests

    def requests(self) -> Iterator[Request]:
        return self._make()

    def num_requests(self) -> int | None:
        return None


def save(
    experiment: Experiment,
    requests: Callable[[], Iterator[Request]] | None,
    history: Sequence[str],
    path: Path,
) -> list[Path]:
    """Write the experiment to `path`; `requests`, if they are not its workload's, to a `.jsonl` beside it.

    Returns the files. Raises `CbsimError` for a name that is not of a YAML file, for a file of another
    origin, and for one that can't be written.
    """
    if path.suffix not in YAML_SUFFIXES:
        raise CbsimError(f"{path}: expected a name that ends in {' or '.join(YAML_SUFFIXES)}")
    trace = path.with_suffix(".jsonl")
    _check_target(path, trace if requests is not None else None)
    settings = _concise(experiment)
    written = [path]
    if requests is not None:
        convert(_Played(requests), trace)
        settings["workload"] = {"type": "trace", "path": trace.name}
        written.append(trace)
    lines = [
        MARK,
        f"# `cbsim run {path.name}` goes from the start with the settings as they stood when this was saved.",
        *(["# What was done in play, and when:"] if history else []),
        *(f"#   {line}" for line in history),
    ]
    text = yaml.safe_dump(
        settings, sort_keys=False, allow_unicode=True, default_flow_style=None, width=_WIDTH
    )
    write_text(path, "\n".join(lines) + "\n" + text)
    return written


def free_name(folder: Path, stem: str) -> Path:
    """A name for a saved file, `STEM.yaml` or with a number, that nothing stands at yet."""
    names = chain([stem], (f"{stem}-{number}" for number in count(2)))
    paths = (folder / f"{name}.yaml" for name in names)
    return next(path for path in paths if not (path.exists() or path.with_suffix(".jsonl").exists()))


def _concise(experiment: Experiment) -> dict[str, Any]:
    """Settings that make the experiment again from any folder: names where they stand for it, no defaults."""
    resolved = experiment.resolved()
    said: dict[str, Any] = {
        "model": _name_or_mapping("models", experiment.model, resolved["model"]),
        "gpu": _name_or_mapping("gpus", experiment.gpu, resolved["gpu"]),
    }
    for key in _changed(experiment):
        section = getattr(experiment, key)
        if isinstance(section, Section):
            wanted = {"type", *LIVE, *_changed(section)}
            said.setdefault(key, {name: value for name, value in resolved[key].items() if name in wanted})
        elif key != "name":
            said[key] = resolved[key]
    return said


def _changed(section: Section) -> list[str]:
    """The settings of a section that are not at their defaults."""
    fields = type(section).model_fields.items()
    return [
        name
        for name, field in fields
        if getattr(section, name) != field.get_default(call_default_factory=True)
    ]


def _name_or_mapping(folder: str, spec: ModelSpec | GpuSpec, resolved: dict[str, Any]) -> Any:
    path = data_folder("configs") / folder / f"{spec.name}.yaml"
    if path.is_file() and type(spec).model_validate(read_document(path).data) == spec:
        return spec.name
    return resolved


def _check_target(path: Path, trace: Path | None) -> None:
    """Nobody else's files are written over."""
    is_ours = False
    if path.exists():
        try:
            is_ours = path.read_text(encoding="utf-8").startswith(MARK)
        except (OSError, UnicodeDecodeError) as error:
            raise CbsimError(f"{path}: something that is no saved play stands there") from error
    for file in (path, trace):
        if file is not None and file.exists() and not is_ours:
            raise CbsimError(f"{file}: a file that was not saved here stands there; name another")
