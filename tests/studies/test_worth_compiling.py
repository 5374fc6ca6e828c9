"""Which runs are worth compiling for: long ones, those whose core is cached, and many short ones together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cbsim.core.layout import REQUEST
from cbsim.studies import simulation
from cbsim.studies.simulation import TOKENS_TO_COMPILE, TOKENS_TO_LOAD, is_worth_compiling


@pytest.fixture(autouse=True)
def _nothing_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "_INTERPRETED", type(simulation._INTERPRETED)())
    monkeypatch.setattr(simulation, "can_compile", lambda: True)


def is_worth(num_tokens: int, *, key: str = "a core", is_cached: bool = False) -> bool:
    requests = np.zeros(1, REQUEST)
    requests["num_output_tokens"] = num_tokens - 1
    bound: Any = SimpleNamespace(key=key, is_cached=is_cached)
    return is_worth_compiling("auto", bound, requests)


def test_a_run_by_its_length() -> None:
    assert not is_worth(TOKENS_TO_LOAD)
    assert is_worth(TOKENS_TO_COMPILE)
    assert is_worth(TOKENS_TO_LOAD, is_cached=True)
    assert not is_worth(TOKENS_TO_LOAD - 1, is_cached=True)


def test_short_runs_of_one_core_add_up() -> None:
    """The points of a sweep: what was interpreted counts, but only of the core in question."""
    third = -(-TOKENS_TO_COMPILE // 3)
    assert [is_worth(third) for _ in range(3)] == [False, False, True]
    assert not is_worth(third, key="another")
