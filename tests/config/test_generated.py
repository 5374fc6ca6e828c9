"""The reference and the JSON Schema: fresh, and true to what is accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cbsim.config.reference_page import make_reference, make_schema
from cbsim.schedulers import SCHEDULERS
from cbsim.studies.experiment import Experiment

REGENERATE = "stale: run `make generated` and commit what it writes"


def test_the_committed_files_are_fresh(repo_root: Path) -> None:
    schema = (repo_root / "configs/experiment.schema.json").read_text(encoding="utf-8")
    assert schema == json.dumps(make_schema(Experiment), indent=2) + "\n", REGENERATE
    reference = (repo_root / "configs/reference.md").read_text(encoding="utf-8")
    assert reference == make_reference(Experiment), REGENERATE


def test_parts_are_one_of_the_built_in_ones_by_type() -> None:
    schema = make_schema(Experiment)
    alternatives: list[dict[str, Any]] = schema["properties"]["scheduler"]["oneOf"]
    types = [part["properties"]["type"] for part in alternatives if "properties" in part]
    assert [kind["const"] for kind in types[:-1]] == SCHEDULERS.builtin_names()
    assert types[-1]["not"]["enum"] == SCHEDULERS.builtin_names()
    assert schema["required"] == ["workload", "scheduler"]


def test_every_reference_in_the_schema_is_defined() -> None:
    schema = make_schema(Experiment)
    found: set[str] = set()

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            found.update(value for key, value in node.items() if key == "$ref" and isinstance(value, str))
            for value in node.values():
                collect(value)
        elif isinstance(node, list):
            for value in node:
                collect(value)

    collect(schema)
    assert found
    assert {reference.removeprefix("#/$defs/") for reference in found} <= set(schema["$defs"])


def test_every_key_of_a_section_is_in_the_reference() -> None:
    reference = make_reference(Experiment)
    for name in SCHEDULERS.builtin_names():
        chapter = reference.split(f"### `scheduler: {{type: {name}}}`")[1].split("\n##")[0]
        for key in SCHEDULERS.get(name).Config.model_fields:
            assert key == "type" or f"| `{key}` |" in chapter
