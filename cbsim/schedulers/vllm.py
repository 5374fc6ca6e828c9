"""Rung 5: exactly what vLLM's V1 scheduler decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, field_validator

from cbsim.base.binding import apart
from cbsim.base.units import GIB
from cbsim.config.section import ComponentConfig
from cbsim.core.layout import FCFS
from cbsim.core.waiting_queue import push
from cbsim.core.waiting_queue import rank_of as rank_by_policy
from cbsim.schedulers.kvcache import KVCacheConfig
from cbsim.schedulers.paged import PagedConfig, PagedScheduler
from cbsim.schedulers.paged import chunk_cap as paged_chunk_cap
from cbsim.schedulers.paged import decide as paged_decide
from cbsim.schedulers.paged import is_passed_over as paged_is_passed_over
from cbsim.schedulers.paged import may_pass_over as paged_may_pass_over
from cbsim.schedulers.scheduler import Means, Numbers
from cbsim.schedulers.speculation import ConnectorConfig
from cbsim.specs import GpuSpec, ModelSpec
from cbsim.specs.gpu_memory import ProfilingRun


class VllmConfig(PagedConfig):
    """vLLM's V1 scheduler."""

    policy: Literal["fcfs", "priority"] = "fcfs"
    """Who is admitted first, and who is preempted last."""
    version: Literal["0.15", "0.20", "0.33"] = "0.33"
    """The vLLM release to follow, where releases differ."""
    async_scheduling: bool = True
    """Decide the next step while one is running (two in flight), as vLLM does by default."""
    entry: Literal["server", "llm"] | None = None
    """Take vLLM's own defaults, of `vllm serve` or of its class `LLM`, where nothing is said: by the GPU's
    memory those of `max_num_seqs` and `max_tokens_per_step`, and of `kv_cache` those of
    `gpu_memory_utilization`, `prefix_caching` and `cuda_graphs`. Null keeps cbsim's; a run says where
    vLLM's are others."""
    max_num_active_seqs: int | None = Field(default=None, ge=1)
    """Most requests running at once, if less than `max_num_seqs` (0.33)."""
    adaptive_chunk_size: bool = False
    """Let the cap rise to an equal share of the budget for each request, running or waiting (0.33:
    `long_prefill_token_threshold_adaptive`). Without a `chunk_size` there is no cap."""
    prefill_schedule_interval: int = Field(default=1, ge=1)
    """Steps with prompt tokens come at least this many steps apart while somebody decodes (0.33)."""
    connector: ConnectorConfig | None = None
    """KV that comes from other replicas or from a tier below the GPU; null has none."""

    @field_validator("version", mode="before")
    @classmethod
    def _without_quotes(cls, version: Any) -> Any:
        """YAML takes 0.20 for a number, 0.2."""
        return f"{version:.2f}" if isinstance(version, float) else version

    def engine_defaults(self, gpu: GpuSpec) -> tuple[dict[str, Any], dict[str, Any]]:
        """What vLLM takes for itself and for its KV cache on a GPU, where nobody says otherwise.

        `vllm/engine/arg_utils.py` of 0.33; releases before took 0.9 of the memory, and knew no third class.
        """
        is_server, memory_gib = self.entry == "server", gpu.memory_bytes / GIB
        is_latest = self.version == "0.33"
        num_tokens, num_seqs = (2048 if is_server else 8192), 256
        if memory_gib >= 160 and is_latest:
            num_tokens, num_seqs = 16_384, 1024
        elif memory_gib >= 70 and "a100" not in gpu.name:
            num_tokens, num_seqs = (8192 if is_server else 16_384), 1024
        share = 0.92 if is_latest else 0.9
        return (
            {"max_tokens_per_step": num_tokens, "max_num_seqs": min(num_seqs, num_tokens)},
            {"gpu_memory_utilization": share, "prefix_caching": True, "cuda_graphs": is_latest},
        )

    def unlike_the_server(self, gpu: GpuSpec, cache: KVCacheConfig) -> str | None:
        """What nobody has set and `vllm serve` would have otherwise on a GPU, with how to get it.

        `cache` is `kv_cache`. `None` if nothing is, `entry` says whose defaults are meant, or both sizes are
        set by hand.
        """
        own, of_cache = self.model_copy(update={"entry": "server"}).engine_defaults(gpu)
        if self.entry is not None or own.keys() <= self.model_fields_set:
            return None
        taken = [(self, own), (cache, {"prefix_caching": of_cache["prefix_caching"]})]
        unlike = [
            f"{key} {str(value).lower()} (here {str(getattr(section, key)).lower()})"
            for section, defaults in taken
            for key, value in defaults.items()
            if key not in section.model_fields_set and getattr(section, key) != value
        ]
        if not unlike:
            return None
        return (
            f"vllm serve {self.version} on {gpu.name} would have {', '.join(unlike)}: `entry: server` in "
            "`scheduler` takes its defaults for all that is not set"
        )

    def largest_step(self, model: ModelSpec) -> ProfilingRun:
        """Releases before 0.17 sort logits."""
        return replace(super().largest_step(model), sorts_logits=self.version == "0.15")

    @property
    def reuses_unknown_blocks_first(self) -> bool:
        """Before 0.33 every released block went to the tail of the free queue."""
        return self.version == "0.33"


