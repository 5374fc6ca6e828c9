"""Collectives: what GPUs that share a model tell each other in a step, by a link's latency and bandwidth."""

from __future__ import annotations

from typing import NamedTuple

from cbsim.specs import GpuSpec, ModelSpec, ParallelSpec

USUAL_LATENCY_S = 1e-5
"""Seconds of a small all-reduce where nobody measured it."""


class Link(NamedTuple):
    """What joins the GPUs of a replica."""

    latency_s: float
    """Seconds of a collective of next to nothing."""
    bytes_per_s: float
    """One direction."""

    @classmethod
    def of(cls, gpu: GpuSpec, latency_s: float | None = None) -> Link:
        """That of a GPU: as measured, else by its data sheet; `latency_s` replaces the latency."""
        usual_s = USUAL_LATENCY_S if gpu.link_latency_s is None else gpu.link_latency_s
        return cls(usual_s if latency_s is None else latency_s, gpu.link_bytes_per_s)


class StepTraffic(NamedTuple):
    """The collectives of a step: they take `fixed_s + per_token_s T + per_group_token_s G` seconds, T being
    the tokens of a rank and G those of all ranks.
    """

    fixed_s: float
    per_token_s: float
    per_group_token_s: float


def num_layer_reduces(model: ModelSpec, parallel: ParallelSpec) -> int:
    """All-reduces of all layers in a step: after attention and after the MLP; with data parallelism layers
    with experts exchange tokens in place of the second.
    """
    return 2 * model.num_layers - (model.num_expert_layers if parallel.data > 1 else 0)


def num_norm_reduces(model: ModelSpec, parallel: ParallelSpec) -> int:
    """All-reduces of all layers in a step that sum two numbers a token, for norms of queries and of keys."""
    return model.num_layers if model.qk_norm_of_all_heads and parallel.tensor > 1 else 0


def step_traffic(model: ModelSpec, parallel: ParallelSpec, link: Link) -> StepTraffic:
    """What a step's collectives take.

    Tensor parallelism reduces the hidden state twice a layer and once for the embedding, by rings: each GPU
    sends 2 (n-1)/n of it (Megatron-LM, arXiv 1909.08053). With data parallelism, layers of experts that are
    dealt out send each token's state to its experts' GPUs and back, and those whose slices all GPUs have
    gather the tokens of all ranks and reduce what comes out. A pipeline hands the state on between stages.
    """
    n, num_expert_layers = parallel.tensor, model.num_expert_layers
    state_bytes = model.hidden_size * model.element_bytes
    fixed_s = per_token_s = per_group_token_s = 0.0
    if n > 1:
        num_reduces = num_layer_reduces(model, parallel) + 1
        fixed_s += (num_reduces + num_norm_reduces(model, parallel)) * link.latency_s
        per_token_s += num_reduces * state_bytes * 2 * (n - 1) / n / link.bytes_per_s
    if parallel.data > 1 and num_expert_layers:
        gpus, experts = parallel.num_expert_gpus, model.experts
        assert experts is not None
        fixed_s += 2 * num_expert_layers * link.latency_s
        copies = 1.0
        if parallel.expert > 1:
            # Of the GPUs that a token is sent to, those beside its own.
            copies = min(experts.num_experts_per_token, parallel.expert) / gpus
        sent = num_expert_layers * 2 * copies * (gpus - 1) / gpus
        per_group_token_s += sent * state_bytes / link.bytes_per_s
    hop_s, hop_token_s = hops_s(model, parallel, link)
    return StepTraffic(fixed_s + hop_s, per_token_s + hop_token_s, per_group_token_s)


def hops_s(model: ModelSpec, parallel: ParallelSpec, link: Link) -> tuple[float, float]:
    """Seconds, of a step and more for each token, to hand the hidden state on from stage to stage."""
    num_hops = parallel.pipeline - 1
    return num_hops * link.latency_s, num_hops * model.hidden_size * model.element_bytes / link.bytes_per_s
