"""TuneAnswer: what `tune` found: a row for each setting tried, the best, the front, a YAML to run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbsim.base.errors import CbsimError, ConfigError
from cbsim.base.paths import write_text
from cbsim.config.condition import ABSENT, lookup
from cbsim.config.tune_space import Choices, Dimension, Number, TuneSpace
from cbsim.config.yaml_text import dump_yaml
from cbsim.results.output import POINTS, TUNE_ANSWER, check_target, has_file
from cbsim.results.result import package_version
from cbsim.results.slo import Slo
from cbsim.studies.experiment import Experiment
from cbsim.studies.labels import full_text, label_values
from cbsim.studies.sweep import save_table, typed_table
from cbsim.studies.tune.merit import Aim, Figures
from cbsim.studies.tune.sampler import MAX_REPEATS, Sampler
from cbsim.studies.tune.trials import IN_FULL, Trial, WindowRunner
from cbsim.studies.worker_pool import open_pool, time_left_s

if TYPE_CHECKING:
    import pandas as pd

BEST_YAML = "best.yaml"
IS_MET, IS_BEST, ON_FRONT = "is_met", "is_best", "on_front"
"""Columns of the table that say what its rows are."""
_OWN = ("trial", "state", "window", IS_MET, IS_BEST, ON_FRONT, "error")
"""The last columns of the table."""


class TuneInterrupted(KeyboardInterrupt):
    """Somebody stopped a tune; its text says what is kept."""


@dataclass(frozen=True, slots=True)
class TuneProgress:
    """How far a tune has come, after each run and each batch of settings."""

    num_trials: int
    """To be tried in all."""
    num_done: int = 0
    num_given_up: int = 0
    """Of those done, fallen behind on a short window."""
    num_failed: int = 0
    """Of those done, not able to run."""
    num_runs: int = 0
    """Runs made now, on windows or in full."""
    num_reused: int = 0
    """Runs whose figures were there already."""
    elapsed_s: float = 0.0
    """Wall-clock seconds since the first one began."""
    best: Trial | None = None
    """The best of those that have run in full, as far as is known."""
    is_met: bool = False
    """Whether it meets the SLO."""
    ends_batch: bool = False

    @property
    def time_left_s(self) -> float | None:
        """Wall-clock seconds to go at the pace so far; `None` before the first settings are done."""
        return time_left_s(self.elapsed_s, self.num_done, self.num_trials - self.num_done)


@dataclass(frozen=True)
class TuneAnswer:
    """The settings tried, and which of them are the best."""

    name: str
    aim: Aim
    keys: tuple[str, ...]
    """What was varied."""
    table: pd.DataFrame
    """A row for each setting tried: the varied keys, the flattened summary of its run in full, and `trial`,
    `state` (ran, given up, failed), `window` (the share of the requests it ran on), `is_met`, `is_best`,
    `on_front`, `error`. Trial 0 is what is written."""
    best_settings: Mapping[str, Any] | None
    """The varied keys of the best, or of the nearest where none meets the SLO, as a file would have them;
    `None` where nothing ran."""
    best_config: Mapping[str, Any] | None
    """The experiment with these settings, as `best.yaml` has it."""
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]

    @property
    def is_met(self) -> bool:
        """Whether any settings meet the SLO."""
        return bool(self.table[IS_MET].any())

    @cached_property
    def best(self) -> dict[str, Any] | None:
        """The row of the best settings; `None` where nothing ran."""
        rows = self.table[self.table[IS_BEST]]
        return None if rows.empty else {str(name): value for name, value in rows.iloc[0].items()}

    @property
    def front(self) -> pd.DataFrame:
        """The rows that no other beats in both what is served and its cost, the cheapest first."""
        return self.table[self.table[ON_FRONT]].sort_values(self.aim.cost)


def tune(
    config: str | Path | Mapping[str, Any] | Experiment,
    out: str | Path | None = None,
    *,
    workers: int = 1,
    cluster: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Callable[[TuneProgress], None] | None = None,
) -> TuneAnswer:
    """Find the best settings within the experiment's SLO, over the keys that its `tune:` names.

    Settings are chosen in batches, from what former ones have shown; those of a batch may run side by side,
    in this process, on `workers` spawned ones, or on the dask cluster at the address `cluster`, whose workers
    must see the same files. Each is tried on short windows of the requests first, and given up if it falls
    behind the best on one. The first are what is written. The answer depends on the seed, not on workers.

    `out`, else `runs/<name>-tune`, keeps the figures of every run in `points`, so that a tune that was killed
    goes on where it was and one with more `trials` continues; and the answer: `table.csv`, `table.parquet`,
    `tune.json` and `best.yaml`.

    Raises `ConfigError` for mistakes in the configuration, `CbsimError` without optuna, or if something other
    than a tune is in the folder, nothing can be written, or the cluster doesn't answer; `TuneInterrupted` for
    Ctrl-C.
    """
    experiment = Experiment.of(config, overrides or {})
    space = _checked_space(experiment)
    folder = Path(out) if out is not None else Path("runs") / f"{experiment.name}-tune"
    check_target(folder, "tune")
    aim = Aim(Slo.of(experiment.slo.limits()), space.plan.objective, _has_prices(experiment, space))
    search = _Search(experiment, space, aim, progress or (lambda _: None))
    points = (folder / POINTS).resolve()
    try:
        with open_pool(min(workers, space.plan.batch), cluster).kept_open() as pool:
            search.run(WindowRunner(points, pool, search.on_run))
    except KeyboardInterrupt:
        num_kept = len(list(points.glob("*.json"))) if points.is_dir() else 0
        raise TuneInterrupted(f"{num_kept} runs kept in {folder}; the same call goes on") from None
    answer = search.answer(folder)
    save_tune(answer, folder)
    return answer


def _checked_space(experiment: Experiment) -> TuneSpace:
    """What there is to vary. Raises `ConfigError` where that is nothing, or a sweep stands beside it."""
    space = experiment.space
    if space is None:
        raise ConfigError(
            "tune: missing; expected keys to vary, as in --set 'tune={scheduler.max_num_seqs: [16, 512]}'"
        )
    if not space.dimensions:
        raise ConfigError(f"tune: nothing is left to vary: {'; '.join(space.notes)}")
    experiment.check_one_run("tune")
    if judged := [key for key in space.keys if key.partition(".")[0] == "slo"]:
        raise ConfigError(f"tune.{judged[0]}: is what settings are judged by; expected other keys")
    return space


def _has_prices(experiment: Experiment, space: TuneSpace) -> bool:
    """Whether all GPUs have a price. Raises `ConfigError` where some have and costs are what is wanted."""
    gpus = {experiment.gpu.name: experiment.gpu.price_per_hour}
    for dimension in space.dimensions:
        if any(key.partition(".")[0] == "gpu" for key in dimension.keys):
            for settings in dimension.extremes():
                try:
                    gpu = experiment.at(settings).gpu
                except ConfigError:
                    continue
                gpus[gpu.name] = gpu.price_per_hour
    unpriced = [name for name, price in gpus.items() if price is None]
    if unpriced and len(unpriced) < len(gpus) and space.plan.objective == "cost":
        raise ConfigError(
            f"tune.objective: cost: {', '.join(unpriced)} lacks gpu.price_per_hour, which others have; "
            "expected one for every GPU, or none, for which GPU hours stand in"
        )
    return not unpriced


class _Search:
    """One tune from its first settings to its last."""

    def __init__(
        self, experiment: Experiment, space: TuneSpace, aim: Aim, progress: Callable[[TuneProgress], None]
    ) -> None:
        self._experiment, self._space, self._aim = experiment, space, aim
        self._sampler = Sampler(space, experiment.seed)
        self._written = _written_values(experiment, space)
        num_further, num_settings = int(self._written is None), space.num_settings
        self._is_grid = num_settings is not None and num_settings + num_further <= space.plan.trials
        self._trials: list[Trial] = []
        self._seen: set[tuple[Number, ...]] = set()
        self._state = TuneProgress(space.plan.trials)
        self._progress = progress
        self._began = time.perf_counter()
        self._manifest: dict[str, Any] = {}

    def run(self, runner: WindowRunner) -> None:
        """Try settings, a batch at a time, until there are as many as planned, or no further ones."""
        self._progress(self._state)
        first = self._first_batch()
        while batch := first or self._next_batch():
            first = []
            self._trials += batch
            for window, share in enumerate((*self._space.plan.windows, IN_FULL)):
                found = runner.run([trial for trial in batch if trial.is_under_way], share)
                for trial in batch:
                    if trial.error or trial.number in found:
                        self._take(trial, window, found.get(trial.number))
            self._sampler.end_batch()
            self._tell(batch)
        self._manifest = runner.manifest

    def on_run(self, was_there: bool) -> None:
        """Hear of a run."""
        state = self._state
        self._state = replace(
            state,
            num_runs=state.num_runs + (not was_there),
            num_reused=state.num_reused + was_there,
            elapsed_s=time.perf_counter() - self._began,
            ends_batch=False,
        )
        self._progress(self._state)

    def _take(self, trial: Trial, window: int, figures: Figures | None) -> None:
        """What a window has shown of a trial; nothing if it failed."""
        if figures is not None and trial.window == IN_FULL:
            trial.figures = figures
        if trial.proposal is None:
            return
        if figures is None:
            self._sampler.fail(trial.proposal)
            trial.proposal = None
        elif trial.figures is not None:
            self._sampler.tell(trial.proposal, *self._shown(figures))
        else:
            trial.is_given_up = self._sampler.is_behind(trial.proposal, window, *self._shown(figures))

    def _shown(self, figures: Figures) -> tuple[float, float, float]:
        """What the sampler learns from."""
        aim = self._aim
        return aim.score(figures), aim.promise(figures), aim.headroom(figures)

    def _tell(self, batch: Sequence[Trial]) -> None:
        ran = [trial for trial in self._trials if trial.figures is not None]
        all_figures = [trial.figures or {} for trial in ran]
        best = self._aim.best(all_figures) if ran else None
        self._state = replace(
            self._state,
            num_done=len(self._trials),
            num_given_up=sum(trial.is_given_up for trial in self._trials),
            num_failed=sum(trial.error is not None for trial in self._trials),
            elapsed_s=time.perf_counter() - self._began,
            best=None if best is None else ran[best],
            is_met=best is not None and self._aim.score(all_figures[best]) > 0,
            ends_batch=True,
        )
        self._progress(self._state)

    def _first_batch(self) -> list[Trial]:
        """The settings as written, then the sampler's first."""
        written = Trial(0, (), self._experiment.at(()))
        if self._written is not None:
            self._sampler.put_first(self._written)
            written.proposal, _ = self._sampler.propose()
            self._seen.add(self._written)
        plan = self._space.plan
        return [written, *self._proposed(1, min(plan.trials, plan.batch) - 1)]

    def _next_batch(self) -> list[Trial]:
        left = self._space.plan.trials - len(self._trials)
        return self._proposed(len(self._trials), min(left, self._space.plan.batch))

    def _proposed(self, first: int, count: int) -> list[Trial]:
        """So many new settings, numbered from `first`; fewer where there are no more."""
        batch: list[Trial] = []
        num_repeats = 0
        while len(batch) < count and num_repeats < MAX_REPEATS:
            if self._is_grid:
                if len(self._seen) == self._space.num_settings:
                    break
                self._sampler.put_first(self._first_unseen())
            is_near = len(batch) % 4 != 0 and not self._is_grid
            proposal, values = self._sampler.propose_by_surrogate() if is_near else self._sampler.propose()
            is_new = values not in self._seen
            self._seen.add(values)
            trial = self._trial(first + len(batch), values, proposal) if is_new else None
            if trial is None:
                self._sampler.drop(proposal)
                num_repeats += 1
            else:
                batch.append(trial)
                num_repeats = 0
        return batch

    def _trial(self, number: int, values: tuple[Number, ...], proposal: int) -> Trial | None:
        """A trial of settings; `None` where a condition rules them out."""
        settings = self._space.settings(values)
        try:
            experiment = self._experiment.allowed_at(settings)
        except ConfigError as error:
            return Trial(number, settings, proposal=proposal, error="; ".join(error.problems))
        return None if experiment is None else Trial(number, settings, experiment, proposal)

    def _first_unseen(self) -> tuple[Number, ...]:
        numbered = map(self._space.numbered, range(self._space.num_settings or 0))
        return next(values for values in numbered if values not in self._seen)

    def answer(self, folder: Path) -> TuneAnswer:
        """What was found; `folder` is where its YAML will lie."""
        ran = [trial for trial in self._trials if trial.figures is not None]
        all_figures = [trial.figures or {} for trial in ran]
        best = ran[self._aim.best(all_figures)] if ran else None
        front = {ran[place].number for place in self._aim.front(all_figures)}
        swept = label_values([self._values(trial) for trial in self._trials])
        rows = []
        for trial, cells in zip(self._trials, swept, strict=True):
            figures = trial.figures or {}
            own = {
                "trial": trial.number,
                "state": trial.state,
                "window": trial.window,
                IS_MET: self._aim.score(figures) > 0 if figures else None,
                IS_BEST: trial is best,
                ON_FRONT: trial.number in front,
                "error": trial.error,
            }
            rows.append(cells | dict(figures) | own)
        versions = self._manifest.get("versions", {}) | {"optuna": package_version("optuna")}
        return TuneAnswer(
            self._experiment.name,
            self._aim,
            self._space.keys,
            typed_table(rows),
            None if best is None else self._values(best),
            None if best is None else self._experiment.as_written(best.settings, folder),
            self._experiment.resolved(),
            self._manifest | {"versions": versions},
        )

    def _values(self, trial: Trial) -> dict[str, Any]:
        """The varied keys at a trial's values."""
        if trial.settings:
            return {each.key: each.value for each in trial.settings}
        return {key: _written(self._experiment, key) for key in self._space.keys}


