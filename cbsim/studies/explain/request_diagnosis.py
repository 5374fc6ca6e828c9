"""RequestDiagnosis: one request's latencies in parts, what happened to it, and who held it up."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple

import pandas as pd

from cbsim.base.errors import CbsimError
from cbsim.base.units import format_seconds
from cbsim.results.hand_overs import hand_over_table
from cbsim.results.result import Result
from cbsim.studies.explain.batch_step import BatchStep, Share, steps_of
from cbsim.studies.explain.run_diagnosis import Breakdown, breakdown
from cbsim.studies.explain.source import Source, Window

MAX_CULPRITS = 3
"""How many others are named, those that had the most."""


@dataclass(slots=True)
class Entry:
    """Something that happened to the request, or went on for a while; seconds."""

    what: str
    """arrived, waited, admitted, resumed, chunk, first token, decoded, passed over, preempted, finished,
    rejected or unfinished; in a cluster handed over, no room (where it will decode), KV transfer, no KV
    (which never came), lost, given back (to be prefilled again), given up (by its client), refused."""
    start_s: float
    end_s: float
    first_step: int | None = None
    last_step: int | None = None
    num_tokens: int = 0
    """Of a chunk or of decodes; of an admission those found in the prefix cache; of a transfer all."""
    num_left: int = 0
    """Of a chunk: what was left to compute of the prompt, this chunk included."""
    is_recomputed: bool = False
    """Of a chunk: whether a preemption had thrown it away; the answer so far is then computed with it."""
    is_swapped: bool = False
    """Of a resumption: whether its KV came back from host memory, so that nothing is computed again."""
    num_slowed: int = 0
    """Of decodes: those in steps that also computed chunks of others."""
    slowed_s: float = 0.0
    """The time of those steps."""
    num_drafts: int = 0
    """Of decodes: drafts verified."""
    num_accepted: int = 0
    """Of decodes: drafts that were right; each step brought one token more than these."""
    reasons_s: dict[str, float] = field(default_factory=dict)
    """Seconds of a wait by what it was for, as `Limits.reason` tells it; `step`: for the step under way,
    `load`: for KV that tiers bring."""
    culprits: dict[str, float] = field(default_factory=dict)
    """Other requests: of a wait for KV the mean share of the used blocks that they held, of a wait for budget
    the prompt tokens they computed; of a chunk or of decodes the prompt tokens computed beside it."""
    num_loaded: int = 0
    """Tokens found at an admission that tiers of KV brought."""

    @property
    def duration_s(self) -> float:
        """How long it went on."""
        return self.end_s - self.start_s

    def to_json(self) -> dict[str, Any]:
        """As plain data, without what says nothing of such an entry."""
        always = {"what": self.what, "start_s": self.start_s, "end_s": self.end_s}
        return always | {name: value for name, value in asdict(self).items() if value not in (None, {}, 0)}


_LEFT = ("lost", "given back", "given up", "refused")
"""How visits end before the last token."""


class _Load(NamedTuple):
    """Tokens whose KV tiers bring, seconds."""

    start_s: float
    end_s: float
    num_tokens: int


class RequestStory:
    """Listens to the steps of a request's replica from its arrival to its end, and keeps what concerns it."""

    def __init__(self, request_id: str, arrival_s: float) -> None:
        self.request_id = request_id
        self.entries = [Entry("arrived", arrival_s, arrival_s)]
        self._loads: list[_Load] = []
        self._wait: _Wait | None = self._begin_wait(arrival_s, arrival_s)
        self._has_answered = False
        self._was_preempted = False
        self._num_brought = 0
        """Tokens whose KV came from another replica."""

    def add(self, step: BatchStep) -> None:
        """The next step of the replica."""
        name = self.request_id
        share = next((share for share in step.shares if share.request_id == name), None)
        if name in step.preempted:
            # A step that was under way then may still bring it a token.
            at_s = max(step.scheduled_at_s, self.entries[-1].end_s)
            self._tell("preempted", at_s, step)
            self._wait = self._begin_wait(step.scheduled_at_s, at_s)
            self._was_preempted = True
        for what, pairs in (("admitted", step.admitted), ("resumed", step.resumed)):
            for _, num_found in (pair for pair in pairs if pair[0] == name):
                self._end_wait(step.start_s)
                num_brought = self._num_brought if what == "admitted" else 0
                self._tell(what, step.start_s, step, num_found - num_brought)
                self.entries[-1].num_loaded = sum(each.num_tokens for each in self._loads_until(step.start_s))
        if self._wait is not None:
            self._wait.add(step)
        elif share is None:
            self._extend("passed over", step)
        elif share.is_prefill:
            self._chunk(step, share)
        else:
            self.entries[-1].is_swapped = self.entries[-1].what == "resumed"
            self._decode(step, share)
        if name in step.finished:
            self._tell("finished", step.end_s, step)

    def hand_over(self, at_s: float, started_s: float, loaded_s: float, num_tokens: int) -> None:
        """Another replica takes it over: when, and when its KV of `num_tokens` starts and has come."""
        self.entries.append(Entry("handed over", at_s, at_s))
        if started_s > at_s:
            self.entries.append(Entry("no room", at_s, started_s))
        self.entries.append(Entry("KV transfer", started_s, loaded_s, num_tokens=num_tokens))
        self._wait, self._num_brought = self._begin_wait(loaded_s, loaded_s), num_tokens

    def wait_for_kv(self, at_s: float, until_s: float) -> None:
        """Another replica takes it over, and loses it before its KV has come."""
        self.entries += [Entry("handed over", at_s, at_s), Entry("no KV", at_s, until_s)]
        self._wait = None

    def load(self, started_s: float, loaded_s: float, num_tokens: int) -> None:
        """Tiers of KV bring so many of its tokens, before an admission that is not told yet."""
        self._loads.append(_Load(started_s, loaded_s, num_tokens))

    def _loads_until(self, at_s: float) -> list[_Load]:
        """Those that had come by an instant, which are told with this and not again."""
        told = [each for each in self._loads if each.end_s <= at_s]
        self._loads[:] = self._loads[len(told) :]
        return told

    def _begin_wait(self, queued_at_s: float, since_s: float) -> _Wait:
        return _Wait(queued_at_s, since_s, self._loads)

    def lose(self, at_s: float, what: str) -> None:
        """It leaves a replica before its last token, its KV lost, as `what` says; so is a step under way."""
        if self.entries[-1].what == "passed over" and self.entries[-1].end_s >= at_s:
            self.entries.pop()
        while self.entries[-1].end_s > at_s:
            if self.entries[-1].start_s < at_s:
                self.entries[-1].end_s = at_s
            elif self.entries.pop().what == "first token":
                self._has_answered = False
        self._end_wait(at_s)
        self.entries.append(Entry(what, at_s, at_s))

    def refuse(self, at_s: float) -> None:
        """No replica takes it."""
        self._wait = None
        self.entries.append(Entry("refused", at_s, at_s))

    def come_again(self, at_s: float, *, is_anew: bool) -> None:
        """It comes to a replica after it was lost; the tokens that it had stay, or it starts `is_anew`."""
        self._wait, self._num_brought = self._begin_wait(at_s, at_s), 0
        self._was_preempted = any(entry.what == "chunk" for entry in self.entries)
        self._has_answered = self._has_answered and not is_anew

    def end(self, at_s: float) -> None:
        """Nothing more is known of it: the run ended at `at_s`."""
        if self.entries[-1].what in ("finished", *_LEFT):
            return
        at_s = max(at_s, self.entries[-1].end_s)
        self._end_wait(at_s)
        self.entries.append(Entry("unfinished", at_s, at_s))

    def _tell(self, what: str, at_s: float, step: BatchStep, num_tokens: int = 0) -> None:
        self.entries.append(Entry(what, at_s, at_s, step.step, step.step, num_tokens))

    def _end_wait(self, at_s: float) -> None:
        if self._wait is not None and at_s > self._wait.since_s:
            self.entries.append(self._wait.close(at_s))
        self._wait = None

    def _chunk(self, step: BatchStep, share: Share) -> None:
        span = (step.start_s, step.end_s, step.step, step.step)
        entry = Entry("chunk", *span, share.num_tokens, share.num_left, self._was_preempted)
        entry.culprits = dict(self._beside(step))
        self.entries.append(entry)
        if share.num_tokens == share.num_left and not self._has_answered:
            self._has_answered = True
            self._tell("first token", step.end_s, step)

    def _decode(self, step: BatchStep, share: Share) -> None:
        entry = self._extend("decoded", step)
        entry.num_tokens += 1 + share.num_accepted
        entry.num_drafts += share.num_drafts
        entry.num_accepted += share.num_accepted
        beside = self._beside(step)
        if beside:
            entry.num_slowed += 1
            entry.slowed_s += step.duration_s
            entry.culprits = dict(Counter(entry.culprits) + beside)

    def _extend(self, what: str, step: BatchStep) -> Entry:
        """The last entry, gone on for one more step, or a new one if that was something else."""
        if self.entries[-1].what != what:
            self.entries.append(Entry(what, step.start_s, step.end_s, step.step))
        last = self.entries[-1]
        last.last_step, last.end_s = step.step, step.end_s
        return last

    def _beside(self, step: BatchStep) -> Counter[str]:
        """Prompt tokens that others computed in a step."""
        chunks = (chunk for chunk in step.chunks if chunk.request_id != self.request_id)
        return Counter({chunk.request_id: chunk.num_tokens for chunk in chunks})


