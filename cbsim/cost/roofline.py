"""RooflineCost: bytes against bandwidth, FLOP against peak, for any model on any GPU, nothing measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbsim.base.units import GIGA, format_seconds
from cbsim.config.section import ComponentConfig
from cbsim.cost.collectives import Link, step_traffic
from cbsim.cost.cost_model import CostModel
from cbsim.cost.costrules import MAX_DECODES, MAX_TOKENS, CostRules, as_record
from cbsim.cost.elementwise import larger
from cbsim.cost.experts import num_touched, tokens_of_busiest_gpu
from cbsim.cost.interpolation import by_count
from cbsim.cost.run_errors import StepError, roofline_error
from cbsim.cost.step_columns import Floats, Ints, StepColumns, context_in_window, context_read, window_pairs
from cbsim.specs import GpuSpec, ModelSpec
from cbsim.specs.precision import BYTES_PER_ELEMENT, compute_dtype


class Seen(NamedTuple):
    """How far rooflines were off measured profiles, percent of a step's time."""

    gpus: str
    median_pct: int
    p90_pct: int


SEEN = {
    True: Seen("a100-80g, b200, gb200, h100, h200", 18, 46),
    False: Seen("l40s", 26, 70),
}
"""For GPUs that NVLink or its like joins, and others; `python -m calibration.errors` finds it."""
MODULE_LINK_GB_S = 100.0
"""Links of PCIe are slower."""


def is_module(gpu: GpuSpec) -> bool:
    """Whether more than PCIe joins such GPUs."""
    return gpu.link_gb_s > MODULE_LINK_GB_S


class RooflineConfig(ComponentConfig):
    """What share of its data sheet a GPU reaches, and what a step costs besides.

    The two efficiencies are those nearest the first measured profiles of `calibration/profiles`; they stand
    for launch times too. How far the roofline is off all of them, see `SEEN`.
    """

    memory_efficiency: float = Field(default=0.65, gt=0, le=1)
    """Share of the peak memory bandwidth that kernels reach."""
    compute_efficiency: float = Field(default=0.65, gt=0, le=1)
    """Share of the peak FLOP rate that kernels reach."""
    host_step_s: float = Field(default=0.0, ge=0)
    """Host seconds of a step that the GPU waits for; none with asynchronous scheduling, today's default."""
    host_request_s: float = Field(default=0.0, ge=0)
    """Host seconds more for each request in the step."""
    all_reduce_latency_s: float | None = Field(default=None, ge=0)
    """Seconds of an all-reduce of nothing, paid twice a layer when GPUs share layers; null takes the GPU's as
    measured, or 10 us."""
    expert_skew: float = Field(default=0.0, ge=0, le=4)
    """How unevenly tokens choose experts: the share of the one of rank r falls as r to the power of minus
    this; 0 is even."""
    step_error_pct: float | None = Field(default=None, ge=0, le=1000)
    """Percent that a run's steps may take more or less than predicted, in 9 of 10 cases; null takes how far
    rooflines were off measured profiles. The intervals of the run's latencies come from it; 0 gives none."""


class RooflineRecord(NamedTuple):
    """What `roofline_step_s` takes."""

    figures: Any
    full: Any
    """`AttentionFigures` of all layers without a window."""
    sliding: Any
    """Of all layers with one."""
    experts: Any
    """Seconds of all layers' experts, by the tokens of all ranks."""


class AttentionFigures(NamedTuple):
    """Seconds of some layers' attention on one GPU."""

    key_s: float
    """For reading the keys and values of a token."""
    query_s: float
    """For reading a query and writing its output."""
    pair_s: float
    """For computing a (query, key) pair of a prompt's chunk."""
    decode_pair_s: float
    """For computing one of a decode."""


def roofline_step_s(cost: Any, shape: Any, chunks: Any) -> Any:
    """Seconds of a step: each group of kernels takes the longer of its memory and its compute time."""
    figures = cost.figures
    num_tokens = shape.num_prefill_tokens + shape.num_decodes
    memory_s = figures.weights_s + figures.token_memory_s * num_tokens
    total_s = larger(memory_s, figures.token_compute_s * num_tokens)
    if figures.has_full:
        total_s += layers_attention_s(cost.full, shape, chunks, 0, shape.decode_context, context_read(shape))
    if figures.has_sliding:
        context = context_in_window(shape, figures.window)
        total_s += layers_attention_s(cost.sliding, shape, chunks, figures.window, context, context)
    num_group_tokens = num_tokens + shape.num_other_tokens
    if figures.has_experts:
        total_s += by_count(cost.experts, num_group_tokens)
    num_rows = shape.num_finishing_chunks + shape.num_decodes
    if num_rows > 0:
        memory_s = figures.head_weights_s + figures.head_row_memory_s * num_rows
        total_s += larger(memory_s, figures.head_row_compute_s * num_rows)
    total_s += figures.link_token_s * num_tokens + figures.link_group_token_s * num_group_tokens
    return total_s + (figures.fixed_s + figures.request_s * (shape.num_chunks + shape.num_decodes))


