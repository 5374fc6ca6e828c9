"""Experiment: everything a run depends on, frozen and typed, from a YAML file or a mapping."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from cbsim.base.errors import ConfigError, blaming
from cbsim.base.paths import FILE_NAME, data_folder, is_file_name
from cbsim.base.registry import did_you_mean, located
from cbsim.cluster.router import ROUTERS, RouterConfig
from cbsim.config.assembly import Assembly, nested_keys
from cbsim.config.condition import has_key, lookup
from cbsim.config.document import (
    SWEEP,
    TUNE,
    Document,
    as_options,
    in_order_of_lines,
    parse_overrides,
    read_document,
    split_key,
)
from cbsim.config.section import ByType, ComponentConfig, Named, Section
from cbsim.config.sweep_grid import AxisValue
from cbsim.config.tune_space import Range, TuneSpace
from cbsim.config.yaml_text import format_keys
from cbsim.cost import COST_MODELS
from cbsim.observers import OBSERVERS, Observer
from cbsim.observers.audience import Audience
from cbsim.results.measured import MeasureConfig
from cbsim.results.output import REPORT, RUN_FILES
from cbsim.results.slo import SloConfig
from cbsim.schedulers import SCHEDULERS, SchedulerConfig
from cbsim.schedulers.kvcache import KVCacheConfig, KvCapacity
from cbsim.schedulers.vllm import VllmConfig
from cbsim.specs import GpuSpec, ModelSpec, ParallelSpec
from cbsim.specs.huggingface import NAMED_MODEL
from cbsim.studies.cluster_config import ClusterConfig, PoolConfig
from cbsim.studies.misfits import misfits, traces_not_there
from cbsim.workload import WORKLOADS, WorkloadConfig
from cbsim.workload.frames import WORKLOAD, with_files

MAX_CHECKED_POINTS = 1000
"""A larger grid has each value checked alone when it is loaded, not each point."""

Names = dict[str, str]
"""Dotted keys, those of conditions with the condition's text."""

Overrides = Mapping[str, Any] | Iterable[str]
"""`{"scheduler.max_num_seqs": 64}`, or texts as after `--set`."""


class ReplicasConfig(Section):
    """Equal replicas behind one router."""

    count: int = Field(default=1, ge=1)
    """How many replicas."""
    router: Annotated[ComponentConfig, ByType(ROUTERS, "round_robin")] = RouterConfig(type="round_robin")
    """Which replica an arriving request goes to."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that share each layer: the same as `parallel.tensor`."""


class OutputConfig(Section):
    """What is written beyond the summary, requests, steps and events."""

    batches: bool = False
    """Write `batches.parquet`: each request's share of each step."""


