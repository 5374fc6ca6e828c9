"""RequestStory: what happened to one request, from step to step, in the order it happened."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cbsim.studies.explain.batch_step import BatchStep, Share

MAX_CULPRITS = 3
"""How many others are named, those that had the most."""


@dataclass(slots=True)
class Entry:
    """Something that happened to the request, or went on for a while; seconds."""

    what: str
    """arrived, waited, admitted, resumed, chunk, first token, decoded, passed over, preempted, finished,
    rejected or unfinished."""
    start_s: float
    end_s: float
    first_step: int | None = None
    last_step: int | None = None
    num_tokens: int = 0
    """Of a chunk or of decodes; of an admission those found in the prefix cache."""
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
    """Of a wait: how long it was for what, as `Limits.reason` tells it; `step`: for the step under way."""
    culprits: dict[str, float] = field(default_factory=dict)
    """Other requests: of a wait for KV the mean share of the used blocks that they held, of a wait for budget
    the prompt tokens they computed; of a chunk or of decodes the prompt tokens computed beside it."""

    @property
    def duration_s(self) -> float:
        """How long it went on."""
        return self.end_s - self.start_s

    def to_json(self) -> dict[str, Any]:
        """As plain data, without what says nothing of such an entry."""
        always = {"what": self.what, "start_s": self.start_s, "end_s": self.end_s}
        return always | {name: value for name, value in asdict(self).items() if value not in (None, {}, 0)}


class RequestStory:
    """Listens to the steps of a request's replica from its arrival to its end, and keeps what concerns it."""

    def __init__(self, request_id: str, arrival_s: float) -> None:
        self.request_id = request_id
        self.entries = [Entry("arrived", arrival_s, arrival_s)]
        self._wait: _Wait | None = _Wait(arrival_s, arrival_s)
        self._has_answered = False
        self._was_preempted = False

    def add(self, step: BatchStep) -> None:
        """The next step of the replica."""
        name = self.request_id
        share = next((share for share in step.shares if share.request_id == name), None)
        if name in step.preempted:
            # A step that was under way then may still bring it a token.
            at_s = max(step.scheduled_at_s, self.entries[-1].end_s)
            self._tell("preempted", at_s, step)
            self._wait = _Wait(step.scheduled_at_s, at_s)
            self._was_preempted = True
        for what, pairs in (("admitted", step.admitted), ("resumed", step.resumed)):
            for _, num_cached in (pair for pair in pairs if pair[0] == name):
                self._end_wait(step.start_s)
                self._tell(what, step.start_s, step, num_cached)
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

    def end(self, at_s: float) -> None:
        """Nothing more is known of it: the run ended at `at_s`."""
        if self.entries[-1].what == "finished":
            return
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

    def __init__(self, queued_at_s: float, since_s: float) -> None:
        """Decisions from `queued_at_s` on look at the request; its time from `since_s` on is a wait."""
        self.since_s = since_s
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
            self._reasons_s[reason] += until_s - self._until_s
            self._until_s = until_s


def _largest(values: Mapping[str, float], limit: int | None = None) -> dict[str, float]:
    return dict(sorted(values.items(), key=lambda item: -item[1])[:limit])
