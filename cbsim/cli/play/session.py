"""Session: steps, changes and additions to replicas, which can be taken back, begun again and saved."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from pathlib import Path

from cbsim.base.errors import CbsimError, ConfigError, plugin_error
from cbsim.cli.play.fleet import Fleet
from cbsim.cli.play.replica import Replica
from cbsim.cli.play.settings import OWN_TIMES, changes, check_playable, on_rung, revised, save
from cbsim.config.bounds import MAX_TOKENS
from cbsim.schedulers import SCHEDULERS
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_workload
from cbsim.workload.request import Request

Move = Callable[[], object]
"""What a player did."""
MAX_REPLAYED = 20_000
"""Moves that are played again within a second or so."""


class Session:
    """An experiment played step by step.

    `undo` and `restart` play from the beginning again, so what is seen follows from the start and the moves
    alone. Methods that change something raise `ConfigError` if it can't be, and then nothing has changed.
    """

    def __init__(self, experiment: Experiment) -> None:
        """Raises `ConfigError` for settings that can't be played, `WorkloadError` for a wrong workload."""
        check_playable(experiment)
        self._workload = make_workload(experiment)
        if any(request.follows >= 0 for request in self._workload.requests()):
            raise ConfigError(f"workload.wait_for_answers: got null with delays; {OWN_TIMES}: false")
        self._start = experiment
        self._started_with: list[Request] = []
        self._told_before: list[str] = []
        self._shown = 0
        self._play([])

    @property
    def num_steps(self) -> int:
        """Steps that have ended since the beginning."""
        return sum(replica.num_steps for replica in self.fleet.replicas)

    @property
    def replica(self) -> Replica:
        """The one that is shown."""
        return self.fleet.replicas[self._shown]

    def show_next(self) -> None:
        """Show the next replica, after the last one the first."""
        self._shown = (self._shown + 1) % len(self.fleet.replicas)

    @property
    def num_requests(self) -> int | None:
        """Requests of the workload and added ones; `None` if the workload can't tell."""
        num = self._workload.num_requests()
        return None if num is None else num + len(self.additions)

    def requests(self) -> Iterator[Request]:
        """New requests in order of arrival: the workload's, and those added."""
        added = map(copy, list(self.additions))
        return heapq.merge(self._workload.requests(), added, key=lambda request: request.arrival_s)

    def step(self) -> bool:
        """Let one step be decided and end; False if there is nothing left to do.

        Raises `PluginError` if a scheduler of a third party fails; the step has then not been.
        """
        try:
            is_going = self._advance()
        except Exception as error:
            failure = plugin_error(error, {"scheduler": SCHEDULERS.get(self.experiment.scheduler.type)})
            if failure is None:
                raise
            self._play(self._moves)
            if isinstance(error, CbsimError):
                raise
            raise failure from error
        if is_going:
            self._moves.append(self._advance)
        return is_going

    def change(self, setting: str) -> str:
        """Change a setting, given as `KEY=VALUE`; returns what has changed, in words.

        In a cluster it is that of the pool of the replica that is shown.
        """
        if self.experiment.cluster is not None and not setting.startswith("cluster."):
            setting = f"cluster.pools.{self.replica.setup.pool_name}.{setting}"
        return self._become(revised(self.experiment, [setting]))

    def use_scheduler(self, name: str) -> str:
        """Go on with another scheduler; returns what has changed, in words."""
        if name == self.experiment.scheduler.type:
            return f"the scheduler is {name} already"
        experiment, notes = on_rung(self.experiment, name, list(self.requests()))
        return "; ".join([self._become(experiment), *notes])

    def add(self, num_prompt_tokens: int, num_output_tokens: int, priority: int = 0) -> str:
        """Let a request arrive now; returns its name. It may be rejected, which the log tells."""
        for name, number in (("prompt", num_prompt_tokens), ("output", num_output_tokens)):
            if not 1 <= number <= MAX_TOKENS:
                raise ConfigError(f"{name} tokens: got {number}; allowed: 1 to {MAX_TOKENS:,}")
        names = {request.request_id for request in self.requests()}
        number = next(n for n in range(1, len(names) + 2) if f"added-{n}" not in names)
        addition = Request(
            f"added-{number}", self.fleet.now_s, num_prompt_tokens, num_output_tokens, priority=priority
        )
        self._do(partial(self._add, addition))
        return addition.request_id

    def undo(self) -> bool:
        """Take back the last step, change or addition; False if there is none since the beginning.

        Raises `ConfigError` after more than `MAX_REPLAYED` moves, which would take long to play again.
        """
        if not self._moves:
            return False
        if len(self._moves) > MAX_REPLAYED:
            raise ConfigError(f"undo: no longer after {MAX_REPLAYED:,} moves")
        self._play(self._moves[:-1])
        return True

    def restart(self) -> None:
        """From the first instant with the settings and requests as they stand now: what a saved file runs."""
        if self._moves:
            self._told_before = [*self.history, f"{self._when()}: begun again"]
        self._start, self._started_with = self.experiment, list(self.additions)
        self._play([])

    def save(self, path: Path) -> list[Path]:
        """Write the experiment as it stands, with all requests if some were added; returns the files.

        `cbsim run` of it decides what this session decides after `restart`. Raises `CbsimError` for a file
        that can't be written, or that nobody has saved here.
        """
        return save(self.experiment, self if self.additions else None, self.history, path)

    def _become(self, experiment: Experiment) -> str:
        if not changes(self.experiment, experiment):
            return "that is so already"
        self._do(partial(self._change, experiment))
        return self.history[-1].partition(": ")[2]

    def _advance(self) -> bool:
        return self.fleet.advance()

    def _change(self, experiment: Experiment) -> None:
        when = self._when()
        said = self.fleet.become(experiment)
        self.experiment = experiment
        self.history.append(f"{when}: {said}")

    def _add(self, addition: Request) -> None:
        tokens = f"{addition.num_prompt_tokens} + {addition.num_output_tokens} tokens"
        self.history.append(f"{self._when()}: added {addition.request_id}: {tokens}")
        self.additions.append(addition)
        self.fleet.add(copy(addition))

    def _do(self, move: Move) -> None:
        move()
        self._moves.append(move)

    def _play(self, moves: list[Move]) -> None:
        """From the beginning."""
        self.experiment = self._start
        """With the settings as they stand now."""
        self.additions = list(self._started_with)
        """Requests that the player has added, as they come."""
        self.history: list[str] = list(self._told_before)
        """What was changed, added and restarted, each with its step and time, one line each."""
        self.fleet: Fleet = Fleet(self._start, self._workload, self.requests())
        self._moves: list[Move] = []
        for move in moves:
            self._do(move)

    def _when(self) -> str:
        return f"step {self.num_steps}, {self.fleet.now_s:.6g} s"
