from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cbsim.workload import WORKLOADS, Workload
from cbsim.workload.request import Request

Make = Callable[..., Workload]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A workload from its settings, as an experiment in `tmp_path` with seed 0 would build it."""

    def build(seed: int = 0, **settings: Any) -> Workload:
        workload = WORKLOADS.get(settings["type"])
        return workload(workload.Config.model_validate(settings), seed=seed, folder=tmp_path)

    return build


@pytest.fixture
def trace(tmp_path: Path, make: Make) -> Make:
    """A `trace` workload over a file of the given name and content."""

    def build(name: str, content: str | bytes, **settings: Any) -> Workload:
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(data)
        return make(type="trace", path=name, **settings)

    return build


@pytest.fixture
def facts() -> Callable[[Request], tuple[Any, ...]]:
    """The fixed part of a request, comparable."""

    def fixed_part(request: Request) -> tuple[Any, ...]:
        return (
            request.request_id,
            request.arrival_s,
            request.num_prompt_tokens,
            request.num_output_tokens,
            request.priority,
            request.session_id,
            request.user,
            request.deadline_s,
            request.prompt,
        )

    return fixed_part