class _Wait:
    """A wait for admission while it lasts: for what, and who had it."""

    def __init__(self, queued_at_s: float, since_s: float, loads: Sequence[_Load]) -> None:
        """Decisions from `queued_at_s` on look at the request; its time from `since_s` on is a wait, in
        which tiers bring KV from one instant to another.
        """
        self.since_s, self._loads = since_s, loads
        self._queued_at_s, self._until_s = queued_at_s, since_s
        self._reasons_s: defaultdict[str, float] = defaultdict(float)
        self._block_s: defaultdict[str, float] = defaultdict(float)
        self._used_block_s = 0.0
        self._budget_tokens: Counter[str] = Counter()

    def add(self, step: BatchStep) -> None:
        """A step into which the request was not admitted."""
        # Between steps a replica that waits for a batch to fill is idle.
        self._go_on(step.start_s, "turn")
        reason = step.waits_for or "turn" if step.scheduled_at_s >= self._queued_at_s else "step"
        self._go_on(step.end_s, reason)
        if reason == "KV":
            self._used_block_s += step.kv_blocks_used * step.duration_s
            for share in step.shares:
                self._block_s[share.request_id] += share.num_blocks * step.duration_s
        elif reason == "budget":
            for chunk in step.chunks:
                self._budget_tokens[chunk.request_id] += chunk.num_tokens

    def close(self, at_s: float) -> Entry:
        """The request is admitted, or the run ends."""
        self._go_on(at_s, "turn")
        entry = Entry("waited", self.since_s, at_s)
        entry.reasons_s = _largest(self._reasons_s)
        longest = next(iter(entry.reasons_s), None)
        if longest == "KV" and self._used_block_s:
            held = _largest(self._block_s, MAX_CULPRITS)
            entry.culprits = {name: block_s / self._used_block_s for name, block_s in held.items()}
        elif longest == "budget":
            entry.culprits = dict(self._budget_tokens.most_common(MAX_CULPRITS))
        return entry

    def _go_on(self, until_s: float, reason: str) -> None:
        if until_s > self._until_s:
            spans = (min(each.end_s, until_s) - max(each.start_s, self._until_s) for each in self._loads)
            loading_s = sum(span_s for span_s in spans if span_s > 0.0)
            if loading_s:
                self._reasons_s["load"] += loading_s
            if until_s - self._until_s > loading_s:
                self._reasons_s[reason] += until_s - self._until_s - loading_s
            self._until_s = until_s


