"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared(repo_root: Path) -> Path:
    """Recordings and traces beside the checkout; tests that need them are skipped where they are absent."""
    folder = repo_root.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the folder of shared recordings is absent")
    return folder
