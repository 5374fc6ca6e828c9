"""Program: what keys do to a session, without a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rich.text import Text

from cbsim.base.errors import CbsimError, ConfigError
from cbsim.cli.play.prompt import Prompt
from cbsim.cli.play.saving import free_name
from cbsim.cli.play.screen import Status, draw
from cbsim.cli.play.session import Session
from cbsim.cli.play.settings import LADDER, NUM_BLOCKS

PACES = (1, 2, 5, 10, 20, 50)
"""Steps a second."""
_USUAL_PACE = 2
_SLICE_S = 0.05
"""Wall-clock seconds between frames on the way to the end."""
_STEP_KEYS = (" ", "s", "right", "down")
_UNDO_KEYS = ("u", "left", "up", "backspace")


class Program:
    """Takes keys, one at a time, and draws the session as it stands."""

    def __init__(self, session: Session, notes: tuple[str, ...] = ()) -> None:
        """`notes` are told first."""
        self.session = session
        self.is_done = False
        self._pace = _USUAL_PACE
        self._is_running = False
        self._is_racing = False
        """On the way to the end, as fast as it goes."""
        self._prompt: Prompt | None = None
        self._shows_help = False
        self._message, self._is_alert = "; ".join(notes), False
        self._keys: dict[str, Callable[[], None]] = {
            **dict.fromkeys(_STEP_KEYS, self._step),
            **dict.fromkeys(_UNDO_KEYS, self._undo),
            "r": self._toggle_run,
            "f": self._race,
            "+": self._faster,
            "=": self._faster,
            "-": self._slower,
            "t": lambda: self._ask_setting("scheduler.max_tokens_per_step"),
            "c": lambda: self._ask_setting("scheduler.chunk_size"),
            "n": lambda: self._ask_setting("scheduler.max_num_seqs"),
            "k": lambda: self._ask_setting(NUM_BLOCKS),
            ":": lambda: self._ask("KEY=VALUE of the scheduler", self._set),
            "a": lambda: self._ask("prompt tokens, output tokens, priority", self._add, "32 12 0"),
            "R": self._restart,
            "w": self._ask_name,
            "?": self._help,
            "h": self._help,
            **dict.fromkeys(("q", "ctrl-c", "ctrl-d"), self._quit),
        }

    @property
    def seconds_a_step(self) -> float | None:
        """How long to wait for keys before the next step is due; `None` for ever, while paused."""
        if self._is_racing:
            return 0.0
        return 1 / PACES[self._pace] if self._is_running else None

    def press(self, key: str) -> None:
        """Do what a key means."""
        try:
            self._press(key)
        except CbsimError as error:
            self._tell(error)

    def tick(self) -> None:
        """A step is due; on the way to the end, as many as fit between two frames."""
        if not (self._is_running or self._is_racing):
            return
        until_s = time.monotonic() + (_SLICE_S if self._is_racing else 0.0)
        try:
            while self._advance() and time.monotonic() < until_s:
                pass
        except CbsimError as error:
            self._is_running = self._is_racing = False
            self._tell(error)

    def run_script(self, keys: list[str]) -> None:
        """Press keys, where no time passes between them except on the way to the end."""
        for key in keys:
            self.press(key)
            while self._is_racing:
                self.tick()

    def frame(self, width: int, height: int) -> list[Text]:
        """The screen, `height` lines of `width` cells."""
        pace = "to the end" if self._is_racing else f"{PACES[self._pace]} steps/s"
        status = Status(
            pace=pace if self._is_running or self._is_racing else "paused",
            message=self._message,
            is_alert=self._is_alert,
            prompt=None if self._prompt is None else str(self._prompt),
            shows_help=self._shows_help,
        )
        return draw(self.session, status, width, height)

    def _press(self, key: str) -> None:
        if self._prompt is not None:
            prompt = self._prompt
            if key in ("enter", "esc", "ctrl-c", "ctrl-d"):
                self._prompt = None
            prompt.press(key)
            return
        if self._shows_help:
            self._shows_help = False
            return
        self._is_racing = False
        self._say("")
        if key in self._keys:
            self._keys[key]()
        elif key in "123456789" and int(key) <= len(LADDER):
            self._say(self.session.use_scheduler(LADDER[int(key) - 1]))
        elif len(key) == 1:
            self._say(f"'{key}' means nothing here; ? tells what does")

    def _step(self) -> None:
        self._is_running = False
        self._advance()

    def _advance(self) -> bool:
        """One step; at the end, say so and stop."""
        is_going = self.session.step()
        if not is_going or self.session.replica.is_over:
            self._is_running = self._is_racing = False
            self._say(self._ending())
        return is_going

    def _ending(self) -> str:
        replica = self.session.replica
        if replica.is_over:
            return "all requests have ended: a adds one, R plays again, w saves"
        return f"the scheduler has nothing it could do for {len(replica.live)} requests"

    def _undo(self) -> None:
        self._is_running = False
        if not self.session.undo():
            self._say("this is the beginning")

    def _toggle_run(self) -> None:
        self._is_running = not self._is_running

    def _race(self) -> None:
        self._is_running, self._is_racing = False, True

    def _faster(self) -> None:
        self._pace = min(self._pace + 1, len(PACES) - 1)
        self._say(f"{PACES[self._pace]} steps a second")

    def _slower(self) -> None:
        self._pace = max(self._pace - 1, 0)
        self._say(f"{PACES[self._pace]} steps a second")

    def _restart(self) -> None:
        self._is_running = False
        self.session.restart()
        self._say("from the start, with settings and requests as they are")

    def _help(self) -> None:
        self._is_running, self._shows_help = False, True

    def _quit(self) -> None:
        self.is_done = True

    def _ask(self, question: str, answer: Callable[[str], None], default: str = "") -> None:
        self._is_running = False
        self._prompt = Prompt(question, answer, default)

    def _ask_setting(self, key: str) -> None:
        name = key.rpartition(".")[2]
        if key == NUM_BLOCKS:
            present: object = self.session.replica.stepper.own.num_blocks
        else:
            config = self.session.experiment.scheduler
            if not hasattr(config, name):
                raise ConfigError(f"{config.type} has no {name}")
            present = getattr(config, name)
        self._ask(f"{name}, now {present}", lambda text: self._set(f"{key}={text}"))

    def _set(self, setting: str) -> None:
        key, _, value = (part.strip() for part in setting.partition("="))
        if key in ("type", "scheduler", "scheduler.type"):
            self._say(self.session.use_scheduler(value))
        else:
            self._say(self.session.change(setting if "." in key else f"scheduler.{setting}"))

    def _add(self, text: str) -> None:
        fields = text.replace(",", " ").split()
        try:
            numbers = [int(field) for field in fields]
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
        self._message, self._is_alert = message, is_alert