def _written(experiment: Experiment, key: str) -> Any:
    """The value that an experiment has under a key."""
    value = lookup(experiment.model_dump(mode="json"), key)
    return None if value is ABSENT else value


def _written_values(experiment: Experiment, space: TuneSpace) -> tuple[Number, ...] | None:
    """What is written, as a value for each dimension; `None` where a value lies outside its range."""
    values = [_written_value(experiment, dimension) for dimension in space.dimensions]
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else None


def _written_value(experiment: Experiment, dimension: Dimension) -> Number | None:
    own = [_written(experiment, key) for key in dimension.keys]
    if isinstance(dimension, Choices):
        for number, step in enumerate(dimension.steps):
            try:
                chosen = experiment.at(step)
            except ConfigError:
                continue
            if own == [_written(chosen, key) for key in dimension.keys]:
                return number
        return None
    (value,) = own
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    is_within = dimension.low <= value <= dimension.high
    if dimension.step is not None:
        steps = (value - dimension.low) / dimension.step
        is_within = is_within and abs(steps - round(steps)) < 1e-9
    return value if is_within else None


def save_tune(answer: TuneAnswer, folder: Path) -> None:
    """Write the folder's files, each whole or not at all, the answer last.

    Raises `CbsimError` if they can't be written.
    """
    save_table(answer.table, folder)
    if answer.best_config is not None:
        write_text(folder / BEST_YAML, _best_yaml(answer))
    write_text(folder / TUNE_ANSWER, json.dumps(to_json(answer), indent=2, ensure_ascii=False) + "\n")


