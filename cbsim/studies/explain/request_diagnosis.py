"""RequestDiagnosis: one request's latencies in parts, what happened to it, and who held it up."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import pandas as pd

from cbsim.base.errors import CbsimError
from cbsim.base.units import format_seconds
from cbsim.studies.explain.batch_step import steps_of
from cbsim.studies.explain.request_story import MAX_CULPRITS, Entry, RequestStory
from cbsim.studies.explain.run_diagnosis import Breakdown, breakdown
from cbsim.studies.explain.source import Source
from cbsim.studies.explain.step_source import Window

_COUNTS = ("num_prompt_tokens", "num_output_tokens", "num_preemptions")
_MAX_COMPARED = 20_000
"""How many requests' names an unknown one is compared with at most."""


@dataclass(frozen=True, slots=True)
class RequestDiagnosis:
    """Why a request took as long as it did. Make it with `diagnose_request`."""

    request_id: str
    state: str
    reason: str | None
    """Why it was rejected."""
    num_prompt_tokens: int
    num_output_tokens: int
    num_preemptions: int
    ttft: Breakdown | None
    e2e: Breakdown | None
    """`None` before the first, or the last, token, and where the run has not its parts."""
    ttft_s: float | None
    e2e_s: float | None
    entries: list[Entry]

    def sentence(self) -> str:
        """The diagnosis in words."""
        if self.state == "rejected":
            return f"{self.request_id} was rejected: {self.reason or 'no reason is known'}."
        told = ["was not finished when the run ended"]
        if self.e2e_s is not None:
            told = [f"took {format_seconds(self.e2e_s)}{_parts(self.e2e)}"]
        if self.ttft_s is not None:
            told.append(f"its first token came after {format_seconds(self.ttft_s)}{_parts(self.ttft)}")
        if self.num_preemptions:
            times = "once" if self.num_preemptions == 1 else f"{self.num_preemptions} times"
            told.append(f"it was preempted {times}")
        return f"{self.request_id} {'; '.join(told)}."

    def slowed_by(self) -> dict[str, int]:
        """The prompt tokens of other requests that were computed beside its own tokens, the most first."""
        tokens: Counter[str] = Counter()
        for entry in self.entries:
            if entry.what in ("chunk", "decoded"):
                tokens.update({name: int(number) for name, number in entry.culprits.items()})
        return dict(tokens.most_common(MAX_CULPRITS))

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        names = ("state", *_COUNTS, "ttft_s", "e2e_s")
        return {
            "request_id": self.request_id,
            "sentence": self.sentence(),
            **{name: getattr(self, name) for name in names},
            "ttft": self.ttft.to_json() if self.ttft else None,
            "e2e": self.e2e.to_json() if self.e2e else None,
            "slowed_by": self.slowed_by(),
            "timeline": [entry.to_json() for entry in self.entries],
        }


def _parts(of: Breakdown | None) -> str:
    return f", {of.in_words('of which')}" if of else ""


def diagnose_request(source: Source, request_id: str) -> RequestDiagnosis:
    """Why a request of a run took as long as it did, from the batches of the steps while it was there.

    Raises `CbsimError` with the nearest name if there is no such request, and as `Source.batch_steps` does.
    """
    row = _row(source, request_id)
    values = row.astype(object).where(row.notna(), None).to_dict("records")[0]
    state = str(values["state"])
    return RequestDiagnosis(
        request_id=request_id,
        state=state,
        reason=_reason(source.result.events, request_id),
        **{name: int(values[name]) for name in _COUNTS},
        ttft=breakdown(row, "ttft"),
        e2e=breakdown(row, "e2e"),
        ttft_s=values["ttft_s"],
        e2e_s=values["e2e_s"],
        entries=[] if state == "rejected" else _entries(source, values),
    )


def stay_window(source: Source, request_id: str) -> Window:
    """The steps of its replica from a request's arrival to its end; raises as `diagnose_request`."""
    return _window(source, _row(source, request_id).to_dict("records")[0])


def _row(source: Source, request_id: str) -> pd.DataFrame:
    requests = source.result.requests
    row = requests[requests["request_id"] == request_id]
    if not len(row):
        raise CbsimError(_no_such(source.name, request_id, requests["request_id"]))
    return row


def _entries(source: Source, values: dict[Any, Any]) -> list[Entry]:
    story = RequestStory(str(values["request_id"]), float(values["arrival_s"]))
    window = _window(source, values)
    if window.last is not None and window.last >= window.first:
        source.batch_steps(window, story.add)
    steps = steps_of(source.result, window.replica)
    story.end(float((steps["start_s"] + steps["duration_s"]).max()) if len(steps) else story.entries[0].end_s)
    return story.entries


def _window(source: Source, values: dict[Any, Any]) -> Window:
    replica = 0 if pd.isna(values["replica"]) else int(values["replica"])
    steps = steps_of(source.result, replica)
    first = int((steps["start_s"] + steps["duration_s"]).searchsorted(values["arrival_s"], side="right"))
    last = len(steps) - 1
    if not pd.isna(values["finished_at_s"]):
        last = int(steps["start_s"].searchsorted(values["finished_at_s"], side="left")) - 1
    return Window(replica, first, last)


def _reason(events: pd.DataFrame, request_id: str) -> str | None:
    rejected = events[(events["request_id"] == request_id) & (events["event"] == "rejected")]
    return str(rejected["reason"].iloc[0]) if len(rejected) else None


def _no_such(name: str, request_id: str, ids: pd.Series[str]) -> str:
    names = sorted(ids)
    # Of many names only those around its place can be near it.
    first = max(0, bisect_left(names, request_id) - _MAX_COMPARED // 2) if len(names) > _MAX_COMPARED else 0
    near = get_close_matches(request_id, names[first : first + _MAX_COMPARED], n=1)
    hint = f"they are named like '{ids.iloc[0]}'" if names else "it has none"
    hint = f"did you mean '{near[0]}'?" if near else hint
    return f"--request: {name} has no request '{request_id}'; {hint}"
