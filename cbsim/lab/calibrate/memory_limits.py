"""Room: what fits on a device beside a model's weights, and so how large the plan's points may be."""

from __future__ import annotations

from dataclasses import dataclass

from cbsim.base.errors import CalibrationError
from cbsim.base.units import MIB, format_bytes
from cbsim.lab.calibrate.timing_plan import Limits
from cbsim.lab.kernels.device import Device
from cbsim.lab.kernels.rig import BLOCK_SIZE
from cbsim.lab.kernels.shard import Shard

KV_SHARE = 0.7
"""Share of what is free beside the weights that the KV cache takes; activations and graphs have the rest."""
MAX_CPU_KV_BYTES = 128 * MIB
MIN_KV_BLOCKS = 1024


@dataclass(frozen=True, slots=True)
class Room:
    """How much KV cache fits beside a model's weights."""

    num_blocks: int
    """Blocks of one layer; a whole step has them shared out over the layers."""
    limits: Limits


def find_room(device: Device, shard: Shard) -> Room:
    """What can be timed here. Raises `CalibrationError` if weights and a small KV cache don't fit."""
    block_bytes = BLOCK_SIZE * shard.layer_kv_token_bytes
    num_layers = shard.model.num_layers
    wanted = Limits()
    # A sequence's last block is only partly filled: count one block more for each.
    partial_tokens = wanted.max_decodes * BLOCK_SIZE
    wanted_tokens = max(wanted.max_kv_tokens, (wanted.max_step_kv_tokens + partial_tokens) * num_layers)
    left_bytes = device.free_bytes - shard.weight_bytes
    kv_bytes = min(int(left_bytes * KV_SHARE), wanted_tokens * shard.layer_kv_token_bytes)
    least_bytes = MIN_KV_BLOCKS * num_layers * block_bytes
    if not device.is_cuda:
        kv_bytes = min(kv_bytes, max(MAX_CPU_KV_BYTES, least_bytes))
    if kv_bytes < least_bytes:
        needed = shard.weight_bytes + int(least_bytes / KV_SHARE)
        raise CalibrationError(
            f"model {shard.model.name} needs {format_bytes(needed)} for weights and a small KV cache; "
            f"{device.name} has {format_bytes(device.free_bytes)} free; allowed: a smaller model or a "
            f"higher --tp"
        )
    num_blocks = kv_bytes // block_bytes
    kv_tokens = _stable(num_blocks * BLOCK_SIZE - partial_tokens)
    step_kv_tokens = _stable(num_blocks // num_layers * BLOCK_SIZE - partial_tokens)
    if device.is_cuda:
        limits = Limits(
            max_context=min(wanted.max_context, kv_tokens),
            max_kv_tokens=min(wanted.max_kv_tokens, kv_tokens),
            max_step_kv_tokens=min(wanted.max_step_kv_tokens, step_kv_tokens),
        )
    else:
        longest = shard.model.max_model_len
        limits = Limits(
            max_tokens=longest,
            max_chunk_tokens=longest,
            max_context=longest,
            max_kv_tokens=min(32 * longest, kv_tokens),
            max_step_kv_tokens=min(16 * longest, step_kv_tokens),
            max_decodes=128,
        )
    return Room(num_blocks, limits)


def _stable(num_tokens: int) -> int:
    """A power of two at most that: a run that is resumed with a little less free memory has the same plan."""
    return 1 << max(0, num_tokens.bit_length() - 1)