class Experiment(Section):
    """One question to the simulator. With a `sweep`, its other settings are those of the first point."""

    name: str = "experiment"
    """What its run folder is called; the file's name where nothing is said."""
    seed: int = Field(default=0, ge=0)
    """Where all random numbers come from."""
    model: Annotated[ModelSpec, NAMED_MODEL]
    """The model served; a Hugging Face `config.json`, its folder or a mapping with its keys does too."""
    gpu: Annotated[GpuSpec, Named("gpu", "gpus", "h200")]
    """The GPU it is served on."""
    engine: Literal["auto", "compiled", "interpreted", "fast", "reference"] = "auto"
    """How the simulation runs, with the same results to the last bit: `auto` compiles it where a run is long
    enough for that to pay, `compiled` always does, `interpreted` never does. `fast` and `reference` are older
    names of `auto` and `interpreted`."""
    workload: Annotated[WorkloadConfig, ByType(WORKLOADS)]
    """The requests: a recorded trace or a generator."""
    scheduler: Annotated[SchedulerConfig, Named("scheduler", "schedulers"), ByType(SCHEDULERS)]
    """Which requests run in each step."""
    kv_cache: KVCacheConfig = Field(default_factory=KVCacheConfig)
    """The memory for keys and values."""
    cost_model: Annotated[ComponentConfig, ByType(COST_MODELS, "roofline")]
    """How long a step takes."""
    replicas: ReplicasConfig = Field(default_factory=ReplicasConfig)
    """How many replicas there are, and which of them a request goes to."""
    parallel: ParallelSpec = Field(default_factory=ParallelSpec)
    """How the GPUs of a replica share the model."""
    cluster: ClusterConfig | None = None
    """Pools of replicas that differ, such as for prefill and decode; null: `replicas`, which are equal."""
    front_end_s: float = Field(default=0.0, ge=0)
    """Seconds that a request spends before the engine, at HTTP and tokeniser, and its tokens after it (some
    6 ms in public runs of vLLM): part of TTFT and E2E, not of the engine's own times."""
    slo: Annotated[SloConfig, Named("slo", "slos")] = Field(default_factory=SloConfig)
    """What users are promised: limits that goodput counts by, and limits of the run as a whole."""
    measure: MeasureConfig = Field(default_factory=MeasureConfig)
    """Which requests the figures are about: all but a warm-up, or those of a window."""
    stop_at_s: float | None = Field(default=None, gt=0)
    """End the run at this instant, finished or not, seconds of simulated time."""
    output: OutputConfig = Field(default_factory=OutputConfig)
    """What is written."""
    observers: list[Annotated[ComponentConfig, ByType(OBSERVERS)]] = Field(default_factory=list)
    """Who watches the run: told of requests and steps as they happen, with files of their own."""
    sweep: dict[str, Any] = Field(default_factory=dict)
    """Many runs: dotted keys to lists of values, of which all combinations run. `zip:` varies several keys
    together, `replicates: N` runs each point with N seeds, `where:` keeps the points for which a comparison
    holds (`scheduler.chunk_size <= scheduler.max_tokens_per_step`)."""
    tune: dict[str, Any] = Field(default_factory=dict)
    """What `cbsim tune` searches for the best settings within the SLO: dotted keys to ranges and choices. Two
    numbers are a range, `[256, 16384]`, or `{from: 256, to: 16384}` with `log: true` or `false` (by default
    true where it spans more than a factor of 10) or `step:`; any other list, or `{choices: [1, 2]}`, holds
    the values to choose from. `zip:` and `where:` are as in a sweep. Further words: `objective` (`goodput`,
    `cost` or `latency`), `trials` (50 settings are tried), `windows` (`[0.1, 0.3]`: shares of the requests on
    which settings are tried before they run in full; an empty list does without), `batch` (4 settings are
    chosen at once)."""

    _folder: Path = PrivateAttr(default_factory=Path)
    _notes: tuple[str, ...] = PrivateAttr(default=())
    _assembly: Assembly[Experiment] | None = PrivateAttr(default=None)
    """Of an experiment with a sweep or a tune: what points and settings are made from."""
    _space: TuneSpace | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _takes_the_engines_defaults(self) -> Self:
        """With `scheduler.entry`, settings that nobody gives become those of the engine; the cache's dtype is
        the model's where it is given.
        """
        if self.kv_cache.dtype != "auto":
            served = self.model.model_copy(update={"kv_dtype": self.kv_cache.dtype})
            object.__setattr__(self, "model", served)
        if getattr(self.scheduler, "entry", None) is not None and isinstance(self.scheduler, VllmConfig):
            for section, defaults in zip(
                ("scheduler", "kv_cache"), self.scheduler.engine_defaults(self.gpu), strict=True
            ):
                given = getattr(self, section)
                taken = {key: value for key, value in defaults.items() if key not in given.model_fields_set}
                object.__setattr__(self, section, given.model_copy(update=taken))
        return self

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not is_file_name(name):
            raise ValueError(f"got {name!r}; expected a folder's name: {FILE_NAME}")
        return name

    @classmethod
    def of(cls, config: str | Path | Mapping[str, Any] | Experiment, overrides: Overrides = ()) -> Experiment:
        """The experiment in a YAML file, in a mapping, or as it is; raises as `load`.

        In a mapping or overrides, a pandas DataFrame of requests may stand for a workload or a trace's path.
        """
        overrides = with_files(overrides)
        if isinstance(config, Experiment):
            return config
        if isinstance(config, Mapping):
            return cls.from_mapping(config, overrides)
        return cls.load(config, overrides)

    @classmethod
    def load(cls, path: str | Path, overrides: Overrides = ()) -> Experiment:
        """The experiment in a YAML file. Raises `ConfigError` with one line for each of all its mistakes."""
        document = read_document(Path(path))
        stem = re.sub(r"[^\w.+=,-]", "-", Path(path).stem)
        name = stem if is_file_name(stem) else f"experiment-{stem.strip('.-')}".strip("-")
        document.data.setdefault("name", name)
        return cls._assembled(document, overrides, Path(path).parent)

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any], overrides: Overrides = (), folder: str | Path = "."
    ) -> Experiment:
        """The experiment in a mapping, whose relative paths start from `folder`; raises as `load`."""
        return cls._assembled(Document(with_files(mapping)).copy(), overrides, Path(folder))

    @property
    def speed(self) -> Literal["auto", "compiled", "interpreted"]:
        """`engine` by its present names."""
        if self.engine == "fast":
            return "auto"
        return "interpreted" if self.engine == "reference" else self.engine

    @property
    def sharing(self) -> ParallelSpec:
        """How a replica's GPUs share the model, under either name of tensor parallelism."""
        tensor = max(self.parallel.tensor, self.replicas.tensor_parallel)
        return self.parallel.model_copy(update={"tensor": tensor})

    @property
    def tensor_parallel(self) -> int:
        """GPUs that share each layer of a replica."""
        return self.sharing.tensor

    @property
    def num_gpus(self) -> int:
        """GPUs of a replica."""
        return self.sharing.num_gpus

    @property
    def num_kv_blocks(self) -> int:
        """Usable KV blocks of a replica. Raises `ConfigError` where there is no room for one."""
        largest_step = self.scheduler.largest_step(self.model)
        return self.kv_cache.size(self.model, self.gpu, self.sharing, largest_step)

    @property
    def has_block_records(self) -> bool:
        """Whether a run keeps what each KV block holds, instead of counting them."""
        reserves_ahead = SCHEDULERS.get(self.scheduler.type).reserves_ahead
        is_shared = self.kv_cache.prefix_caching or len(self.kv_cache.layer_groups(self.model)) > 0
        return self.scheduler.has_connector or (is_shared and not reserves_ahead)

    @property
    def kv_capacity(self) -> KvCapacity:
        """What those blocks hold. Raises as `num_kv_blocks`."""
        under_way = self.scheduler.largest_step(self.model).num_tokens
        under_way *= self.scheduler.num_in_flight(self.parallel.pipeline)
        return self.kv_cache.capacity(self.num_kv_blocks, self.model, self.sharing, under_way)

    def pools(self) -> list[tuple[PoolConfig, Experiment]]:
        """Each pool of the cluster, and the experiment with its replicas alone.

        Raises `ConfigError` with a line for each mistake in what a pool has of its own.
        """
        assert self.cluster is not None
        aside = ("cluster", "observers", SWEEP, TUNE)
        general = {key: value for key, value in self.resolved().items() if key not in aside}
        found, problems = [], []
        for pool in self.cluster.pools:
            try:
                found.append((pool, Experiment.from_mapping(pool.settings(general), (), self._folder)))
            except ConfigError as error:
                told = (problem.removeprefix("config: ") for problem in error.problems)
                problems += [f"cluster: pool '{pool.name}': {problem}" for problem in told]
        if problems:
            raise ConfigError(*problems)
        return found

    def audience(self, further: Sequence[Observer] = ()) -> Audience:
        """Its observers, then further ones. Raises `PluginError` for files they can't write."""
        named = []
        for config in self.observers:
            observer_class = OBSERVERS.get(config.type)
            with blaming("observer", observer_class):
                named.append(observer_class(config))
        audience = Audience([*named, *further])
        audience.check_files({*RUN_FILES, REPORT})
        return audience

    @property
    def kv_at_admission(self) -> list[str]:
        """What an admission reserves of the KV cache, or must find free; raises as `num_kv_blocks`."""
        return self.scheduler.kv_at_admission(self.num_kv_blocks, self.kv_cache.block_size)

    @property
    def folder(self) -> Path:
        """Where relative paths in the settings start."""
        return self._folder

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know before the run: sweep axes that an override has pinned."""
        return self._notes

    @property
    def assumed(self) -> tuple[str, ...]:
        """Notes on settings that nobody gave and the engine would have otherwise.

        Of an experiment made from `resolved` there are none, for all its settings are given.
        """
        if not isinstance(self.scheduler, VllmConfig) or self.scheduler.type != "vllm":
            return ()
        gpus = [self.gpu]
        if self.cluster is not None:
            gpus = [own.gpu for pool, own in self.pools() if pool.scheduler is None]
        notes = dict.fromkeys(self.scheduler.unlike_the_server(gpu, self.kv_cache) for gpu in gpus)
        return tuple(note for note in notes if note is not None)

    @property
    def at_odds(self) -> tuple[str, ...]:
        """Notes on settings that say one thing here and another one there, or change nothing."""
        is_sync = any(
            isinstance(own.scheduler, VllmConfig)
            and not own.scheduler.async_scheduling
            and getattr(own.cost_model, "host", None) == "async"
            for own in self.alone
        )
        told = (
            "scheduler.async_scheduling is false, but with cost_model.host: async the host prepares the next "
            "step while the GPU works; host: sync adds its time to each step"
        )
        idle = () if self.cluster is None else self.cluster.without_effect
        return (*((told,) if is_sync else ()), *idle)

    @property
    def alone(self) -> list[Experiment]:
        """The experiment of each pool, those to whom requests come first; itself without a cluster."""
        if self.cluster is None:
            return [self]
        return [own for _, own in sorted(self.pools(), key=lambda each: each[0].role == "decode")]

    def resolved(self) -> dict[str, Any]:
        """Plain data that makes this experiment again from any folder, names and defaults spelled out."""
        settings = self.model_dump(mode="json")
        for key in (SWEEP, TUNE, "observers", "cluster"):
            if not settings[key]:
                del settings[key]
        _anchor_paths(settings["workload"], self._folder)
        _anchor_plugins(settings, self._folder)
        return settings

    def points(self) -> list[tuple[dict[str, Any], Experiment]]:
        """Each point of the sweep: its swept values by dotted key, and its experiment.

        In the order of the file, its first axis slowest. Without a sweep, the experiment itself is the only
        point. Raises `ConfigError` with a line for each mistake in any point.
        """
        if self._assembly is None or not self.sweep:
            return [({}, self)]
        points, problems = _checked(self._assembly, self._folder, self._assembly.points())
        if problems:
            raise ConfigError(*in_order_of_lines(problems, self._assembly.document.source))
        return points

    @property
    def space(self) -> TuneSpace | None:
        """What `tune` varies; `None` without one."""
        return self._space

    def at(self, values: Sequence[AxisValue]) -> Experiment:
        """The experiment with some settings in the place of its own.

        Raises `ConfigError` with a line for each mistake: settings that are right alone may not go together.
        """
        experiment, problems, _ = self._read_at(values)
        if experiment is None or problems:
            raise ConfigError(*problems)
        return experiment

    def allowed_at(self, values: Sequence[AxisValue]) -> Experiment | None:
        """The same; `None` where a condition of `tune` rules them out."""
        experiment, problems, settings = self._read_at(values)
        if self._space and not all(condition.holds(settings) for condition in self._space.conditions):
            return None
        if experiment is None or problems:
            raise ConfigError(*problems)
        return experiment

    def _read_at(self, values: Sequence[AxisValue]) -> tuple[Experiment | None, list[str], Mapping[str, Any]]:
        """The experiment at values, its mistakes, and its settings as far as they can be read."""
        assert self._assembly is not None
        document = self._assembly.point(values)
        experiment, problems = _read(self._assembly, document, self._folder)
        return experiment, problems, document.data if experiment is None else experiment.model_dump()

    def as_written(self, values: Sequence[AxisValue], folder: Path) -> dict[str, Any]:
        """Plain data that makes `at(values)` again from `folder`: what the user wrote, if that is enough."""
        assert self._assembly is not None
        settings, whole = self._assembly.as_written(values), self.at(values).resolved()
        if isinstance(settings.get(WORKLOAD), dict):
            _anchor_paths(settings[WORKLOAD], self._folder)
        _anchor_plugins(settings, self._folder)
        try:
            is_same = Experiment.from_mapping(settings, folder=folder).resolved() == whole
        except ConfigError:
            is_same = False
        return settings if is_same else whole

    def check_one_run(self, name: str) -> None:
        """Raise `ConfigError` if it has a sweep, of which one run must be named; users call it `name`."""
        if self.sweep:
            pinned = as_options(self.points()[0][0])
            raise ConfigError(
                f"{name}: has a sweep over {', '.join(self.sweep)}; allowed: one run, as with {pinned}"
            )

    @classmethod
    def _assembled(cls, document: Document, overrides: Overrides, folder: Path) -> Experiment:
        assembly = Assembly(cls, document, parse_overrides(overrides), folder)
        problems = assembly.problems
        grid = assembly.grid
        if not grid.axes:
            candidates: Iterable[tuple[dict[str, Any], Document]] = [({}, assembly.document)]
        elif grid.num_points <= MAX_CHECKED_POINTS:
            candidates = assembly.points()
        else:
            candidates = (({}, assembly.point(values)) for values in grid.points_one_by_one())
        points, found = _checked(assembly, folder, candidates)
        space = assembly.space
        if space is not None:
            space, wrong = _checked_space(assembly, space, points, folder)
            found += wrong
        if problems or found:
            raise ConfigError(*in_order_of_lines([*problems, *found], document.source), *assembly.hints)
        experiment = points[0][1]
        varied = {key: assembly.document.data[key] for key in (SWEEP, TUNE) if key in assembly.document.data}
        if varied:
            experiment = experiment.model_copy(update=varied)
            experiment._assembly = assembly
        experiment._space = space
        experiment._notes = (*grid.notes, *(space.notes if space else ()))
        return experiment


def _read(
    assembly: Assembly[Experiment], document: Document, folder: Path
) -> tuple[Experiment | None, list[str]]:
    """The experiment in a document, if it can be read, and a line for each mistake."""
    try:
        experiment = assembly.read(document)
    except ConfigError as error:
        return None, [*error.problems, *traces_not_there(document, folder)]
    experiment._folder = folder
    return experiment, list(misfits(experiment, document))


def _unknown_names(document: Document, section: str, conditions: Names, known: Names) -> Iterator[str]:
    """A line for each name in the conditions of a section that is not known."""
    place = document.place((section, "where"))
    for name, text in conditions.items():
        if name not in known:
            yield place.problem(f"'{text}': no setting '{name}'{did_you_mean(name, known)}")


def _checked_space(
    assembly: Assembly[Experiment],
    space: TuneSpace,
    points: Sequence[tuple[Mapping[str, Any], Experiment]],
    folder: Path,
) -> tuple[TuneSpace, list[str]]:
    """The space with ranges of numbers known as such, and a line for each value that its key can't hold.

    What a value breaks elsewhere is no mistake: other settings may go with it.
    """
    problems: dict[str, None] = {}
    floats: set[str] = set()
    known: Names = dict.fromkeys((key for _, point in points for key in nested_keys(point.model_dump())), "")
    for dimension in space.dimensions:
        for values in dimension.extremes():
            document = assembly.point(values)
            experiment, found = _read(assembly, document, folder)
            ways = [format_keys(document.placed(split_key(value.key))) for value in values]
            own = [re.compile(rf"[^ ]*: {re.escape(way)}[:.\[]") for way in ways]
            problems |= dict.fromkeys(each for each in found if any(key.match(each) for key in own))
            if experiment is None:
                continue
            settings = experiment.model_dump()
            known |= dict.fromkeys(nested_keys(settings), "")
            if isinstance(dimension, Range) and isinstance(lookup(settings, dimension.key), float):
                floats.add(dimension.key)
    texts = {name: condition.text for condition in space.conditions for name in condition.names}
    unknown = _unknown_names(assembly.document, TUNE, texts, known)
    return space.with_floats(frozenset(floats)), [*problems, *unknown]


def _checked(
    assembly: Assembly[Experiment], folder: Path, candidates: Iterable[tuple[dict[str, Any], Document]]
) -> tuple[list[tuple[dict[str, Any], Experiment]], list[str]]:
    """The points that the sweep's conditions keep, and a line for each mistake in them."""
    points: list[tuple[dict[str, Any], Experiment]] = []
    problems: dict[str, None] = {}
    conditions = assembly.grid.conditions
    texts = {name: condition.text for condition in conditions for name in condition.names}
    known: Names = {}
    num_left_out = 0
    for swept, document in candidates:
        experiment, mistakes = _read(assembly, document, folder)
        settings: Mapping[str, Any] = {}
        if conditions:
            settings = document.data if experiment is None else experiment.model_dump()
            known |= dict.fromkeys((*nested_keys(settings), *(n for n in texts if has_key(settings, n))), "")
        try:
            is_kept = all(condition.holds(settings) for condition in conditions)
        except ConfigError as error:
            is_kept, mistakes = True, [assembly.document.place((SWEEP, "where")).problem(error.problems[0])]
        if not is_kept:
            num_left_out += 1
            continue
        problems |= dict.fromkeys(mistakes)
        if experiment is not None:
            points.append((swept, experiment))
    told = [*problems, *_unknown_names(assembly.document, SWEEP, texts, known)]
    if num_left_out and not points and not told:
        where = assembly.document.place((SWEEP, "where"))
        told = [where.problem(f"leaves none of {num_left_out} points")]
    return points, told


def _anchor_plugins(settings: dict[str, Any], folder: Path) -> None:
    """Give parts named `module:Class` the folder of their module, where that lies beside the experiment."""
    for section in settings.values():
        for part in section if isinstance(section, list) else [section]:
            if isinstance(part, dict):
                if isinstance(part.get("type"), str):
                    part["type"] = located(part["type"], folder)
                _anchor_plugins(part, folder)


def _anchor_paths(settings: dict[str, Any], folder: Path) -> None:
    """Make relative paths hold from any folder, where they name something beside the experiment's file."""
    for key, value in settings.items():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                _anchor_paths(inner, folder)
        if key == "path" and isinstance(value, str) and (folder / value).exists():
            path, bundled = (folder / value).resolve(), data_folder("workloads")
            shortest = path.relative_to(bundled) if path.is_relative_to(bundled) else path
            settings[key] = shortest.as_posix()
