"""Settings: experiments that differ from another by what a player has changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cbsim.base.errors import ConfigError
from cbsim.base.registry import did_you_mean
from cbsim.schedulers import SCHEDULERS
from cbsim.studies.experiment import Experiment
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


def check_playable(experiment: Experiment) -> None:
    """Raise `ConfigError` with a line for each setting that needs more than one replica on its own clock."""
    count, concurrency = experiment.replicas.count, experiment.workload.concurrency
    problems = []
    if count != 1:
        problems.append(f"replicas.count: got {count}; cbsim play has one replica")
    if concurrency is not None:
        allowed = "in cbsim play requests arrive at their own times: null"
        problems.append(f"workload.concurrency: got {concurrency}; {allowed}")
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


def told_briefly(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """The same where there is little room."""
    return told(changed).replace("scheduler ", "").replace("scheduler.", "").replace(" -> ", "→")


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
