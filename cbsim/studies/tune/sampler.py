"""Sampler: which settings to try next, and which to give up on after a short window, by optuna."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from cbsim.base.errors import CbsimError
from cbsim.base.paths import install_extra
from cbsim.config.tune_space import Choices, Dimension, Number, TuneSpace
from cbsim.studies.tune.merit import WORST
from cbsim.studies.tune.surrogate import Surrogate, chance_above, expected_gain, log_uniform

_SLACK = 0.05
"""Settings behind the best by less than this share of its score on a short window are not given up on."""
_LEAST_KNOWN = 6
"""Settings that must have run before surrogates are asked."""
_NUM_CANDIDATES, _NUM_STARTS = 1000, 5
"""Settings from everywhere that surrogates choose from, and as many around so many of the best."""
_WIDTHS = (0.003, 0.3)
"""Steps away from the best settings, as shares of a range."""
_MOVED = 0.5
"""The chance of each key to differ from the best settings."""
MAX_REPEATS = 200
"""So many proposals in a row that are known already, or not allowed, end the search."""


class Done(NamedTuple):
    """Settings that have run, in full or on a window."""

    values: tuple[Number, ...]
    gain: float
    """What is to be as high as possible, if the SLO is met."""
    headroom: float
    """How far they are within the SLO, below 0 if they are not."""


class Sampler:
    """Proposes settings, and learns from what they show.

    Some come from everywhere, by the tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011) over
    all keys together, as optuna has it, which learns only who is better. The others come from where two
    `Surrogate`s, of the objective and of the headroom within the SLO, promise most: the best settings lie at
    the edge of an SLO, and how far a run is from the edge says more than on which side of it
    (Gardner et al., ICML 2014). Everything is drawn from the seed: equal figures, equal proposals.
    """

    def __init__(self, space: TuneSpace, seed: int) -> None:
        """Raises `CbsimError` if the `tune` extra is not installed."""
        try:
            import optuna
        except ImportError as error:
            raise CbsimError(f"tune: needs optuna: {install_extra('tune')}") from error
        self._space = space
        self._distributions = {
            _name(dimension): _distribution(optuna, dimension) for dimension in space.dimensions
        }
        self._states = optuna.trial.TrialState
        with _quiet(optuna):
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
            self._study = optuna.create_study(
                direction="maximize", sampler=sampler, pruner=_behind_the_best(optuna)
            )
        self._random = np.random.default_rng(seed)
        self._done: list[Done] = []
        self._on_windows: dict[int, dict[int, Done]] = {}
        """Of proposals under way, by number and window."""
        self._kept: list[dict[int, tuple[Done, Done]]] = []
        """Of those that have run in full: what each window showed, and what the run in full."""
        self._believed: list[Done] = []
        """What the surrogates expect of proposals under way."""
        self._open: dict[int, Any] = {}
        """The trials under way, by number."""

    def put_first(self, values: Sequence[Number]) -> None:
        """Have settings proposed before any others."""
        places = zip(self._space.dimensions, values, strict=True)
        self._study.enqueue_trial({_name(dimension): value for dimension, value in places})

    def propose(self) -> tuple[int, tuple[Number, ...]]:
        """A number to name them by, and the settings that it proposes: a value for each dimension."""
        trial = self._study.ask(self._distributions)
        values = tuple(
            _rounded(dimension, trial.params[_name(dimension)]) for dimension in self._space.dimensions
        )
        self._open[trial.number] = (trial, values)
        return trial.number, values

    def propose_by_surrogate(self) -> tuple[int, tuple[Number, ...]]:
        """The same, from where the surrogates promise most; from anywhere as long as they know too little."""
        if len(self._done) >= _LEAST_KNOWN:
            self.put_first(self._most_promising())
        return self.propose()

    def end_batch(self) -> None:
        """No proposals are under way."""
        self._believed.clear()

    def _most_promising(self) -> tuple[Number, ...]:
        known = [*self._done, *self._believed]
        places = np.array([self._places(done.values) for done in known])
        gain = Surrogate(places, [done.gain for done in known], self._random)
        room = Surrogate(places, [done.headroom for done in known], self._random)
        within = [done for done in known if done.headroom > 0]
        ranked = sorted(within or known, key=lambda done: done.gain if within else done.headroom)
        tried = {done.values for done in known}
        candidates = [values for values in self._candidates(ranked[-_NUM_STARTS:]) if values not in tried]
        if not candidates:
            return ranked[-1].values
        at = np.array([self._places(values) for values in candidates])
        gains, rooms = gain.predict(at), room.predict(at)
        promise = chance_above(*rooms, 0.0)
        if within:
            promise = promise * expected_gain(*gains, ranked[-1].gain)
        best = int(np.argmax(promise))
        self._believed.append(Done(candidates[best], float(gains[0][best]), float(rooms[0][best])))
        return candidates[best]

    def _candidates(self, starts: Sequence[Done]) -> list[tuple[Number, ...]]:
        """Settings from everywhere, and from around the best so far."""
        num_keys = len(self._space.dimensions)
        everywhere = self._random.random((_NUM_CANDIDATES, num_keys))
        around = [everywhere]
        for done in starts:
            widths = log_uniform(self._random, _WIDTHS, (_NUM_CANDIDATES // len(starts), 1))
            steps = self._random.normal(size=(len(widths), num_keys)) * widths
            steps *= self._random.random(steps.shape) < _MOVED
            around.append(np.clip(self._places(done.values, one_each=True) + steps, 0.0, 1.0))
        rows = np.concatenate(around).tolist()
        found = (
            tuple(dimension.at(place) for dimension, place in zip(self._space.dimensions, row, strict=True))
            for row in rows
        )
        return list(dict.fromkeys(found))

    def _places(self, values: Sequence[Number], one_each: bool = False) -> list[float]:
        """Settings as a point of the unit cube: choices without an order have a side each."""
        places: list[float] = []
        for dimension, value in zip(self._space.dimensions, values, strict=True):
            if isinstance(dimension, Choices) and not dimension.is_ordered and not one_each:
                places += [float(value == number) for number in range(dimension.num_values)]
            else:
                places.append(dimension.place(value))
        return places

    def drop(self, number: int) -> None:
        """Forget a proposal that is not tried."""
        self._study.tell(self._open.pop(number)[0], state=self._states.FAIL)

    def is_behind(self, number: int, window: int, score: float, gain: float, headroom: float) -> bool:
        """Whether a proposal's score on a window, counted from 0, is behind the best one's; it then ends."""
        trial, values = self._open[number]
        trial.report(score, window)
        shown = Done(values, gain, headroom)
        if not trial.should_prune():
            self._on_windows.setdefault(number, {})[window] = shown
            return False
        self._study.tell(self._open.pop(number)[0], state=self._states.PRUNED)
        self._done.append(self._in_full(shown, window))
        return True

    def _in_full(self, shown: Done, window: int) -> Done:
        """What a run in full would show, as far as those that had both tell.

        Where a queue grows, a latency beyond its limit grows with the number of requests.
        """
        both = [each[window] for each in self._kept if window in each]
        factor = median(full.gain / part.gain for part, full in both if part.gain) if both else 1.0
        longer = -math.log(self._space.plan.windows[window]) if shown.headroom < 0 else 0.0
        return Done(shown.values, shown.gain * factor, shown.headroom - longer)

    def tell(self, number: int, score: float, gain: float, headroom: float) -> None:
        """What a proposal has reached in full."""
        trial, values = self._open.pop(number)
        self._study.tell(trial, score)
        full = Done(values, gain, headroom)
        self._done.append(full)
        windows = self._on_windows.pop(number, {})
        self._kept.append({window: (part, full) for window, part in windows.items()})

    def fail(self, number: int) -> None:
        """A proposal can't run."""
        self._study.tell(self._open.pop(number)[0], WORST)


