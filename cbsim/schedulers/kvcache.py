"""The KV cache of one replica: how many blocks there are."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Literal, Self

from pydantic import Field, model_validator

from cbsim.base.errors import ConfigError
from cbsim.base.units import GIB, GIGA, MIB, format_bytes
from cbsim.config.section import Section
from cbsim.core.building import KvGroup, TierParts
from cbsim.specs import GpuSpec, ModelSpec, ParallelSpec
from cbsim.specs.gpu_memory import USUAL_STEP, ProfilingRun
from cbsim.specs.kv_plan import KvPlan, LayerGroup, plan_kv_cache
from cbsim.specs.parallel import ONE_GPU
from cbsim.specs.precision import KvDtype

MAX_NUMBERED_BLOCKS = 16 * MIB
"""Each of them takes some hundred bytes where their contents are known."""


@dataclass(frozen=True, slots=True)
class KvCapacity:
    """What the KV cache of a replica holds, beside the model's longest context."""

    num_tokens: int
    """In requests of the longest context, as vLLM logs it."""
    max_model_len: int
    """The longest context, tokens."""
    shortfall: str | None
    """Why vLLM would not start, if one request of that length does not fit beside the weights."""


class KvGroupConfig(Section):
    """Layers that share KV blocks."""

    kind: Literal["full", "sliding"] = "full"
    """Whether their attention reaches back to the first token, or `window` tokens."""
    window: int | None = Field(default=None, ge=1)
    """Tokens that sliding attention reaches back, the present one included."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens a block; null takes the cache's."""

    @model_validator(mode="after")
    def _has_a_window_if_it_slides(self) -> Self:
        if (self.kind == "sliding") != (self.window is not None):
            raise ValueError(
                f"got kind: {self.kind} and window: {self.window}; expected a window for sliding"
            )
        return self


class TierConfig(Section):
    """KV below the GPU."""

    name: str = "host"
    """What tables call it."""
    size_gib: float = Field(gt=0)
    """KV that it holds: of a replica, or with `shared` of all replicas together, GiB."""
    bandwidth_gb_s: float = Field(gt=0)
    """1e9 bytes a second that it takes in and gives, shared by the loads and writes under way."""
    latency_s: float = Field(default=0.0, ge=0)
    """Seconds that a load takes beside its bytes."""
    shared: bool = False
    """Whether all replicas have it together, with its bandwidth; those of several pools, where tiers of that
    `name` are `shared` in them."""


