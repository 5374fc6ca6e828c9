"""How often a step runs the ops that other profilers time, by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Runs = Literal["layer", "twice", "step", "sequence", "none"]
"""Once a layer, twice a layer, once a step; by rows of logits, once a step; not counted."""

KNOWN: dict[str, Runs] = {
    "layernorm": "twice",
    "layer_norm": "twice",
    "rmsnorm": "twice",
    "rms_norm": "twice",
    "norm": "twice",
    "all_reduce": "twice",
    "allreduce": "twice",
    "embedding": "step",
    "embed": "step",
    "embed_tokens": "step",
    "token_embedding": "step",
    "word_embedding": "step",
    "word_embeddings": "step",
    "final_layernorm": "step",
    "final_layer_norm": "step",
    "final_norm": "step",
    "final_rmsnorm": "step",
    "ln_f": "step",
    "norm_f": "step",
    "lm_head": "sequence",
    "logits": "sequence",
    "logits_processor": "sequence",
    "compute_logits": "sequence",
    "sampler": "sequence",
    "sampling": "sequence",
    "attention": "none",
    "attn": "none",
    "core_attention": "none",
    "self_attention": "none",
    "flash_attention": "none",
    "paged_attention": "none",
}
"""Every other op runs once a layer. Attention stands in a table of its own."""


def runs_of(op: str, said: Mapping[str, Runs]) -> Runs:
    """How often an op runs: as was said, else as its name tells."""
    return said.get(op) or KNOWN.get(op.strip().lower().replace("-", "_"), "layer")
