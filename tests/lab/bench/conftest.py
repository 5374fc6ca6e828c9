"""What tests of the benchmark share."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbsim.lab.bench import study as studying
from tests.lab.bench.small import TRACE, Bench


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    (tmp_path / "t.csv").write_text(TRACE)
    return tmp_path / "t.csv"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    stand_in = Bench()
    monkeypatch.setattr(studying, "in_fresh_process", stand_in)
    return stand_in