def to_json(answer: TuneAnswer) -> dict[str, Any]:
    """Everything but the table, as plain data; of the best and of the front the rows' numbers."""
    rows = answer.table
    return {
        "name": answer.name,
        "slo": answer.aim.slo.plain(),
        "objective": answer.aim.objective,
        "has_prices": answer.aim.has_prices,
        "keys": list(answer.keys),
        "is_met": answer.is_met,
        "best": next(iter(rows["trial"][rows[IS_BEST]].tolist()), None),
        "best_settings": answer.best_settings,
        "best_config": answer.best_config,
        "front": answer.front["trial"].tolist(),
        "config": answer.config,
        "manifest": answer.manifest,
    }


def load_tune(folder: Path) -> TuneAnswer:
    """The answer in a folder. Raises `CbsimError` if its files are missing or damaged."""
    import pandas as pd

    if not has_file(folder, TUNE_ANSWER):
        raise CbsimError(f"{folder}: is not a tune's folder (it has no {TUNE_ANSWER})")
    try:
        read = json.loads((folder / TUNE_ANSWER).read_text(encoding="utf-8"))
        table = pd.read_parquet(folder / "table.parquet")
        aim = Aim(Slo.of(read["slo"]), read["objective"], read["has_prices"])
        told = {name: read[name] for name in ("name", "best_settings", "best_config", "config", "manifest")}
        keys = tuple(read["keys"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CbsimError(
            f"{folder}: is a damaged tune folder, or that of another cbsim ({error}); "
            "the same `cbsim tune` with --out writes it anew from its points"
        ) from error
    return TuneAnswer(aim=aim, keys=keys, table=table, **told)


def _best_yaml(answer: TuneAnswer) -> str:
    """`best.yaml`: an experiment under a few lines on where it comes from."""
    which = "The best of" if answer.is_met else "The nearest to the SLO, which none meets, of"
    settings = answer.best_settings or {}
    lines = [
        f"# {which} {len(answer.table)} settings that `cbsim tune` has tried for {answer.name}:",
        *(f"#   {key}: {_flow(value)}" for key, value in settings.items()),
    ]
    return "\n".join(lines) + "\n" + dump_yaml({"name": answer.name, **(answer.best_config or {})})


def _flow(value: Any) -> str:
    return str(full_text(value))
