"""The KV cache of one replica: how many blocks there are."""

from __future__ import annotations

from pydantic import Field

from cbsim.base.errors import ConfigError
from cbsim.base.units import GIB, MIB, format_bytes
from cbsim.config.section import Section
from cbsim.specs import GpuSpec, ModelSpec

MAX_NUMBERED_BLOCKS = 16 * MIB
"""Each of them takes some hundred bytes where their contents are known."""


class KVCacheConfig(Section):
    """The paged KV cache of a replica."""

    block_size: int = Field(default=16, ge=1)
    """Tokens a block."""
    num_blocks: int | None = Field(default=None, ge=1)
    """Usable blocks; null computes them from the memory left beside weights and activations."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of each GPU's memory the engine may use."""
    activation_gib: float = Field(default=2.0, ge=0)
    """Memory kept for activations and CUDA graphs on each GPU, GiB."""
    prefix_caching: bool = False
    """Whether requests share the blocks of equal prefixes."""

    def size(self, model: ModelSpec, gpu: GpuSpec, tensor_parallel: int = 1) -> int:
        """Usable blocks of a replica: `num_blocks`, or what fits beside the weights.

        Raises `ConfigError` if the weights leave no room for a single block, or there are too many to know
        each one's content.
        """
        num_blocks = (
            self._num_fitting(model, gpu, tensor_parallel) if self.num_blocks is None else self.num_blocks
        )
        if self.prefix_caching and num_blocks > MAX_NUMBERED_BLOCKS:
            raise ConfigError(
                f"kv_cache: got {num_blocks:,} KV blocks with prefix_caching; allowed: up to "
                f"{MAX_NUMBERED_BLOCKS:,}, or prefix_caching: false"
            )
        return num_blocks

    def _num_fitting(self, model: ModelSpec, gpu: GpuSpec, tensor_parallel: int) -> int:
        usable = int(gpu.memory_bytes * self.gpu_memory_utilization) * tensor_parallel
        activations = int(self.activation_gib * GIB) * tensor_parallel
        block_bytes = self.block_size * model.kv_bytes_per_token
        num_blocks = (usable - model.weight_bytes - activations) // block_bytes
        if num_blocks < 1:
            raise ConfigError(
                f"kv_cache: no room for a KV block: {model.name} weighs {format_bytes(model.weight_bytes)} "
                f"and {tensor_parallel} x {gpu.name} at gpu_memory_utilization {self.gpu_memory_utilization} "
                f"gives {format_bytes(usable)}, of which activations take {format_bytes(activations)}; "
                f"allowed: a larger GPU, a higher replicas.tensor_parallel, or kv_cache.num_blocks"
            )
        return num_blocks
