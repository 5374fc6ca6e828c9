"""An observer of one's own: how long preempted requests are away."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import Field

from cbsim.config.section import ComponentConfig
from cbsim.observers import ObservedRun, Observer
from cbsim.workload.request import Request


class AwayConfig(ComponentConfig):
    """Each preemption with the time until the request ran again, as `away.csv`."""

    min_s: float = Field(default=0.0, ge=0)
    """Shorter absences are left out, seconds."""


class AwayObserver(Observer):
    """Takes down how long preempted requests wait to run again."""

    Config = AwayConfig
    config: AwayConfig

    def on_run_start(self, run: ObservedRun) -> None:
        """See `Observer.on_run_start`."""
        self.away: list[tuple[str, float]] = []

    def on_admitted(self, now: float, request: Request, replica: int) -> None:
        """See `Observer.on_admitted`."""
        away_s = now - request.waiting_since_s
        if request.num_preemptions and away_s >= self.config.min_s:
            self.away.append((request.request_id, away_s))

    def files(self) -> Mapping[str, Callable[[Path], None]]:
        """See `Observer.files`."""
        return {"away.csv": self._write}

    def _write(self, path: Path) -> None:
        lines = ["request_id,away_s", *(f"{name},{away_s}" for name, away_s in self.away)]
        path.write_text("\n".join(lines) + "\n")
