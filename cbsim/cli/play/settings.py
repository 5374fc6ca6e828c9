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
LIVE = ("max_tokens_per_step", "chunk_size", "max_num_seqs")
"""Settings of a scheduler that change without a pause: policies read them anew at each step."""
NUM_BLOCKS = "kv_cache.num_blocks"
KEYS = {"t": "scheduler.max_tokens_per_step", "c": "scheduler.chunk_size", "n": "scheduler.max_num_seqs"}
"""The key that a player presses to change each limit."""
_KEPT = (*LIVE, "async_scheduling", "policy")
"""What a scheduler takes over from the one before it, where it has such a setting."""


def check_playable(experiment: Experiment) -> None:
    """Raise `ConfigError` with a line for each setting that needs more than one replica on its own clock."""
    problems = []
    if experiment.replicas.count != 1:
        problems.append(f"replicas.count: got {experiment.replicas.count}; cbsim play has one replica")
    if experiment.workload.concurrency is not None:
        problems.append(
            f"workload.concurrency: got {experiment.workload.concurrency}; in cbsim play requests arrive at "
            "their own times: null"
        )
    if experiment.stop_at_s is not None:
        problems.append(
            f"stop_at_s: got {experiment.stop_at_s:g}; cbsim play goes on until every request has ended: null"
        )
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


def on_rung(
    experiment: Experiment, rung: str, requests: Iterable[Request]
) -> tuple[Experiment, tuple[str, ...]]:
    """The experiment with another scheduler, and sentences on what had to be set for it to serve `requests`.

    Limits of the present scheduler are kept where the new one has them. Raises `ConfigError` for an unknown
    scheduler.
    """
    if rung not in SCHEDULERS.names() and ":" not in rung:
        raise ConfigError(f"unknown scheduler '{rung}'{did_you_mean(rung, SCHEDULERS.names())}")
    known = SCHEDULERS.get(rung).Config.model_fields
    present = experiment.scheduler.model_dump(mode="json")
    settings = {name: present[name] for name in _KEPT if name in present and name in known}
    notes = _fit(rung, settings, list(requests))
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
    return ", ".join(f"{key} {_text(old)} -> {_text(new)}" for key, (old, new) in changed.items())


def told_briefly(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """The same where there is little room."""
    return told(changed).replace("scheduler ", "").replace("scheduler.", "").replace(" -> ", "→")


def _fit(rung: str, settings: dict[str, Any], requests: list[Request]) -> tuple[str, ...]:
    """Set what the two rungs that split nothing need, for otherwise they would reject what others serve."""
    if not requests:
        return ()
    if rung == "static":
        longest = max(request.num_prompt_tokens + request.num_output_tokens for request in requests)
        settings["max_model_len"] = longest
        return (f"max_model_len {longest}, the longest request: so much is reserved for each slot",)
    longest = max(request.num_prompt_tokens for request in requests)
    if rung == "continuous" and settings.get("max_tokens_per_step", longest) < longest:
        settings["max_tokens_per_step"] = longest
        return (f"max_tokens_per_step raised to {longest}, the longest prompt: continuous splits none",)
    return ()


def _text(value: Any) -> str:
    return "null" if value is None else f"{value}"
