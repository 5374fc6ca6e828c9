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
    """Device memory as torch sees it, GiB (2**30 bytes)."""
    memory_bandwidth_gb_s: float = Field(gt=0)
    """Peak memory bandwidth, 1e9 bytes a second."""
    bf16_tflops: float = Field(gt=0)
    """Peak dense bf16 and fp16 tensor throughput, 1e12 FLOP a second, without sparsity."""
    fp8_tflops: float | None = Field(default=None, gt=0)
    """Peak dense fp8 tensor throughput, 1e12 FLOP a second; null where the GPU has none."""
    fp4_tflops: float | None = Field(default=None, gt=0)
    """Peak dense fp4 tensor throughput, 1e12 FLOP a second; null where the GPU has none."""
    int8_tops: float | None = Field(default=None, gt=0)
    """Peak dense int8 tensor throughput, 1e12 operations a second; null where the GPU has none."""
    fp32_tflops: float = Field(gt=0)
    """Peak fp32 throughput, 1e12 FLOP a second."""
    link_gb_s: float = Field(gt=0)
    """Bandwidth to the other GPUs of a replica, one direction, 1e9 bytes a second, by the data sheet."""
    measured_link_gb_s: float | None = Field(default=None, gt=0)
    """What large all-reduces over such links reach, one direction, 1e9 bytes a second: 2 (n-1)/n of the data
    over the time, n being the number of GPUs; null where nobody measured it."""
    link_latency_s: float | None = Field(default=None, ge=0)
    """Seconds of a small all-reduce over such links; null where nobody measured it."""
    host_link_gb_s: float = Field(gt=0)
    """Bandwidth to host memory, one direction, 1e9 bytes a second."""
    price_per_hour: float | None = Field(default=None, gt=0)
    """What one GPU costs for an hour, in whichever currency; null leaves costs out. No prices are shipped."""
    num_multiprocessors: int | None = Field(default=None, ge=1)
    """Streaming multiprocessors; null where the number is not known."""
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
        """Bandwidth between the GPUs of a replica in bytes a second: as measured, else by the data sheet."""
        return (self.measured_link_gb_s or self.link_gb_s) * GIGA

    @property
    def host_link_bytes_per_s(self) -> float:
        """Bandwidth to host memory in bytes a second."""
        return self.host_link_gb_s * GIGA

    def peak_flop_per_s(self, dtype: str) -> float:
        """Peak FLOP a second at a dtype; that of bf16 where the GPU has no units for fp8, int8 or fp4."""
        tflops = {
            "float32": self.fp32_tflops,
            "fp8": self.fp8_tflops,
            "int8": self.int8_tops,
            "fp4": self.fp4_tflops,
        }.get(dtype)
        return (tflops or self.bf16_tflops) * TERA
