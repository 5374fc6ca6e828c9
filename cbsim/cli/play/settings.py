"""Settings: experiments that differ from another by what a player has changed, and the file of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml

from cbsim.base.errors import CbsimError, ConfigError, refusals
from cbsim.base.paths import YAML_SUFFIXES, data_folder, write_text
from cbsim.base.registry import did_you_mean
from cbsim.config.document import read_document
from cbsim.config.section import Section
from cbsim.results.output import other_origin
from cbsim.schedulers import SCHEDULERS
from cbsim.specs import GpuSpec, ModelSpec
from cbsim.studies.experiment import Experiment
from cbsim.workload.convert import Source, convert
from cbsim.workload.request import Request

LADDER = ("static", "continuous", "chunked_prefill", "preemptive", "vllm")
"""The built-in schedulers, each with one idea more than the one before."""
KEYS = {"t": "max_tokens_per_step", "c": "chunk_size", "n": "max_num_seqs"}
"""The limits of a scheduler by the key that a player presses to change them."""
LIVE = tuple(KEYS.values())
"""They change without a pause: policies read them anew at each step."""
NUM_BLOCKS = "kv_cache.num_blocks"
_KEPT = (*LIVE, "async_scheduling", "policy")
"""What a scheduler takes over from the one before it, where it has such a setting."""
MARK = "# Played with cbsim."
"""How a saved file begins: such a file may be written over."""
OWN_TIMES = "in cbsim play requests arrive at their own times"
MAX_REPLICAS = 8
"""Most replicas that are played: the smallest screen has room for a line about each of these."""
_WIDTH = 110


def check_playable(experiment: Experiment) -> None:
    """Raise `ConfigError` with a line for each setting that needs more than a few replicas and a trace."""
    concurrency, cluster = experiment.workload.concurrency, experiment.cluster
    where, count = "replicas.count", experiment.replicas.count * experiment.parallel.data
    owns, problems = [experiment], []
    if cluster is not None:
        owns = [own for _, own in experiment.pools()]
        where, counts = "cluster.pools", map(cluster.most_replicas, cluster.pools)
        count = sum(n * own.parallel.data for n, own in zip(counts, owns, strict=True))
    if count > MAX_REPLICAS:
        problems.append(f"{where}: got {count}; cbsim play has 1 to {MAX_REPLICAS} replicas")
    if concurrency is not None:
        problems.append(f"workload.concurrency: got {concurrency}; {OWN_TIMES}: null")
    if experiment.workload.wait_for_answers:
        problems.append(f"workload.wait_for_answers: got true; {OWN_TIMES}: false")
    if num_tiers := max(len(own.kv_cache.tiers) for own in owns):
        problems.append(f"kv_cache.tiers: got {num_tiers}; cbsim play has KV on GPUs alone: []")
    if experiment.stop_at_s is not None:
        allowed = "cbsim play goes on until every request has ended: null"
        problems.append(f"stop_at_s: got {experiment.stop_at_s:g}; {allowed}")
    if problems:
        raise ConfigError(*problems)


def revised(experiment: Experiment, settings: Iterable[str] = (), **sections: Any) -> Experiment:
    """The experiment with whole sections replaced, and settings given as `KEY=VALUE`.

    Raises `ConfigError` as a file would.
    """
    try:
        return Experiment.from_mapping(experiment.resolved() | sections, settings, experiment.folder)
    except ConfigError as error:
        lines = [line.removeprefix("--set: ").removeprefix("config: ") for line in error.problems]
        raise ConfigError(*lines) from None


def on_rung(experiment: Experiment, rung: str, requests: list[Request]) -> tuple[Experiment, list[str]]:
    """The experiment with another scheduler, and sentences on what had to be set for it to serve `requests`.

    Limits of the present scheduler are kept where the new one has them. Raises `ConfigError` for an unknown
    scheduler.
    """
    if rung not in SCHEDULERS.names() and ":" not in rung:
        raise ConfigError(f"unknown scheduler '{rung}'{did_you_mean(rung, SCHEDULERS.names())}")
    known = SCHEDULERS.get(rung).Config.model_fields
    present = experiment.scheduler.model_dump(mode="json")
    settings = {name: present[name] for name in _KEPT if name in present and name in known}
    notes = _fit(rung, settings, requests)
    try:
        return revised(experiment, scheduler={"type": rung, **settings}), notes
    except ConfigError:  # an order that this scheduler does not have
        settings.pop("policy", None)
        return revised(experiment, scheduler={"type": rung, **settings}), notes


def changes(before: Experiment, after: Experiment) -> dict[str, tuple[Any, Any]]:
    """The dotted keys whose values differ, and both values; a setting that one of them lacks is `None`."""
    return dict(_changes(before.model_dump(mode="json"), after.model_dump(mode="json")))


def _changes(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old | new:
            yield from _changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, (old, new)


def told(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Changes in one line: another scheduler by its name alone, other settings by old and new value."""
    if "scheduler.type" in changed:
        old, new = changed["scheduler.type"]
        return f"scheduler {old} -> {new}"
    named = {key: ["null" if value is None else value for value in pair] for key, pair in changed.items()}
    return ", ".join(f"{key} {old} -> {new}" for key, (old, new) in named.items())


