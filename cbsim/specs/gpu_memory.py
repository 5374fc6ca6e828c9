"""ProfilingRun: what each GPU's memory goes to before the KV cache gets the rest, as vLLM finds out.

vLLM runs its largest step on dummy tokens and takes off what that left free less than before it loaded
anything (`determine_available_memory` in `vllm/v1/worker/gpu_worker.py`). The figures below come from terms
that vLLM logged one by one: some 50 runs of 0.10 to 0.19 on H100s, single ones of 0.6 to 0.31 on other GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

from cbsim.base.units import GIB, MIB
from cbsim.specs.model import ModelSpec
from cbsim.specs.parallel import ParallelSpec

OUTSIDE_BYTES = int(0.4 * GIB)
"""CUDA context, libraries, workspaces, rotary tables: 0.25 to 0.5 GiB were logged."""
COLLECTIVES_BYTES = int(0.4 * GIB)
"""Buffers of NCCL and of vLLM's own all-reduces where GPUs share layers: 0.2 to 0.5 GiB were logged, and up
to 1.9 where 0.19 fused all-reduces on NVLink."""
LOGIT_COPIES = 3.5
"""Copies of a request's logits in float32 that are alive in the sampler: those in 16 bits, in float32, their
probabilities, random numbers."""
SAMPLER_ROWS = 600
"""Further copies, whatever the batch: the buffers of a top-p kernel. 150 to 250 were logged with 1,024
requests, 600 with 256."""
SORTED_LOGIT_COPIES = 9.5
"""Instead of both where torch sorts all logits for top-p, as before 0.17: with values and indices twice."""
LOGIT_BYTES = 4
GRAPH_LAYER_BYTES = int(0.235 * MIB)
"""A CUDA graph takes so much for each layer: 0.19 to 0.27 MiB for dense models."""
MAX_GRAPH_TOKENS = 512
"""Tokens of the largest graph, unless twice as many requests are fewer."""


@dataclass(frozen=True, slots=True)
class ProfilingRun:
    """The largest step that a scheduler decides."""

    num_tokens: int = 2048
    num_seqs: int = 256
    sorts_logits: bool = False
    """Whether its sampler sorts the logits of all requests."""

    def reserved_bytes(self, model: ModelSpec, parallel: ParallelSpec, *, cuda_graphs: bool = False) -> int:
        """Bytes of a GPU that neither weights nor KV entries get."""
        total = OUTSIDE_BYTES + self.activation_bytes(model, parallel)
        if parallel.num_rank_gpus > 1:
            total += COLLECTIVES_BYTES
        if cuda_graphs:
            num_layers = -(-model.num_layers // parallel.pipeline)
            total += self._num_graphs * num_layers * GRAPH_LAYER_BYTES
        return total

    def activation_bytes(self, model: ModelSpec, parallel: ParallelSpec) -> int:
        """Bytes of the tensors alive at the peak: in a layer, or in the sampler beside the step's hidden
        states; and the workspace of experts, which stays.

        A layer holds its input, its output and the residual beside the widest of its parts.
        """
        layer = self.num_tokens * (_layer_width(model, parallel) + 3 * model.hidden_size)
        num_rows = min(self.num_seqs, self.num_tokens) * LOGIT_COPIES + SAMPLER_ROWS
        if self.sorts_logits:
            num_rows = min(self.num_seqs, self.num_tokens) * SORTED_LOGIT_COPIES
        hidden_bytes = self.num_tokens * model.hidden_size * model.element_bytes
        sampler_bytes = hidden_bytes + num_rows * model.vocab_size * LOGIT_BYTES
        experts = self.num_tokens * _experts_width(model, parallel)
        return round(max(layer * model.element_bytes, sampler_bytes) + experts * model.element_bytes)

    @property
    def _num_graphs(self) -> int:
        """Graphs of 1, 2, 4, then every 8 tokens to 256 and every 16 beyond: in pieces for all sizes, whole
        for those of decodes alone (`_set_cudagraph_sizes` in `vllm/config/vllm.py`).
        """
        largest = min(2 * self.num_seqs, MAX_GRAPH_TOKENS)
        sizes = (largest, min(largest, self.num_seqs))
        return sum(3 + min(size, 256) // 8 + max(0, size - 256) // 16 for size in sizes)


USUAL_STEP = ProfilingRun()


def _layer_width(model: ModelSpec, parallel: ParallelSpec) -> int:
    """Elements of a token in the widest part of a layer: gate, up and their product, or queries, keys, values
    and outputs of attention; latent attention unpacks keys and values for every head.
    """
    experts, widths = model.experts, []
    if model.num_expert_layers < model.num_layers:
        widths.append(3 * model.intermediate_size)
    if experts is not None:
        widths.append(3 * experts.shared_intermediate_size)
    for kind in model.attention_kinds:
        num_kv_heads = kind.num_heads if kind.is_latent else kind.num_kv_heads
        widths.append((kind.num_heads + num_kv_heads) * (kind.query_size + kind.value_size))
    return max(widths) // parallel.tensor


def _experts_width(model: ModelSpec, parallel: ParallelSpec) -> int:
    """Elements of a token in the workspaces of its experts: gate and up or the outputs, whichever are wider,
    and their product or the inputs.
    """
    experts = model.experts
    if experts is None:
        return 0
    width, hidden = experts.intermediate_size // parallel.expert_tensor, model.hidden_size
    return experts.num_experts_per_token * (max(2 * width, hidden) + max(width, hidden))
