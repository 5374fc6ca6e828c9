"""Program: what keys do to a session, without a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.text import Text

from cbsim.base.errors import CbsimError, ConfigError
from cbsim.cli.play.screen import Status, draw
from cbsim.cli.play.session import Session
from cbsim.cli.play.settings import KEYS, LADDER, NUM_BLOCKS, free_name

Mode = Literal["paused", "running", "racing"]
"""Racing is on the way to the end, as fast as it goes."""
PACES = (1, 2, 5, 10, 20, 50)
"""Steps a second."""
_USUAL_PACE = 2
_SLICE_S = 0.05
"""Wall-clock seconds between frames on the way to the end."""
_STEP_KEYS = (" ", "s", "right", "down")
_UNDO_KEYS = ("u", "left", "up", "backspace")
_LEAVE_KEYS = ("esc", "ctrl-c", "ctrl-d")


@dataclass(slots=True)
class _Prompt:
    """A question in the message line, and what is typed there."""

    question: str
    answer: Callable[[str], None]
    """Called with what was typed, blanks around it cut, when enter is pressed."""
    default: str = ""
    """Taken if nothing was typed; if that is empty too, nobody is called."""
    typed: str = ""

    def press(self, key: str) -> None:
        """Take a key that is typed."""
        if key == "backspace":
            self.typed = self.typed[:-1]
        elif key == "ctrl-u":
            self.typed = ""
        elif len(key) == 1:
            self.typed += key

    def __str__(self) -> str:
        default = f" ({self.default})" if self.default else ""
        return f"{self.question}{default}: {self.typed}"


class Program:
    """Takes keys, one at a time, and draws the session as it stands."""

    def __init__(self, session: Session, notes: tuple[str, ...] = ()) -> None:
        """`notes` are told first."""
        self.session = session
        self.is_done = False
        self._pace = _USUAL_PACE
        self._mode: Mode = "paused"
        self._prompt: _Prompt | None = None
        self._status = Status(message="; ".join(notes))
        self._keys: dict[str, Callable[[], None]] = {
            **dict.fromkeys(_STEP_KEYS, self._step),
            **dict.fromkeys(_UNDO_KEYS, self._undo),
            "r": lambda: self._go("paused" if self._mode == "running" else "running"),
            "f": partial(self._go, "racing"),
            **dict.fromkeys("+=", partial(self._change_pace, 1)),
            "-": partial(self._change_pace, -1),
            **{key: partial(self._ask_limit, name) for key, name in KEYS.items()},
            "k": partial(self._ask_limit, NUM_BLOCKS),
            ":": partial(self._ask, "KEY=VALUE of the scheduler", self._set),
            "a": partial(self._ask, "prompt tokens, output tokens, priority", self._add, "32 12 0"),
            "tab": self.session.show_next,
            "R": self._restart,
            "w": self._ask_name,
            **dict.fromkeys("?h", self._help),
            **dict.fromkeys(("q", "ctrl-c", "ctrl-d"), partial(setattr, self, "is_done", True)),
        }

    @property
    def seconds_a_step(self) -> float | None:
        """How long to wait for keys before the next step is due; `None` for ever, while paused."""
        if self._mode == "paused":
            return None
        return 0.0 if self._mode == "racing" else 1 / PACES[self._pace]

    def press(self, key: str) -> None:
        """Do what a key means."""
        try:
            self._press(key)
        except CbsimError as error:
            self._tell(error)

    def tick(self) -> None:
        """A step is due; on the way to the end, as many as fit between two frames."""
        if self._mode == "paused":
            return
        until_s = time.monotonic() + (_SLICE_S if self._mode == "racing" else 0.0)
        try:
            while self._advance() and time.monotonic() < until_s:
                pass
        except CbsimError as error:
            self._mode = "paused"
            self._tell(error)

    def run_script(self, keys: list[str]) -> None:
        """Press keys, where no time passes between them except on the way to the end."""
        for key in keys:
            self.press(key)
            while self._mode == "racing":
                self.tick()

    def frame(self, width: int, height: int) -> list[Text]:
        """The screen, `height` lines of `width` cells."""
        paces = {"paused": "paused", "racing": "to the end", "running": f"{PACES[self._pace]} steps/s"}
        self._status.pace = paces[self._mode]
        self._status.prompt = None if self._prompt is None else str(self._prompt)
        return draw(self.session, self._status, width, height)

    def _press(self, key: str) -> None:
        if (prompt := self._prompt) is not None:
            if key not in ("enter", *_LEAVE_KEYS):
                prompt.press(key)
                return
            self._prompt = None
            if key == "enter" and (text := prompt.typed.strip() or prompt.default):
                prompt.answer(text)
            return
        if self._status.shows_help:
            self._status.shows_help = False
            return
        if self._mode == "racing":
            self._mode = "paused"
        self._say("")
        if key in self._keys:
            self._keys[key]()
        elif key in "123456789" and int(key) <= len(LADDER):
            self._say(self.session.use_scheduler(LADDER[int(key) - 1]))
        elif len(key) == 1:
            self._say(f"'{key}' means nothing here; ? tells what does")

    def _step(self) -> None:
        self._mode = "paused"
        self._advance()

    def _advance(self) -> bool:
        """One step; at the end, say so and stop."""
        is_going = self.session.step()
        fleet = self.session.fleet
        if fleet.is_over:
            self._mode = "paused"
            self._say("all requests have ended: a adds one, R plays again, w saves")
        elif not is_going:
            self._mode = "paused"
            self._say(f"the scheduler has nothing it could do for {len(fleet.live)} requests")
        return is_going

    def _undo(self) -> None:
        self._mode = "paused"
        if not self.session.undo():
            self._say("this is the beginning")

    def _go(self, mode: Mode) -> None:
        self._mode = mode

    def _change_pace(self, num_up: int) -> None:
        self._pace = min(max(self._pace + num_up, 0), len(PACES) - 1)
        self._say(f"{PACES[self._pace]} steps a second")

    def _restart(self) -> None:
        self._mode = "paused"
        self.session.restart()
        self._say("from the start, with settings and requests as they are")

    def _help(self) -> None:
        self._mode, self._status.shows_help = "paused", True

    def _ask(self, question: str, answer: Callable[[str], None], default: str = "") -> None:
        self._mode = "paused"
        self._prompt = _Prompt(question, answer, default)

    def _ask_limit(self, key: str) -> None:
        """For another value of a limit of the scheduler, or of the number of KV blocks."""
        name, replica = key.rpartition(".")[2], self.session.replica
        limited: Any = replica.stepper.own if key == NUM_BLOCKS else replica.experiment.scheduler
        if not hasattr(limited, name):
            raise ConfigError(f"{limited.type} has no {name}")
        self._ask(f"{name}, now {getattr(limited, name)}", lambda text: self._set(f"{key}={text}"))

    def _set(self, setting: str) -> None:
        key, _, value = (part.strip() for part in setting.partition("="))
        if key in ("type", "scheduler", "scheduler.type"):
            self._say(self.session.use_scheduler(value))
        else:
            self._say(self.session.change(setting if "." in key else f"scheduler.{setting}"))

    def _add(self, text: str) -> None:
        try:
            numbers = [int(field) for field in text.replace(",", " ").split()]
        except ValueError:
            numbers = []
        if len(numbers) not in (2, 3):
            raise ConfigError(f"got '{text}'; expected two or three whole numbers, as in 32 12 0")
        name = self.session.add(*numbers)
        self._say(f"{name} arrives with {numbers[0]} + {numbers[1]} tokens")

    def _ask_name(self) -> None:
        path = free_name(Path(), f"{self.session.experiment.name}-played")
        self._ask("save as", self._save, str(path))

    def _save(self, text: str) -> None:
        paths = self.session.save(Path(text).expanduser())
        self._say(f"written to {' and '.join(map(str, paths))}")

    def _tell(self, error: CbsimError) -> None:
        more = len(error.problems) - 1
        self._say(error.problems[0] + (f" (and {more} more)" if more else ""), is_alert=True)

    def _say(self, message: str, *, is_alert: bool = False) -> None:
        self._status.message, self._status.is_alert = message, is_alert
