"""Whether timings can be true: no kernel reads faster than the memory or computes faster than the peak."""

from __future__ import annotations

from collections.abc import Sequence

from cbsim.base.errors import CalibrationError
from cbsim.base.units import MS_PER_S
from cbsim.lab.calibrate.point import Point
from cbsim.specs import GpuSpec, ModelSpec

ODD_SHARE = 0.7
"""Of the least time that a data sheet allows; below it something is missing, or not what it is taken for."""
IMPOSSIBLY_FAST = 20.0
IMPOSSIBLY_SLOW = 200.0


def check_plausible(
    points: Sequence[Point], model: ModelSpec, gpu: GpuSpec, tensor_parallel: int
) -> list[str]:
    """Sentences on what looks odd. Raises `CalibrationError` for times that must be of another unit."""
    sentences = []
    for op in ("dense", "logits", "decode"):
        sample = sorted((point for point in points if point.op == op), key=lambda point: point.size)
        # Few decodes are mere launches, and their KV may lie in the L2 cache.
        ends = sample[-1:] if op == "decode" else [*sample[:1], *sample[-1:]]
        for point in ends:
            what, least_s = _least_s(point, model, gpu, tensor_parallel)
            told = (
                f"{what}: {point.t_median_s * MS_PER_S:.3g} ms, "
                f"but at least {least_s * MS_PER_S:.3g} ms by the data sheet of {gpu.name}"
            )
            if not least_s / IMPOSSIBLY_FAST < point.t_median_s < least_s * IMPOSSIBLY_SLOW:
                raise CalibrationError(f"{told}; is the unit of time another?")
            if point.t_median_s < ODD_SHARE * least_s:
                sentences.append(f"{told}; is an op missing, or is it another model, GPU or --tp?")
    return sentences


def _least_s(point: Point, model: ModelSpec, gpu: GpuSpec, tensor_parallel: int) -> tuple[str, float]:
    """What was timed, and its shortest time: weights and KV read at full bandwidth, FLOP at the peak rate."""
    element_s = model.element_bytes / gpu.memory_bytes_per_s / tensor_parallel
    flop_s = 1.0 / gpu.peak_flop_per_s(model.dtype) / tensor_parallel
    if point.op == "dense":
        token_s = model.dense_flop_per_token / model.num_layers * flop_s
        what = f"a layer outside attention, {point.tokens:,} tokens"
        return what, max(model.layer_weights * element_s, token_s * point.tokens)
    if point.op == "logits":
        head_s = model.hidden_size * model.vocab_size * element_s
        what = f"LM head and sampling, {point.num_logits:,} rows"
        return what, max(head_s, model.logits_flop * flop_s * point.num_logits)
    kv_bytes = model.kv_bytes_per_token / model.num_layers / min(tensor_parallel, model.num_kv_heads)
    tokens = f"{point.decode_context:,} tokens of context"
    what = f"a layer's attention of {point.num_decodes} decodes, {tokens}"
    return what, kv_bytes / gpu.memory_bytes_per_s * point.decode_context
