"""Best settings: what `tune` found: a row for each setting tried, the best, the front, a YAML to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbsim.base.errors import ConfigError
from cbsim.base.paths import write_text
from cbsim.config.tune_space import TuneSpace
from cbsim.config.yaml_text import dump_yaml
from cbsim.results.output import POINTS, TUNE_ANSWER, check_target
from cbsim.results.result import package_version
from cbsim.results.slo import Slo
from cbsim.studies.answer_folder import save_answer, saved_answer
from cbsim.studies.experiment import Experiment
from cbsim.studies.labels import full_text, label_values
from cbsim.studies.sweep import typed_table
from cbsim.studies.tune.merit import Aim
from cbsim.studies.tune.rounds import Rounds, TuneProgress
from cbsim.studies.tune.trials import WindowRunner
from cbsim.studies.worker_pool import open_pool

if TYPE_CHECKING:
    import pandas as pd

BEST_YAML = "best.yaml"
IS_MET, IS_BEST, ON_FRONT = "is_met", "is_best", "on_front"
"""Columns of the table that say what its rows are."""


class TuneInterrupted(KeyboardInterrupt):
    """Somebody stopped a tune; its text says what is kept."""


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
        rows = self.table[self.table[IS_BEST]].astype(object)
        if rows.empty:
            return None
        known = rows.where(rows.notna(), None)
        return {str(name): value for name, value in known.iloc[0].items()}

    @property
    def front(self) -> pd.DataFrame:
        """The rows that no other beats in both what is served and its cost, the cheapest first."""
        rows = self.table[self.table[ON_FRONT]]
        return rows if rows.empty else rows.sort_values(self.aim.cost)


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
    rounds = Rounds(experiment, space, aim, progress or (lambda _: None))
    points = (folder / POINTS).resolve()
    try:
        with open_pool(min(workers, space.plan.batch), cluster).kept_open() as pool:
            rounds.run(WindowRunner(points, pool, rounds.on_run))
    except KeyboardInterrupt:
        num_kept = len(list(points.glob("*.json"))) if points.is_dir() else 0
        raise TuneInterrupted(f"{num_kept} runs kept in {folder}; the same call goes on") from None
    answer = _answer(rounds, experiment, space, aim, folder)
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
    prices = set(_prices(experiment))
    for dimension in space.dimensions:
        if any(key.partition(".")[0] in ("gpu", "cluster") for key in dimension.keys):
            for settings in dimension.extremes():
                try:
                    prices.update(_prices(experiment.at(settings)))
                except ConfigError:
                    continue
    unpriced = sorted(name for name, price in prices if price is None)
    if unpriced and len(unpriced) < len(prices) and space.plan.objective == "cost":
        raise ConfigError(
            f"tune.objective: cost: {', '.join(unpriced)} lacks gpu.price_per_hour, which others have; "
            "expected one for every GPU, or none, for which GPU hours stand in"
        )
    return not unpriced


def _prices(experiment: Experiment) -> list[tuple[str, float | None]]:
    """Names and prices of the GPUs that an experiment runs on: its own, or those of its pools."""
    return [(own.gpu.name, own.gpu.price_per_hour) for own in experiment.alone]


def _answer(rounds: Rounds, experiment: Experiment, space: TuneSpace, aim: Aim, folder: Path) -> TuneAnswer:
    """What was found; `folder` is where its YAML will lie."""
    ran = [trial for trial in rounds.trials if trial.figures is not None]
    all_figures = [trial.figures or {} for trial in ran]
    best = ran[aim.best(all_figures)] if ran else None
    front = {ran[place].number for place in aim.front(all_figures)}
    swept = label_values([rounds.values(trial) for trial in rounds.trials])
    rows = []
    for trial, cells in zip(rounds.trials, swept, strict=True):
        figures = trial.figures or {}
        own = {
            "trial": trial.number,
            "state": trial.state,
            "window": trial.window,
            IS_MET: aim.score(figures) > 0 if figures else None,
            IS_BEST: trial is best,
            ON_FRONT: trial.number in front,
            "error": trial.error,
        }
        rows.append(cells | dict(figures) | own)
    versions = rounds.manifest.get("versions", {}) | {"optuna": package_version("optuna")}
    return TuneAnswer(
        experiment.name,
        aim,
        space.keys,
        typed_table(rows),
        None if best is None else rounds.values(best),
        None if best is None else experiment.as_written(best.settings, folder),
        experiment.resolved(),
        rounds.manifest | {"versions": versions},
    )


def save_tune(answer: TuneAnswer, folder: Path) -> None:
    """Write the folder's files, each whole or not at all, the answer last.

    Raises `CbsimError` if they can't be written.
    """
    if answer.best_config is not None:
        write_text(folder / BEST_YAML, _best_yaml(answer))
    save_answer(folder, TUNE_ANSWER, to_json(answer), answer.table, "table")


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
    with saved_answer(folder, "tune", TUNE_ANSWER, "table") as (read, table):
        aim = Aim(Slo.of(read["slo"]), read["objective"], read["has_prices"])
        told = {name: read[name] for name in ("name", "best_settings", "best_config", "config", "manifest")}
        return TuneAnswer(aim=aim, keys=tuple(read["keys"]), table=table, **told)


def _best_yaml(answer: TuneAnswer) -> str:
    """`best.yaml`: an experiment under a few lines on where it comes from."""
    which = "The best of" if answer.is_met else "The nearest to the SLO, which none meets, of"
    settings = answer.best_settings or {}
    lines = [
        f"# {which} {len(answer.table)} settings that `cbsim tune` has tried for {answer.name}:",
        *(f"#   {key}: {full_text(value)}" for key, value in settings.items()),
    ]
    return "\n".join(lines) + "\n" + dump_yaml({"name": answer.name, **(answer.best_config or {})})
