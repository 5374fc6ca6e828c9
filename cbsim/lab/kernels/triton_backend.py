"""TritonBackend: paged decode by our own kernel, chunks by the fastest kernel for their size."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from cbsim.base.errors import CalibrationError
from cbsim.lab.kernels.attention_backends import (
    AttentionBackend,
    ChunkBatch,
    DecodeBatch,
    LayerCache,
    SdpaBackend,
)
from cbsim.lab.kernels.kernel_choice import DecodeTuning, KernelChoice
from cbsim.lab.kernels.prefill_kernels import PrefillKernel, right_kernels
from cbsim.lab.kernels.shard import Shard

INTERPRETED_PROCESSORS = 8
AMD_SHARED_BYTES = 64 * 1024
"""Shared memory of a program on AMD's GPUs, of which torch does not say it."""
UNTIMED = ("varlen", "triton", "sdpa")
"""Prefill kernels in the order in which they are taken where none was timed."""


class TritonBackend(AttentionBackend):
    """For GPUs, and for Triton's interpreter on a CPU (`TRITON_INTERPRET=1`).

    Chunks go to the kernel that `choice` has for their size, among those that compute rightly here. At first
    the defaults are taken, cut down to the GPU's shared memory.
    """

    def __init__(self, shard: Shard, device: torch.device) -> None:
        """Raises `CalibrationError` where Triton has nothing to run on."""
        super().__init__(shard, device)
        _check_triton(device)
        self._num_processors, shared_bytes = _processors(device)
        usual = DecodeTuning()
        if shared_bytes is not None:
            usual = usual.fitting(shard, shared_bytes)
        self.choice: KernelChoice = KernelChoice(usual)
        self.kernels, self.wrong = right_kernels(
            shard, device, SdpaBackend(shard, device), self._num_processors, shared_bytes
        )

    @property
    def prefill_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """See `AttentionBackend.prefill_names`."""
        return tuple(self.kernels)

    def with_choice(self, choice: KernelChoice) -> TritonBackend:
        """See `AttentionBackend.with_choice`; nothing is tried again."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, choice=choice)
        return other

    def num_splits(self, num_decodes: int, max_context: int) -> int:
        """Shares of each context: programs for every multiprocessor at once, none without a tile."""
        tuning = self.choice.decode
        wanted = self._num_processors * tuning.programs_per_processor
        splits = wanted // (num_decodes * self.shard.num_kv_heads)
        return max(1, min(splits, -(-max_context // tuning.tile), tuning.max_splits))

    def prefill_kernel(self, batch: ChunkBatch) -> PrefillKernel:
        """Which kernel computes a batch: that of its largest chunk."""
        chunks = zip(batch.num_tokens, batch.contexts, strict=True)
        largest = max(chunks, key=lambda chunk: chunk[0] * (2 * chunk[1] + chunk[0]))
        ranked = self.choice.prefill.ranked(*largest)
        known = (self.kernels[name] for name in (*ranked, *UNTIMED) if name in self.kernels)
        return next(kernel for kernel in known if kernel.covers(batch))

    def prefill(
        self, query: Tensor, keys: Tensor, values: Tensor, cache: LayerCache, batch: ChunkBatch
    ) -> Tensor:
        """See `AttentionBackend.prefill`."""
        return self.prefill_kernel(batch).compute(query, keys, values, cache, batch)

    def decode(self, query: Tensor, cache: LayerCache, batch: DecodeBatch) -> Tensor:
        """See `AttentionBackend.decode`."""
        from cbsim.lab.kernels.triton_attention import paged_attention

        tuning, num_splits = self.choice.decode, self.num_splits(query.shape[0], batch.max_context)
        cut = {"tile": tuning.tile, "num_warps": tuning.num_warps, "num_stages": tuning.num_stages}
        return paged_attention(query, cache, batch, num_splits=num_splits, **cut)

    def describe(self) -> str:
        """See `AttentionBackend.describe`."""
        return f"decode: Triton split-KV; chunks: {', '.join(self.kernels)}; {self.choice.told()}"


def _processors(device: torch.device) -> tuple[int, int | None]:
    """Multiprocessors of a device, and the shared memory that a program may have, if known."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS, None
    properties = torch.cuda.get_device_properties(device)
    # What a program may ask for beyond 48 KiB; only CUDA builds of torch know it.
    optin = getattr(properties, "shared_memory_per_block_optin", None)
    return properties.multi_processor_count, optin or (AMD_SHARED_BYTES if torch.version.hip else None)


def _check_triton(device: torch.device) -> None:
    if importlib.util.find_spec("triton") is None:
        raise CalibrationError("attention backend triton: needs the package triton; allowed: sdpa")
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise CalibrationError(
            "attention backend triton: needs a GPU, or TRITON_INTERPRET=1 for its interpreter; allowed: sdpa"
        )
