"""Manifest: what a run depended on, so that it can be told apart from any other and made again."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cbsim.base.errors import CbsimError

_DEPENDENCIES = ("matplotlib", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml", "simpy")


def make_manifest(
    seed: int, files: Iterable[Path] = (), specs: Mapping[str, BaseModel] | None = None
) -> dict[str, Any]:
    """Versions, seed, and the SHA-256 of every input: files read, and specs ("model", "gpu") as resolved.

    Raises `CbsimError` naming every file that can't be read.
    """
    inputs = [{"spec": kind, "sha256": hash_spec(spec)} for kind, spec in sorted((specs or {}).items())]
    hashes = hash_files(files)
    # A path that holds from any folder: runs are read elsewhere than where they were made.
    inputs += [{"file": str(path.absolute()), "sha256": digest} for path, digest in hashes.items()]
    return {"versions": dict(_versions()), "seed": seed, "inputs": inputs}


def hash_files(files: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of each file, in order of path. Raises `CbsimError` naming every file that can't be read."""
    hashes: dict[Path, str] = {}
    problems: list[str] = []
    for path in sorted(set(files)):
        try:
            with path.open("rb") as stream:
                hashes[path] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            problems.append(f"{path}: can't be read: {error.strerror}")
    if problems:
        raise CbsimError(*problems)
    return hashes


def hash_spec(spec: BaseModel) -> str:
    """SHA-256 of a section's values, whatever file they came from."""
    return hash_mapping(spec.model_dump(mode="json"))


def hash_mapping(mapping: Any) -> str:
    """SHA-256 of plain data as canonical JSON: keys sorted, no blanks, floats by their shortest digits."""
    text = json.dumps(mapping, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _versions() -> dict[str, str]:
    dependencies = {name: package_version(name) for name in _DEPENDENCIES}
    return {"cbsim": package_version("cbsim"), "python": platform.python_version(), **dependencies}


def package_version(distribution: str) -> str:
    """The version of an installed distribution."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"
