"""Scheduler: settings, and rules by name for the core to call. Users subclass it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, NoneType
from typing import Any, ClassVar, Literal, get_args, get_origin

from numpy.typing import NDArray

from cbsim.config.section import ComponentConfig
from cbsim.core.layout import LONGER_THAN_SLOT, PROMPT_TOO_LONG, TOO_MANY_BLOCKS
from cbsim.schedulers.rule_check import check_rules
from cbsim.schedulers.speculation import ConnectorConfig, SpeculativeConfig
from cbsim.specs import ModelSpec
from cbsim.specs.gpu_memory import USUAL_STEP, ProfilingRun

Numbers = dict[str, float]


@dataclass(frozen=True, slots=True)
class Means:
    """What a replica gives its scheduler."""

    num_blocks: int
    block_size: int
    block_bytes: int
    host_link_bytes_per_s: float
    max_model_len: int
    """Longest context the model was made for, tokens."""
    seed: int


class SchedulerConfig(ComponentConfig):
    """Settings that every scheduler has."""

    async_scheduling: bool = False
    """Decide the next step while one is running (two in flight), as vLLM does by default; false waits for
    each step's result first."""

    @property
    def reuses_unknown_blocks_first(self) -> bool:
        """Whether released KV blocks without cached content are taken before those with it."""
        return True

    @property
    def drafting(self) -> SpeculativeConfig | None:
        """The speculative decoding asked for, if any."""
        found = getattr(self, "speculative", None)
        return found if isinstance(found, SpeculativeConfig) else None

    @property
    def has_connector(self) -> bool:
        """Whether KV comes from elsewhere or goes there."""
        return getattr(self, "connector", None) is not None

    def kv_at_admission(self, num_blocks: int, block_size: int) -> list[str]:
        """What an admission reserves of the KV cache, or must find free in it, in words."""
        if not hasattr(self, "max_output_tokens"):
            return []
        answer = (
            "answer" if self.max_output_tokens is None else f"{self.max_output_tokens:,} tokens of answer"
        )
        return [f"prompt and {answer} reserved at admission"]

    def largest_step(self, model: ModelSpec) -> ProfilingRun:
        """The most tokens and requests of a step; without a budget the tokens of the longest request."""
        num_tokens = getattr(self, "max_tokens_per_step", model.max_model_len)
        return ProfilingRun(num_tokens, getattr(self, "max_num_seqs", USUAL_STEP.num_seqs))

    def num_in_flight(self, num_stages: int = 1) -> int:
        """Most calls of the scheduler whose results are awaited, on a pipeline of so many stages."""
        return num_stages + (1 if self.async_scheduling else 0)


class Scheduler:
    """Settings and rules. Never instantiated: the state is the records of a replica.

    Every plain function in the class is a rule: whoever calls a rule of that name, in the core or among the
    other rules, calls this one. A subclass writes `decide(self, step)`, from the verbs of `cbsim.core.verbs`:
    it looks at who runs and who waits, admits, schedules and preempts. `self` is a
    `cbsim.core.layout.Replica`. The core also asks `rejects(self, request)`, `wake_at_s(self)`,
    `pad(self, step)` and `left(self, request)`, which have defaults there.
    """

    Config: ClassVar[type[SchedulerConfig]]
    reserves_ahead: ClassVar[bool] = False
    """Whether blocks are reserved at admission for tokens that may never come, without prefix caching."""

    @classmethod
    def rules(cls) -> dict[str, FunctionType]:
        """The rules by name, a subclass's before those of its bases.

        Raises `PluginError` with a line for each rule that can't be one, or that nobody would call.
        """
        found = {
            name: value
            for each in reversed(cls.__mro__)
            if issubclass(each, Scheduler) and each is not Scheduler
            for name, value in vars(each).items()
            if isinstance(value, FunctionType)
        }
        check_rules(cls, found)
        return found

    @classmethod
    def numbers(cls, config: ComponentConfig, means: Means) -> Numbers:
        """`Replica.config`: the settings as numbers, and what follows from them."""
        return numbers_of(config)

    @classmethod
    def job_length(cls, config: ComponentConfig, seed: int) -> Callable[[str, int, int], float] | None:
        """What `sjf` orders by, from a request's id, prompt and output tokens; `None` for the last."""
        return None

    @classmethod
    def rejection(cls, request: Any, numbers: Numbers, means: Means) -> str:
        """Why a request was rejected, in words, by its code `rejection`."""
        code = int(request["rejection"])
        if code == TOO_MANY_BLOCKS:
            num_needed = -(-cls.num_tokens_needed(request, numbers) // means.block_size)
            return f"needs {num_needed} KV blocks, the cache has {means.num_blocks}"
        if code == PROMPT_TOO_LONG:
            unsplit = "is not split" if cls.reserves_ahead else "enable_chunked_prefill is false"
            return (
                f"prompt of {request['num_prompt_tokens']} tokens exceeds max_tokens_per_step "
                f"{numbers['max_tokens_per_step']} and {unsplit}"
            )
        if code == LONGER_THAN_SLOT:
            num_tokens = request["num_prompt_tokens"] + request["num_output_tokens"]
            longest = numbers["max_model_len"]
            return f"{num_tokens} tokens exceed the longest possible request, {longest} tokens"
        return f"rejected by the scheduler, code {code}"

    @classmethod
    def num_tokens_needed(cls, request: Any, numbers: Numbers) -> int:
        """Tokens for which there must be KV blocks, or the request can never run."""
        return int(request["num_prompt_tokens"]) + int(request["num_output_tokens"]) - 1

    @classmethod
    def notes(cls, config: ComponentConfig, requests: Any, own: NDArray[Any]) -> list[str]:
        """Sentences for `summary.json` at the end: what a policy asked for and did not find.

        `requests` gives a column of `REQUEST` by its name, and records by their rows.
        """
        return []


def numbers_of(config: ComponentConfig) -> Numbers:
    """Settings as numbers: choices by their place among those allowed, null as 0, true as 1.

    A setting is a real number or a whole one whatever its value is.
    """
    found: Numbers = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        choices = _choices(field.annotation)
        if value in choices:
            found[name] = choices.index(value)
        elif value is None:
            found[name] = 0.0 if float in get_args(field.annotation) else 0
        elif isinstance(value, (bool, int, float)):
            found[name] = value
        elif isinstance(value, (SpeculativeConfig, ConnectorConfig)):
            found |= value.numbers()
    return found


def _choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    inner = [each for each in get_args(annotation) if each is not NoneType]
    return _choices(inner[0]) if len(inner) == 1 else ()