def _largest(values: Mapping[str, float], limit: int | None = None) -> dict[str, float]:
    return dict(sorted(values.items(), key=lambda item: -item[1])[:limit])


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
        if self.state == "failed":
            is_given_up = any(entry.what == "given up" for entry in self.entries[-1:])
            told = ["failed: its client gave up" if is_given_up else "failed: its KV cache was lost"]
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
    events = source.result.events
    events = events[events["request_id"] == story.request_id]
    for visit in _visits(source, values):
        arrived_s, left_s = visit["arrived_at_s"], visit["left_at_s"]
        if visit["follows"] == "handed_over":
            until_s = source.result.events["time_s"].max() if pd.isna(left_s) else left_s
            here = events[events["time_s"].between(arrived_s, until_s)]
            over = next(iter(hand_over_table(here).to_dict("records")), None)
            if over is None:
                story.wait_for_kv(arrived_s, until_s)
                arrived_s = math.inf
            else:
                names = ("handed_over_s", "load_started_s", "loaded_s", "num_tokens")
                story.hand_over(*(over[name] for name in names))
                arrived_s = over["loaded_s"]
        elif visit["follows"] is not None:
            story.come_again(arrived_s, is_anew=visit["num_prefill_tokens"] == values["num_prompt_tokens"])
        if visit["reason"] == "rejected":
            story.refuse(arrived_s)
            continue
        _tell_loads(story, events, visit)
        times = {"arrival_s": arrived_s, "finished_at_s": left_s}
        window = _window(source, {"replica": visit["replica"], **times})
        if window.last is not None and window.last >= window.first:
            for step in source.steps(window):
                story.add(step)
        if visit["reason"] == "failed":
            story.lose(left_s, _why_lost(source.result, events, visit))
    steps = steps_of(source.result, window.replica)
    story.end(float((steps["start_s"] + steps["duration_s"]).max()) if len(steps) else story.entries[0].end_s)
    return story.entries


