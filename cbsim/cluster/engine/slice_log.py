"""Slices: which request computed what in which step, in little room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cbsim.cluster.engine.recorder import Column, Table

PREFILL_COLUMNS = ("step", "request", "num_tokens", "num_computed_tokens", "emits")
DECODE_COLUMNS = ("request", "first_step", "last_step")


@dataclass(frozen=True, slots=True)
class Slices:
    """The slices of the steps that have ended, of one replica or of all."""

    prefills: dict[str, Column]
    """One row a prompt slice, by replica and in the order of its steps: `replica`, `step`, `request` (row in
    `RunLog.requests`), `num_tokens`, `num_computed_tokens` (before the step), `emits` (1 if a token came
    out)."""
    decodes: dict[str, Column]
    """Runs of decodes: `replica`, `request`, `first_step`, `last_step`. In each step of the run that decodes
    anything at all, the request decodes one token. No run reaches over a preemption of its request."""

    @classmethod
    def joined(cls, replicas: Sequence[Slices]) -> Slices:
        """The slices of several replicas, concatenated in their order."""
        return cls(
            _joined([slices.prefills for slices in replicas]),
            _joined([slices.decodes for slices in replicas]),
        )


class SliceLog:
    """Takes down slices one by one, in the order of steps."""

    def __init__(self) -> None:
        self._prefills = Table((), PREFILL_COLUMNS, "i")
        self._decodes = Table((), DECODE_COLUMNS, "i")
        self._runs: dict[int, tuple[int, int]] = {}
        """Request -> first and last step of the run of decodes that may still go on."""

    def prefill(
        self, step: int, request: int, num_tokens: int, num_computed_tokens: int, emits: bool
    ) -> None:
        """A request computed prompt tokens in a step."""
        self._prefills.append(step, request, num_tokens, num_computed_tokens, int(emits))

    def decode(self, step: int, request: int) -> None:
        """A request decoded a token in a step."""
        first, last = self._runs.get(request, (step, step - 1))
        if last != step - 1:
            self._decodes.append(request, first, last)
            first = step
        self._runs[request] = (first, step)

    def close(self, request: int) -> None:
        """A request has ended, or the run has."""
        run = self._runs.pop(request, None)
        if run is not None:
            self._decodes.append(request, *run)

    def slices(self, replica: int) -> Slices:
        """What was taken down: nothing may be added after this."""
        return Slices(_of_replica(self._prefills, replica), _of_replica(self._decodes, replica))


def _of_replica(table: Table, replica: int) -> dict[str, Column]:
    return {"replica": np.full(len(table), replica), **table.to_columns()}


def _joined(tables: Sequence[dict[str, Column]]) -> dict[str, Column]:
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