V0_15, V0_20, V0_33 = range(3)
"""Codes of `version`."""


def decide(self: Any, step: Any) -> None:
    """As `PagedScheduler`, with prompts held back where steps with any must stand apart."""
    own, is_paced = self.own, self.config.prefill_schedule_interval > 1
    if is_paced:
        own.holds_prefill = 1 if holds_prefill(self) else 0
    paged_decide(self, step)
    if is_paced:
        note_prefill(self, step)


@apart
def note_prefill(self: Any, step: Any) -> None:
    """Count the steps since any ran a prompt. While requests are left waiting, prompts are not held back."""
    own = self.own
    if step.num_preempted == 0 and not own.holds_prefill:
        own.is_backed_up = 1 if own.num_waiting > own.num_passed_over else 0
    if step.num_slices:
        own.steps_since_prefill = 0 if carries_prefill(self, step) else own.steps_since_prefill + 1


@apart
def holds_prefill(self: Any) -> bool:
    """Whether it is too early for prompts again: only while some request decodes and the queue moves."""
    own = self.own
    if own.steps_since_prefill + 1 >= self.config.prefill_schedule_interval or own.is_backed_up:
        return False
    num_decoding = 0
    for place in range(own.num_running):
        num_decoding += self.requests[self.running[place]].samples
    return bool(num_decoding)


def carries_prefill(self: Any, step: Any) -> bool:
    """Whether a step computes prompt tokens: of a running request, or of a new one that lacked several."""
    if step.visits_prefill:
        return True
    num_prompts = 0
    for place in range(step.num_served, step.num_slices):
        part = self.slices[step.place][place]
        num_prompts += (part.num_tokens > 1 or not part.emits) and not part.is_padded
    return bool(num_prompts)


def may_pass_over(self: Any) -> bool:
    """Also while prompts are held back."""
    return bool(self.own.holds_prefill or paged_may_pass_over(self))


def is_passed_over(self: Any, request: Any) -> bool:
    """Also prompts that are held back."""
    if self.own.holds_prefill and not request.samples:
        return True
    return paged_is_passed_over(self, request)


def pass_over(self: Any, request: Any) -> None:
    """A request that was passed over keeps its place, and is not counted as waiting until it runs again."""
    if not request.was_passed_over:
        request.was_passed_over = 1
        self.own.num_passed_over += 1
    push(self, request)


def has_slot(self: Any) -> bool:
    """Fewer may be active than there is room for."""
    config = self.config
    return bool(self.own.num_running < min(config.max_num_seqs, config.max_num_active_seqs))


def chunk_cap(self: Any) -> int:
    """The cap spares a lone request (0.33), and may rise as requests get fewer."""
    config, cap = self.config, paged_chunk_cap(self)
    if config.chunk_size == 0:
        return cap
    num_here = self.own.num_running + self.own.num_waiting + self.own.num_holding
    if config.version == V0_33 and num_here <= 1:
        return config.max_tokens_per_step - config.num_extra_slots
    if config.adaptive_chunk_size:
        cap = max(cap, config.max_tokens_per_step // num_here)
    return cap


def ends_at_own_preemption(self: Any) -> bool:
    """0.33 goes on with the next running request under `priority`."""
    return self.config.policy == FCFS or self.config.version != V0_33


def rank_of(self: Any, request: Any) -> float:
    """Under `fcfs` whoever was preempted goes to the front, the last one first."""
    if self.config.policy == FCFS:
        return float(request.place_in_line)
    return rank_by_policy(self, request)


class VllmScheduler(PagedScheduler):
    """The rules of `PagedScheduler` as they are, with the differences between vLLM's releases.

    Before 0.33 a lone request was capped like any other, and a request that preempted itself ended the pass
    under `priority` too; 0.15 had no `reserve_full_isl`, 0.15 and 0.20 no watermark.
    """

    Config = VllmConfig
    decide = decide
    may_pass_over = may_pass_over
    is_passed_over = is_passed_over
    pass_over = pass_over
    has_slot = has_slot
    chunk_cap = chunk_cap
    ends_at_own_preemption = ends_at_own_preemption
    rank_of = rank_of

    @classmethod
    def numbers(cls, config: ComponentConfig, means: Means) -> Numbers:
        """0.15 had no `reserve_full_isl`, 0.15 and 0.20 no watermark."""
        assert isinstance(config, VllmConfig)
        numbers = super().numbers(config, means)
        numbers["max_num_active_seqs"] = config.max_num_active_seqs or config.max_num_seqs
        if config.version != "0.33":
            numbers["num_watermark_blocks"] = 0
        if config.version == "0.15":
            numbers["reserve_full_isl"] = 0
        return numbers
