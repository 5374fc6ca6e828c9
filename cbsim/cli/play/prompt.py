"""Prompt: one line that is being typed, and what is done with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Prompt:
    """A question in the message line."""

    question: str
    answer: Callable[[str], None]
    """Called with what was typed, blanks around it cut, when enter is pressed."""
    default: str = ""
    """Taken if nothing was typed; if that is empty too, nobody is called."""
    typed: str = ""

    def press(self, key: str) -> bool:
        """Take a key; True when the prompt is done with."""
        if key in ("esc", "ctrl-c", "ctrl-d"):
            return True
        if key == "enter":
            if text := self.typed.strip() or self.default:
                self.answer(text)
            return True
        if key == "backspace":
            self.typed = self.typed[:-1]
        elif key == "ctrl-u":
            self.typed = ""
        elif len(key) == 1:
            self.typed += key
        return False

    def __str__(self) -> str:
        default = f" ({self.default})" if self.default else ""
        return f"{self.question}{default}: {self.typed}"
