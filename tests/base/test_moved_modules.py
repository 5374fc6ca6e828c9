"""Old paths of modules lead to the modules themselves."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from cbsim.base.moved_modules import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_module_at_the_new_one(old: str) -> None:
    module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])
    assert module.__name__ == MOVED[old]
    assert module.__spec__ is not None
    assert module.__spec__.name == MOVED[old]


def test_what_lies_below_an_old_path_is_not_loaded_twice() -> None:
    check = (
        "from cbsim.explain.source import Source\n"
        "import cbsim.studies.explain.source as new, cbsim.explain\n"
        "assert Source is new.Source is cbsim.explain.Source\n"
        "assert cbsim.explain.source is new\n"
        "from importlib import reload; reload(new)\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_nothing_else_is_found_there() -> None:
    for name in ("cbsim.live_", "cbsim.live.nothing", "cbsim.nothing"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)
