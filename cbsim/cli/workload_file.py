"""A workload from one file: a trace, a generator's YAML, or the workload of an experiment."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from cbsim.base.errors import ConfigError
from cbsim.base.paths import YAML_SUFFIXES
from cbsim.config.assembly import Assembly
from cbsim.config.document import Document, read_document
from cbsim.config.fields import ByType
from cbsim.config.overrides import parse_overrides
from cbsim.config.section import Section
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_workload
from cbsim.workload import WORKLOADS, Workload, WorkloadConfig


class WorkloadFile(Section):
    """A workload alone, with the seed that a generator needs."""

    seed: int = Field(default=0, ge=0)
    workload: Annotated[WorkloadConfig, ByType(WORKLOADS)]


def load_workload(file: str, overrides: Iterable[str] = ()) -> Workload:
    """The workload in a file; settings of `overrides` begin with `workload.`, as in an experiment.

    Raises `ConfigError` for mistakes in settings; a trace is not read yet.
    """
    path = Path(file)
    document = Document({"workload": {"type": "trace", "path": file}})
    folder = Path()
    if path.suffix in YAML_SUFFIXES:
        content, folder = read_document(path), path.parent
        if "workload" in content.data and "type" not in content.data:
            return make_workload(Experiment.load(path, overrides))
        document.problems += content.problems
        document.put(("workload",), content.data, content)
    assembly = Assembly(WorkloadFile, document, parse_overrides(overrides), folder)
    try:
        settings = assembly.read(assembly.document)
    except ConfigError as error:
        raise ConfigError(*assembly.problems, *error.problems) from None
    if assembly.problems:
        raise ConfigError(*assembly.problems)
    return WORKLOADS.get(settings.workload.type)(settings.workload, seed=settings.seed, folder=folder)
