"""GpuSpec: what a GPU can do, each figure with its source."""

from __future__ import annotations

from pydantic import Field

from cbsim.base.units import GIB, GIGA, TERA
from cbsim.config.section import Section


class GpuSpec(Section):
    """One GPU by its data sheet: decimal TFLOP/s and GB/s, binary GiB."""

    name: str
    """Short name, as in `configs/gpus/NAME.yaml`."""
    memory_gib: float = Field(gt=0)
    """Usable device memory, GiB (2**30 bytes)."""
    memory_bandwidth_gb_s: float = Field(gt=0)
    """Peak memory bandwidth, 1e9 bytes a second."""
    bf16_tflops: float = Field(gt=0)
    """Peak dense bf16 and fp16 tensor throughput, 1e12 FLOP a second, without sparsity."""
    fp8_tflops: float | None = Field(default=None, gt=0)
    """Peak dense fp8 tensor throughput, 1e12 FLOP a second; null where the GPU has none."""
    fp32_tflops: float = Field(gt=0)
    """Peak fp32 throughput, 1e12 FLOP a second."""
    link_gb_s: float = Field(gt=0)
    """Bandwidth to the other GPUs of a replica, one direction, 1e9 bytes a second."""
    host_link_gb_s: float = Field(gt=0)
    """Bandwidth to host memory, one direction, 1e9 bytes a second."""
    sources: dict[str, str] = Field(default_factory=dict)
    """Where the figures come from."""

    @property
    def memory_bytes(self) -> int:
        """Device memory in bytes."""
        return int(self.memory_gib * GIB)

    @property
    def memory_bytes_per_s(self) -> float:
        """Peak memory bandwidth in bytes a second."""
        return self.memory_bandwidth_gb_s * GIGA

    @property
    def link_bytes_per_s(self) -> float:
        """Bandwidth between the GPUs of a replica in bytes a second."""
        return self.link_gb_s * GIGA

    @property
    def host_link_bytes_per_s(self) -> float:
        """Bandwidth to host memory in bytes a second."""
        return self.host_link_gb_s * GIGA

    def peak_flop_per_s(self, dtype: str) -> float:
        """Peak FLOP a second at a dtype; fp8 falls back to bf16 where the GPU has no fp8 units."""
        if dtype == "float32":
            return self.fp32_tflops * TERA
        if dtype == "fp8" and self.fp8_tflops is not None:
            return self.fp8_tflops * TERA
        return self.bf16_tflops * TERA