def _behind_the_best(optuna: Any) -> Any:
    """A pruner that holds each trial against the best one that has run in full, on the same window.

    Short windows are kinder than long ones, since queues have had no time to grow: settings are compared on
    equal windows only. While none has met the SLO in full, those that meet it on a window go on, whatever
    else they reach.
    """

    class BehindTheBest(optuna.pruners.BasePruner):  # type: ignore[misc]
        def prune(self, study: Any, trial: Any) -> bool:
            window = trial.last_step
            own = trial.intermediate_values[window]
            done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
            known = [each for each in done if window in each.intermediate_values]
            if not known:
                return False
            best = max(known, key=lambda each: (each.value, -each.number))
            theirs = best.intermediate_values[window]
            is_behind = bool(own < theirs - _SLACK * abs(theirs))
            return is_behind and (best.value > 0 or own <= 0)

    return BehindTheBest()


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Within this, optuna tells neither what it begins nor which of its parts are experimental."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _name(dimension: Dimension) -> str:
    return dimension.keys[0]


def _distribution(optuna: Any, dimension: Dimension) -> Any:
    kinds = optuna.distributions
    if isinstance(dimension, Choices):
        last = dimension.num_values - 1
        if dimension.is_ordered:
            return kinds.IntDistribution(0, last)
        return kinds.CategoricalDistribution(tuple(range(last + 1)))
    low, high, step = dimension.low, dimension.high, dimension.step
    if step is not None and dimension.num_values is not None:
        high = dimension.numbered(dimension.num_values - 1)
    if dimension.is_whole:
        return kinds.IntDistribution(low, high, log=dimension.is_log, step=step or 1)
    return kinds.FloatDistribution(low, high, log=dimension.is_log, step=step)


def _rounded(dimension: Dimension, value: Number) -> Number:
    """What optuna proposes as a number that is tried."""
    if isinstance(dimension, Choices) or dimension.is_whole:
        return int(value)
    return dimension.at(dimension.place(value))