def layers_attention_s(
    layers: Any, shape: Any, chunks: Any, window: Any, decode_context: Any, decode_read: Any
) -> Any:
    """Seconds of some layers' attention: that of the chunks, then that of the decodes.

    `window` 0 reaches back to the first token; `decode_context` are the tokens that decodes attend
    to, `decode_read` those that are read from memory.
    """
    total_s = 0.0
    if shape.num_chunks > 0:
        num_keys = num_pairs = 0
        for place in range(shape.num_chunks):
            chunk = chunks[place]
            tokens, before = chunk.num_tokens, chunk.num_computed_tokens
            if window > 0:
                num_keys += min(before, window - 1) + tokens
                num_pairs += window_pairs(1, tokens, before, window)
            else:
                num_keys += before + tokens
                num_pairs += tokens * before + tokens * (tokens + 1) // 2
        memory_s = layers.key_s * num_keys + layers.query_s * shape.num_prefill_tokens
        total_s += larger(memory_s, layers.pair_s * num_pairs)
    if shape.num_decodes > 0:
        memory_s = layers.key_s * decode_read + layers.query_s * shape.num_decodes
        total_s += larger(memory_s, layers.decode_pair_s * decode_context)
    return total_s


class RooflineCost(CostModel):
    """The roofline (Williams et al., CACM 52(4), 2009) of groups of kernels that follow each other.

    Dense layers, routed experts, attention of prompt chunks, attention of decodes (each for layers with and
    without a window) and the LM head take the longer of their memory and their compute time; collectives and
    host time come on top. The time is monotone in everything, and linear beyond the last knee.
    """

    Config = RooflineConfig
    config: RooflineConfig

    def rules(self, max_tokens: int = MAX_TOKENS, max_decodes: int = MAX_DECODES) -> CostRules:
        """The formula and its figures."""
        config, model, gpu, parallel = self.config, self.model, self.gpu, self.parallel
        bytes_per_s = gpu.memory_bytes_per_s * config.memory_efficiency
        gpus, hidden, element_s = parallel.tensor, model.hidden_size, model.element_bytes / bytes_per_s
        parts = {part.name: part for part in model.parts}
        dense = [part for part in model.parts if part.name not in ("head", "experts")]
        traffic = step_traffic(model, parallel, Link.of(gpu, config.all_reduce_latency_s))
        head_weight_s = BYTES_PER_ELEMENT[parts["head"].dtype] / bytes_per_s
        # Seconds of all layers on one GPU: reading their weights; for a token, attention and experts apart;
        # for the LM head's weights and a row of logits; collectives for a token of a rank and of all ranks;
        # what a step has besides, and the host's for a request.
        figures: dict[str, float | int | bool] = {
            "weights_s": sum(part.num_bytes for part in dense) / bytes_per_s / gpus,
            "token_memory_s": model.num_layers * _activations(model, gpus) * element_s,
            "token_compute_s": sum(2 * part.num_used / self._flop_per_s(part.dtype) for part in dense) / gpus,
            "head_weights_s": hidden * model.vocab_size * head_weight_s / gpus,
            "head_row_memory_s": (hidden + model.vocab_size / gpus) * element_s,
            "head_row_compute_s": model.logits_flop / self._flop_per_s(parts["head"].dtype) / gpus,
            "link_token_s": traffic.per_token_s,
            "link_group_token_s": traffic.per_group_token_s,
            "fixed_s": traffic.fixed_s + config.host_step_s,
            "request_s": config.host_request_s,
            "window": model.window,
            "has_full": any(not kind.window for kind in model.attention_kinds),
            "has_sliding": model.window > 0,
            "has_experts": model.experts is not None,
        }
        tokens = np.arange(max_tokens + 1)
        return CostRules(
            roofline_step_s,
            RooflineRecord(
                as_record(figures),
                self._attention(is_sliding=False),
                self._attention(is_sliding=True),
                np.zeros(2) if model.experts is None else self.experts_s(tokens),
            ),
        )

    def _flop_per_s(self, weights: str) -> float:
        """What kernels reach at the dtype that weights are computed in."""
        dtype = compute_dtype(weights, self.model.dtype)
        return self.gpu.peak_flop_per_s(dtype) * self.config.compute_efficiency

    def _attention(self, *, is_sliding: bool) -> AttentionFigures:
        """Of the layers that slide, or of those that don't."""
        model, gpus = self.model, self.parallel.tensor
        bytes_per_s = self.gpu.memory_bytes_per_s * self.config.memory_efficiency
        flop_per_s = self._flop_per_s(model.dtype)
        keys = queries = pairs = decode_pairs = 0.0
        for kind in model.attention_kinds:
            if bool(kind.window) == is_sliding:
                keys += kind.num_layers * kind.kv_elements_of_gpu(gpus)
                queries += kind.num_layers * kind.num_heads * (kind.query_size + kind.value_size) / gpus
                pairs += kind.num_layers * kind.flop_per_pair / gpus
                decode_pairs += kind.num_layers * kind.decode_flop_per_pair / gpus
        return AttentionFigures(
            keys * model.kv_element_bytes / bytes_per_s,
            queries * model.element_bytes / bytes_per_s,
            pairs / flop_per_s,
            decode_pairs / flop_per_s,
        )

    def experts_s(self, num_tokens: Ints) -> Floats:
        """Seconds of all layers' routed experts on the busiest GPU, by the tokens of all ranks.

        The longer of reading the experts touched, with what goes in and out of them, and of computing.
        """
        model, config, parallel = self.model, self.config, self.parallel
        experts = model.experts
        if experts is None:
            return np.zeros(len(num_tokens))
        bytes_per_s = self.gpu.memory_bytes_per_s * config.memory_efficiency
        dtype, width = model.weight_dtype_of("experts"), experts.intermediate_size / parallel.expert_tensor
        weights = 3 * model.hidden_size * width
        touched = num_touched(experts, config.expert_skew, parallel.expert, num_tokens)
        products = tokens_of_busiest_gpu(experts, config.expert_skew, parallel.expert) * num_tokens
        moved = touched * weights * BYTES_PER_ELEMENT[dtype]
        moved += products * (2 * model.hidden_size + 3 * width) * model.element_bytes
        computed_s = 2 * weights * products / self._flop_per_s(dtype)
        seconds: Floats = model.num_expert_layers * np.maximum(moved / bytes_per_s, computed_s)
        return seconds

    @property
    def step_error(self) -> StepError:
        """By how far rooflines of such GPUs were off."""
        seen = SEEN[is_module(self.gpu)]
        return roofline_error(seen.p90_pct, seen.gpus).given(self.config.step_error_pct)

    def notes(self, steps: Mapping[str, NDArray[Any]] | None = None) -> list[str]:
        """That costs are an estimate, how far off others were, and what collectives are taken to cost."""
        seen, link = SEEN[is_module(self.gpu)], Link.of(self.gpu, self.config.all_reduce_latency_s)
        sentences = [
            f"costs are estimated by a roofline, nothing was measured: on {seen.gpus} the time of a step was "
            f"{seen.median_pct} % off measured profiles at the median, {seen.p90_pct} % at p90"
        ]
        parallel = self.parallel
        shares_experts = parallel.data > 1 and self.model.experts is not None
        group = parallel.num_expert_gpus if shares_experts else parallel.tensor
        told = [f"collectives of {group} GPUs"] if group > 1 else []
        told += [f"hand-overs between {parallel.pipeline} pipeline stages"] if parallel.pipeline > 1 else []
        if told:
            whose = "its data sheet" if self.gpu.measured_link_gb_s is None else "measured all-reduces"
            sentences.append(
                f"{' and '.join(told)} are estimated by a link of "
                f"{link.bytes_per_s / GIGA:g} GB/s ({whose}) and {format_seconds(link.latency_s)} each"
            )
        return sentences

    def host_s(self, step_s: Floats, num_requests: Ints, columns_of: Callable[[Ints], StepColumns]) -> Floats:
        """Seconds that the host adds to steps of `num_requests` requests."""
        return np.asarray(self.config.host_step_s + self.config.host_request_s * num_requests, np.float64)


def _activations(model: ModelSpec, gpus: int) -> float:
    """Elements read and written for one token in one layer, on average, on one GPU, attention itself and
    routed experts apart.

    Each matrix product reads its input and writes its output, the activation function reads two MLP widths
    and writes one, the two norms each read and write the hidden state and the residual.
    """
    heads = kv_heads = 0.0
    for kind in model.attention_kinds:
        heads += kind.num_layers * (kind.query_size + kind.value_size) * kind.num_heads / gpus
        kv_heads += kind.num_layers * kind.kv_elements_of_gpu(gpus)
    width = (model.num_layers - model.num_expert_layers) * model.intermediate_size
    if model.experts is not None:
        width += model.num_expert_layers * model.experts.shared_intermediate_size
    qkv_and_o = heads + kv_heads + 2 * model.num_layers * model.hidden_size
    mlp = 6 * width / gpus + 2 * model.num_layers * model.hidden_size
    norms = 8 * model.num_layers * model.hidden_size
    return (qkv_and_o + mlp + norms) / model.num_layers
