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
    sheet = _DataSheet(model, gpu, tensor_parallel)
    sentences = []
    for op in ("dense", "logits", "decode"):
        sample = sorted((point for point in points if point.op == op), key=lambda point: point.size)
        # Few decodes are mere launches, and their KV may lie in the L2 cache.
        ends = sample[-1:] if op == "decode" else [*sample[:1], *sample[-1:]]
        for point in ends:
            least_s = sheet.least_s(point)
            told = (
                f"{_told(point)}: {point.t_median_s * MS_PER_S:.3g} ms, "
                f"but at least {least_s * MS_PER_S:.3g} ms by the data sheet of {gpu.name}"
            )
            if not least_s / IMPOSSIBLY_FAST < point.t_median_s < least_s * IMPOSSIBLY_SLOW:
                raise CalibrationError(f"{told}; is the unit of time another?")
            if point.t_median_s < ODD_SHARE * least_s:
                sentences.append(f"{told}; is an op missing, or is it another model, GPU or --tp?")
    return sentences


class _DataSheet:
    """The shortest times of kernels: weights and KV read at full bandwidth, FLOP at the peak rate."""

    def __init__(self, model: ModelSpec, gpu: GpuSpec, tensor_parallel: int) -> None:
        element_s = model.element_bytes / gpu.memory_bytes_per_s / tensor_parallel
        flop_s = 1.0 / gpu.peak_flop_per_s(model.dtype) / tensor_parallel
        self._layer_s = model.layer_weights * element_s
        self._token_s = model.dense_flop_per_token / model.num_layers * flop_s
        self._head_s = model.hidden_size * model.vocab_size * element_s
        self._row_s = model.logits_flop * flop_s
        kv_bytes = model.kv_bytes_per_token / model.num_layers / min(tensor_parallel, model.num_kv_heads)
        self._context_token_s = kv_bytes / gpu.memory_bytes_per_s

    def least_s(self, point: Point) -> float:
        if point.op == "dense":
            return max(self._layer_s, self._token_s * point.tokens)
        if point.op == "logits":
            return max(self._head_s, self._row_s * point.num_logits)
        return self._context_token_s * point.decode_context


def _told(point: Point) -> str:
    if point.op == "dense":
        return f"a layer outside attention, {point.tokens:,} tokens"
    if point.op == "logits":
        return f"LM head and sampling, {point.num_logits:,} rows"
    return f"a layer's attention of {point.num_decodes} decodes, {point.decode_context:,} tokens of context"
