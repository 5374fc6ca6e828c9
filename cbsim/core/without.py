"""What stands for rules of a world in a run that has no use for them, so that less is compiled and asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cbsim.core.clients import go_on
from cbsim.core.links import begin_transfers, end_transfers, let_go


def begin_alone(world: Any, at_s: float) -> bool:
    """In place of `begin_together` where no ranks work in step."""
    return True


def go_on_nowhere(world: Any, request: Any, before: Any) -> None:
    """Nobody goes on elsewhere."""


def send_nothing(world: Any, self: Any, now: float) -> None:
    """Nothing is sent."""


def end_nothing(world: Any) -> None:
    """No transfer is under way."""


def let_nobody_go(world: Any, request: Any, now: float) -> None:
    """Nobody was handed over."""


WITHOUT_LINKS: dict[Callable[..., Any], Callable[..., Any]] = {
    go_on: go_on_nowhere,
    begin_transfers: send_nothing,
    end_transfers: end_nothing,
    let_go: let_nobody_go,
}
"""By the rule that each stands for."""