def _fit(rung: str, settings: dict[str, Any], requests: list[Request]) -> list[str]:
    """Set what the two rungs that split nothing need, for otherwise they would reject what others serve."""
    if requests and rung == "static":
        longest = max(request.num_prompt_tokens + request.num_output_tokens for request in requests)
        settings["max_model_len"] = longest
        return [f"max_model_len {longest}, the longest request: so much is reserved for each slot"]
    longest = max((request.num_prompt_tokens for request in requests), default=0)
    if rung == "continuous" and settings.get("max_tokens_per_step", longest) < longest:
        settings["max_tokens_per_step"] = longest
        return [f"max_tokens_per_step raised to {longest}, the longest prompt: continuous splits none"]
    return []


# Saving


def save(experiment: Experiment, played: Source | None, history: Sequence[str], path: Path) -> list[Path]:
    """Write the experiment to `path`; what was `played`, if not its own workload, to a `.jsonl` beside it.

    Returns the files. Raises `CbsimError` for a name that is not of a YAML file, for a file of another
    origin, and for one that can't be written.
    """
    if path.suffix not in YAML_SUFFIXES:
        raise CbsimError(f"{path}: expected a name that ends in {' or '.join(YAML_SUFFIXES)}")
    trace = path.with_suffix(".jsonl")
    _check_target(path, trace if played is not None else None)
    settings = _concise(experiment)
    written = [path]
    if played is not None:
        convert(played, trace)
        settings["workload"] = {"type": "trace", "path": trace.name}
        written.append(trace)
    lines = [
        MARK,
        f"# `cbsim run {path.name}` goes from the start with the settings as they stood when this was saved.",
        *(["# What was done in play, and when:"] if history else []),
        *(f"#   {line}" for line in history),
    ]
    text = yaml.safe_dump(
        settings, sort_keys=False, allow_unicode=True, default_flow_style=None, width=_WIDTH
    )
    write_text(path, "\n".join(lines) + "\n" + text)
    return written


def free_name(folder: Path, stem: str) -> Path:
    """A name for a saved file, `STEM.yaml` or with a number, that nothing stands at yet."""
    names = chain([stem], (f"{stem}-{number}" for number in count(2)))
    paths = (folder / f"{name}.yaml" for name in names)
    return next(path for path in paths if not (path.exists() or path.with_suffix(".jsonl").exists()))


def _concise(experiment: Experiment) -> dict[str, Any]:
    """Settings that make the experiment again from any folder: names where they stand for it, no defaults."""
    resolved = experiment.resolved()
    said: dict[str, Any] = {
        "model": _name_or_mapping("models", experiment.model, resolved["model"]),
        "gpu": _name_or_mapping("gpus", experiment.gpu, resolved["gpu"]),
    }
    for key in _changed(experiment):
        section = getattr(experiment, key)
        if isinstance(section, Section):
            wanted = {"type", *LIVE, *_changed(section)}
            said.setdefault(key, {name: value for name, value in resolved[key].items() if name in wanted})
        elif key != "name":
            said[key] = resolved[key]
    for pool in said.get("cluster", {}).get("pools", ()):
        for name in [name for name, value in pool.items() if value is None]:
            del pool[name]
    return said


def _changed(section: Section) -> list[str]:
    fields = type(section).model_fields.items()
    return [
        name
        for name, field in fields
        if getattr(section, name) != field.get_default(call_default_factory=True)
    ]


def _name_or_mapping(folder: str, spec: ModelSpec | GpuSpec, resolved: dict[str, Any]) -> Any:
    path = data_folder("configs") / folder / f"{spec.name}.yaml"
    if path.is_file() and type(spec).model_validate(read_document(path).data) == spec:
        return spec.name
    return resolved


def _check_target(path: Path, trace: Path | None) -> None:
    """Nobody else's files are written over."""
    with refusals(path, "read"):
        is_ours = path.is_file() and path.read_bytes().startswith(MARK.encode())
    for file in (path, trace):
        if file is not None and file.exists() and not is_ours:
            raise other_origin(file, "saved play", "file")
