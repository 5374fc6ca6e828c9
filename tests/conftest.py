"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from itertools import chain
from pathlib import Path

import pytest

# Workers of pytest fill the cores: threads of BLAS would wait for each other. Read when numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


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


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """Tests that share a fixture of their module run in one process, where it is made once.

    pytest 9.2 keeps the names of tests where pytest-xdist 3.8, which marks groups there, does not look.
    """
    for item in items:
        fixtures = chain.from_iterable(item._fixtureinfo.name2fixturedefs.values())
        shares = any(each.scope == "module" and each.baseid == item.location[0] for each in fixtures)
        if shares and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.location[0]))
    yield
    for item in items:
        if "_nodeid" in vars(item) and hasattr(item, "_id"):
            item._id = type(item._id).parse(item._nodeid)


def pytest_collection_finish() -> None:
    """Modules and tests stay: whoever looks for garbage need not look at them again and again."""
    gc.freeze()