class KVCacheConfig(Section):
    """The paged KV cache of a replica."""

    block_size: int = Field(default=16, ge=1)
    """Tokens a block."""
    num_blocks: int | None = Field(default=None, ge=1)
    """Usable blocks, vLLM's `num_gpu_blocks` less one; null computes them from the memory left beside weights
    and activations."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of each GPU's memory the engine may use."""
    activation_gib: float | None = Field(default=None, ge=0)
    """Memory kept on each GPU beside weights and KV cache, GiB; null computes what vLLM finds in its
    profiling run: activations of the scheduler's largest step, and what lies outside torch."""
    cuda_graphs: bool = False
    """Whether that includes CUDA graphs, as in vLLM from 0.21 on; so it is with `scheduler.entry` and version
    0.33."""
    prefix_caching: bool = False
    """Whether requests share the blocks of equal prefixes."""
    dtype: KvDtype = "auto"
    """Of keys and values; `auto` takes the model's."""
    groups: list[KvGroupConfig] | None = Field(default=None, min_length=1)
    """Groups of layers that draw their blocks from one pool, of which a block is one group's; null takes the
    model's: one group, or with sliding layers those that vLLM would make."""
    hybrid: bool = True
    """False lets sliding layers keep every token (vLLM's `--disable-hybrid-kv-cache-manager`)."""
    prefix_cache_retention_interval: int | None = Field(default=0, ge=0)
    """Tokens after which sliding groups keep the blocks that a lookup needs; 0 keeps those before the ends of
    prompts alone, null all (vLLM's setting of that name)."""

    tiers: list[TierConfig] = Field(default_factory=list, max_length=8)
    """Host memory, disks and stores that hold what prefix caching knows beyond the GPU's memory, the nearest
    first; what one drops, its least recently used, goes to the next."""
    tier_write: Literal["through", "evicted"] = "through"
    """When a block is written to the first tier: once it is computed, or as the GPU's cache drops it. That
    goes on beside the steps, takes its share of the bandwidth, and can be hit when it is done."""
    tier_load: Literal["overlapped", "in_step"] = "overlapped"
    """Whether a request waits until what tiers hold of it has been loaded, while others run, or its first
    step takes that much longer, by the bandwidth that it finds free. Beside KV that comes over a link it
    waits."""

    def tier_parts(self, model: ModelSpec) -> tuple[TierParts, ...]:
        """The tiers in blocks of the cache."""
        block_bytes = self.plan(model).block_bytes
        return tuple(
            TierParts(
                max(1, int(tier.size_gib * GIB / block_bytes)),
                block_bytes,
                tier.bandwidth_gb_s * GIGA,
                tier.latency_s,
                tier.shared,
                tier.name,
            )
            for tier in self.tiers
        )

    def layer_groups(self, model: ModelSpec) -> tuple[KvGroup, ...]:
        """The groups of layers, none if there is one that keeps every token."""
        if self.groups is not None:
            groups = tuple(
                KvGroup(each.window or 0, each.block_size or self.block_size) for each in self.groups
            )
        else:
            groups = tuple(KvGroup(each.window, self.block_size) for each in self.plan(model).groups)
        return () if groups == (KvGroup(0, self.block_size),) else groups

    def plan(self, model: ModelSpec, parallel: ParallelSpec = ONE_GPU) -> KvPlan:
        """How the model's layers on one GPU share blocks."""
        plan = plan_kv_cache(model.layer_kinds(parallel), self.block_size, is_hybrid=self.hybrid)
        if self.groups is None:
            return plan
        share = model.num_layers // len(self.groups)
        return replace(plan, groups=tuple(LayerGroup(each.window or 0, share) for each in self.groups))

    def capacity(
        self, num_blocks: int, model: ModelSpec, parallel: ParallelSpec, max_tokens_under_way: int
    ) -> KvCapacity:
        """Blocks as tokens. Sliding layers also hold the tokens of steps that are under way."""
        plan, longest = self.plan(model, parallel), model.max_model_len
        num_tokens, shortfall = plan.num_tokens(num_blocks, longest, max_tokens_under_way), None
        num_needed = plan.num_blocks_of(longest, max_tokens_under_way)
        if self.num_blocks is None and num_needed > num_blocks:
            num_fitting = bisect_right(
                range(longest), num_blocks, key=lambda n: plan.num_blocks_of(n + 1, max_tokens_under_way)
            )
            shortfall = (
                f"one request of {model.name}'s longest context, {longest:,} tokens, needs "
                f"{format_bytes(num_needed * plan.block_bytes)} of KV cache on each GPU, and "
                f"{format_bytes(num_blocks * plan.block_bytes)} are there: vLLM would not start; "
                f"up to {num_fitting:,} tokens fit (raise kv_cache.gpu_memory_utilization, or lower "
                f"model.max_model_len)"
            )
        return KvCapacity(num_tokens, longest, shortfall)

    def size(
        self,
        model: ModelSpec,
        gpu: GpuSpec,
        parallel: ParallelSpec = ONE_GPU,
        largest_step: ProfilingRun = USUAL_STEP,
    ) -> int:
        """Usable blocks of a replica: `num_blocks`, or what fits beside the weights on each GPU.

        Raises `ConfigError` if the weights leave no room for a single block, or there are too many to know
        each one's content.
        """
        num_blocks = self.num_blocks or self._num_fitting(model, gpu, parallel, largest_step)
        if (self.prefix_caching or self.layer_groups(model)) and num_blocks > MAX_NUMBERED_BLOCKS:
            raise ConfigError(
                f"kv_cache: got {num_blocks:,} KV blocks with prefix_caching; allowed: up to "
                f"{MAX_NUMBERED_BLOCKS:,}, or prefix_caching: false"
            )
        return num_blocks

    def _num_fitting(
        self, model: ModelSpec, gpu: GpuSpec, parallel: ParallelSpec, largest_step: ProfilingRun
    ) -> int:
        """What fits on each GPU; all of them hold the same blocks."""
        usable = int(gpu.memory_bytes * self.gpu_memory_utilization)
        if self.activation_gib is None:
            activations = largest_step.reserved_bytes(model, parallel, cuda_graphs=self.cuda_graphs)
        else:
            activations = int(self.activation_gib * GIB)
        weights = model.weight_bytes_of_gpu(parallel)
        num_blocks = (usable - weights - activations) // self.plan(model, parallel).block_bytes
        if num_blocks < 1:
            raise ConfigError(
                f"kv_cache: no room for a KV block: {model.name} weighs {format_bytes(weights)} on each of "
                f"{parallel.num_gpus} {gpu.name}, and gpu_memory_utilization {self.gpu_memory_utilization} "
                f"gives {format_bytes(usable)}, of which activations take {format_bytes(activations)}; "
                f"allowed: a larger GPU, a higher parallel.tensor, or kv_cache.num_blocks"
            )
        return num_blocks
