"""RooflineCost: bytes against bandwidth, FLOP against peak, for any model on any GPU, nothing measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import Field

from cbsim.config.section import ComponentConfig
from cbsim.cost.cost_model import CostModel
from cbsim.cost.costrules import MAX_DECODES, MAX_TOKENS, CostRules, Figures, as_record
from cbsim.cost.elementwise import larger
from cbsim.cost.step_columns import Floats, Ints, StepColumns
from cbsim.specs import ModelSpec


class RooflineConfig(ComponentConfig):
    """What share of its data sheet a GPU reaches, and what a step costs besides.

    The two efficiencies are those nearest the measured profiles of `calibration/profiles` (7 % off at the
    median, 22 % at p90); they stand for launch times too.
    """

    memory_efficiency: float = Field(default=0.65, gt=0, le=1)
    """Share of the peak memory bandwidth that kernels reach."""
    compute_efficiency: float = Field(default=0.65, gt=0, le=1)
    """Share of the peak FLOP rate that kernels reach."""
    host_step_s: float = Field(default=0.0, ge=0)
    """Host seconds of a step that the GPU waits for; none with asynchronous scheduling, today's default."""
    host_request_s: float = Field(default=0.0, ge=0)
    """Host seconds more for each request in the step."""
    all_reduce_latency_s: float = Field(default=1e-5, ge=0)
    """Seconds of an all-reduce of nothing, paid twice a layer when a replica has more than one GPU."""


def roofline_step_s(cost: Any, shape: Any, chunks: Any) -> Any:
    """Seconds of a step: each group of kernels takes the longer of its memory and its compute time."""
    figures = cost.figures
    num_tokens = shape.num_prefill_tokens + shape.num_decodes
    memory_s = figures.weights_s + figures.token_memory_s * num_tokens
    total_s = larger(memory_s, figures.token_compute_s * num_tokens)
    if shape.num_chunks > 0:
        num_keys = num_pairs = 0
        for place in range(shape.num_chunks):
            chunk = chunks[place]
            tokens, before = chunk.num_tokens, chunk.num_computed_tokens
            num_keys += before + tokens
            num_pairs += tokens * before + tokens * (tokens + 1) // 2
        memory_s = figures.key_memory_s * num_keys + figures.query_memory_s * shape.num_prefill_tokens
        total_s += larger(memory_s, figures.pair_compute_s * num_pairs)
    if shape.num_decodes > 0:
        memory_s = figures.key_memory_s * shape.decode_context + figures.query_memory_s * shape.num_decodes
        total_s += larger(memory_s, figures.pair_compute_s * shape.decode_context)
    num_rows = shape.num_finishing_chunks + shape.num_decodes
    if num_rows > 0:
        memory_s = figures.head_weights_s + figures.head_row_memory_s * num_rows
        total_s += larger(memory_s, figures.head_row_compute_s * num_rows)
    num_requests = shape.num_chunks + shape.num_decodes
    return total_s + figures.link_token_s * num_tokens + (figures.fixed_s + figures.request_s * num_requests)


class RooflineCost(CostModel):
    """The roofline (Williams et al., CACM 52(4), 2009) of four groups of kernels that follow each other.

    Dense layers, attention of prompt chunks, attention of decodes and the LM head each take the longer of
    their memory and their compute time; all-reduces (ring: 2 (n-1)/n of the data over the link) and host time
    come on top. The time is monotone in everything, and linear beyond the last knee.
    """

    Config = RooflineConfig
    config: RooflineConfig

    def rules(self, max_tokens: int = MAX_TOKENS, max_decodes: int = MAX_DECODES) -> CostRules:
        """The formula and its figures."""
        config, model, gpu, gpus = self.config, self.model, self.gpu, self.parallel.tensor
        bytes_per_s = gpu.memory_bytes_per_s * config.memory_efficiency
        flop_per_s = gpu.peak_flop_per_s(model.dtype) * config.compute_efficiency
        element_s = model.element_bytes / bytes_per_s
        kv_shards = min(gpus, model.num_kv_heads)
        query_and_output = 2 * model.num_layers * model.num_heads * model.head_size
        num_all_reduces = 2 * model.num_layers + 1 if gpus > 1 else 0
        moved_bytes = num_all_reduces * model.hidden_size * model.element_bytes * 2 * (gpus - 1) / gpus
        # Seconds of all layers on one GPU: reading their weights; for a token, attention apart; for a key,
        # for a query and its output, for attention of one to the other; for the LM head's weights and a row
        # of logits; all-reduces for a token; what a step has besides, and the host's for a request.
        figures = {
            "weights_s": model.num_layers * model.layer_weights * element_s / gpus,
            "token_memory_s": model.num_layers * _activations(model, gpus) * element_s,
            "token_compute_s": model.dense_flop_per_token / flop_per_s / gpus,
            "key_memory_s": model.kv_bytes_per_token / bytes_per_s / kv_shards,
            "query_memory_s": query_and_output * element_s / gpus,
            "pair_compute_s": model.attention_flop_per_pair / flop_per_s / gpus,
            "head_weights_s": model.hidden_size * model.vocab_size * element_s / gpus,
            "head_row_memory_s": (model.hidden_size + model.vocab_size / gpus) * element_s,
            "head_row_compute_s": model.logits_flop / flop_per_s / gpus,
            "link_token_s": moved_bytes / gpu.link_bytes_per_s,
            "fixed_s": num_all_reduces * config.all_reduce_latency_s + config.host_step_s,
            "request_s": config.host_request_s,
        }
        return CostRules(roofline_step_s, Figures(as_record(figures)))

    def host_s(self, step_s: Floats, num_requests: Ints, columns_of: Callable[[Ints], StepColumns]) -> Floats:
        """Seconds that the host adds to steps of `num_requests` requests."""
        return np.asarray(self.config.host_step_s + self.config.host_request_s * num_requests, np.float64)


def _activations(model: ModelSpec, gpus: int) -> float:
    """Elements read and written for one token in one layer, on one GPU, attention itself apart.

    Each matrix product reads its input and writes its output, the activation function reads two MLP widths
    and writes one, the two norms each read and write the hidden state and the residual.
    """
    heads = model.num_heads * model.head_size / gpus
    kv_heads = model.num_kv_heads * model.head_size / min(gpus, model.num_kv_heads)
    intermediate = model.intermediate_size / gpus
    qkv_and_o = 2 * heads + 2 * kv_heads + 2 * model.hidden_size
    mlp = 6 * intermediate + 2 * model.hidden_size
    norms = 8 * model.hidden_size
    return qkv_and_o + mlp + norms