def _why_lost(result: Result, events: pd.DataFrame, visit: Mapping[str, Any]) -> str:
    """How a visit ended before the last token: one of `_LEFT`."""
    at_s, changes = visit["left_at_s"], result.replicas
    if ((events["event"] == "preempted") & (events["time_s"] == at_s)).any():
        return "given back"
    clients = (result.config.get("cluster") or {}).get("clients") or {}
    has_failed = changes is not None and ((changes["event"] == "failed") & (changes["time_s"] == at_s)).any()
    waits_for_ever = not (clients.get("timeout_s") or clients.get("first_token_timeout_s"))
    return "lost" if has_failed or waits_for_ever else "given up"


def _tell_loads(story: RequestStory, events: pd.DataFrame, visit: Mapping[str, Any]) -> None:
    """What tiers of KV bring to a visit; what comes over a link is told as a hand-over."""
    if visit["follows"] == "handed_over":
        return
    until_s = math.inf if pd.isna(visit["left_at_s"]) else visit["left_at_s"]
    here = events[events["time_s"].between(visit["arrived_at_s"], until_s)]
    started_s = math.nan
    for event, time_s, num_tokens in zip(here["event"], here["time_s"], here["num_tokens"], strict=True):
        if event == "load_started":
            started_s = time_s
        elif event in ("loaded", "read"):
            story.load(time_s if event == "read" else started_s, time_s, int(num_tokens))


def _visits(source: Source, values: dict[Any, Any]) -> list[dict[str, Any]]:
    """The visits of a request to replicas; with each why the one before ended, `None` for the first."""
    table = source.result.visits
    if table is None:
        of_all = {"arrived_at_s": values["arrival_s"], "left_at_s": values["finished_at_s"], "reason": None}
        return [{"replica": values["replica"], "follows": None, **of_all}]
    visits = table[table["request_id"] == values["request_id"]].to_dict("records")
    reasons = [None, *(str(visit["reason"]) for visit in visits)]
    return [{**visit, "follows": reason} for visit, reason in zip(visits, reasons, strict=False)]


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
