"""A card that nobody has, to walk a calibration on a CPU: what is timed on it takes what a law says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cbsim.lab.calibrate.timing_plan import PlanPoint
from cbsim.lab.kernels.attention_backends import SdpaBackend
from cbsim.lab.kernels.kernel_choice import DecodeTuning, KernelChoice
from cbsim.lab.kernels.timing import Device, MakeCalls, Timer, Timing, open_device

NUM_LAYERS = 2
"""Of the model whose whole steps the law prices."""
NOISE = 0.01


def fake_device() -> Device:
    """This machine's processor under a name that no real card has."""
    return replace(open_device("cpu"), name="a fake card, of which nothing was measured")


def law_s(point: PlanPoint) -> float:
    """Made-up seconds of a point: a launch, and a slope by its size; the whole is the sum of its parts."""
    pairs = sum(tokens * context + tokens * (tokens + 1) / 2 for tokens, context in point.chunks)
    attention_s = 0.0
    if point.chunks:
        attention_s += 4e-6 + 3e-9 * sum(tokens for tokens, _ in point.chunks) + 2e-12 * pairs
    if point.contexts:
        attention_s += 4e-6 + 1e-9 * sum(point.contexts) + 2e-8 * len(point.contexts)
    dense_s = 9e-6 + 2e-8 * point.tokens
    logits_s = 6e-6 + 3e-8 * point.num_logits
    match point.op:
        case "dense" | "experts" | "collectives":
            return dense_s
        case "logits":
            return logits_s
        case "step":
            return NUM_LAYERS * (dense_s + attention_s) + logits_s
    return attention_s


class FakeBackend(SdpaBackend):
    """SDPA under two names, to choose from, and decodes to cut in ways that change nothing."""

    prefill_names = ("sdpa", "sdpa again")
    choice = KernelChoice(DecodeTuning())

    def with_choice(self, choice: KernelChoice) -> FakeBackend:
        """See `AttentionBackend.with_choice`."""
        other = FakeBackend(self.shard, self.device, self.window)
        other.choice = choice
        return other

    def describe(self) -> str:
        """See `AttentionBackend.describe`."""
        return f"nothing but SDPA; {self.choice.told()}"


class FakeTimer(Timer):
    """Runs a call once, to see that it can be, and says that it took what a law says, give or take 1 %.

    Work that is no point of a plan takes 10 us.
    """

    def __init__(
        self, law: Callable[[PlanPoint], float] = law_s, seed: int = 0, *, runs: bool = True
    ) -> None:
        """`runs=False` runs nothing."""
        super().__init__(num_runs=3, num_warmups=1)
        self.law, self.runs = law, runs
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def _time(self, make_calls: MakeCalls, what: object, as_graph: bool) -> Timing:
        if self.runs:
            for call in make_calls(1):
                call()
        seconds = self.law(what) if isinstance(what, PlanPoint) else 1e-5
        runs_s = seconds * self._rng.uniform(1 - NOISE, 1 + NOISE, self.num_runs)
        return Timing.of(runs_s.tolist(), graph=as_graph, is_cold=True)

    def _run_s(self, run: object) -> float:
        """See `Timer._run_s`; nothing is run by the clock."""
        return 0.0
