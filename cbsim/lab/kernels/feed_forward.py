"""What a layer computes after attention: a gated MLP, or experts that a router sends each token to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, linear

from cbsim.lab.kernels.layer_ops import LayerOps
from cbsim.lab.kernels.quantised import Fp8Matrix, Matrix
from cbsim.lab.kernels.shard import Shard
from cbsim.specs.model import PartName


class Maker(NamedTuple):
    """What layers are made with: a shard's sizes, the device, random numbers, and operations for it."""

    shard: Shard
    device: torch.device
    generator: torch.Generator
    ops: LayerOps

    def random(self, *shape: int) -> Tensor:
        """Normal weights of variance 1 / columns, so that activations keep their size."""
        out = torch.empty(shape, dtype=self.shard.dtype, device=self.device)
        return out.normal_(std=shape[-1] ** -0.5, generator=self.generator)

    def ones(self, size: int) -> Tensor:
        """The weights of a norm."""
        return torch.ones(size, dtype=self.shard.dtype, device=self.device)

    def matrix(self, part: PartName, *shape: int) -> Matrix:
        """Random weights of one part of a model, in the dtype that it has them in."""
        matrix = self.random(*shape)
        return Fp8Matrix.of(matrix) if self.shard.model.weight_dtype_of(part) == "fp8" else matrix


class GatedMlp:
    """SwiGLU (arXiv:2002.05202), with random weights."""

    def __init__(self, make: Maker, part: PartName, size: int) -> None:
        hidden_size, self.ops = make.shard.model.hidden_size, make.ops
        self.gate_up = make.matrix(part, 2 * size, hidden_size)
        self.down = make.matrix(part, hidden_size, size)

    def __call__(self, hidden: Tensor) -> Tensor:
        """`(T, hidden_size)` to the same shape."""
        return self.ops.product(self.ops.gated(self.ops.product(hidden, self.gate_up)), self.down)


class Experts:
    """Routed experts, SwiGLU each, with random weights; those that every token goes to are a `GatedMlp`.

    A token goes to the `k` experts of the highest logits and adds up their outputs, weighted by a softmax
    over these `k` (Mixtral, arXiv:2401.04088, sec. 2.1). With `is_even` the router is computed and then not
    heeded: tokens are dealt out to the experts in turn.
    """

    def __init__(self, make: Maker, is_even: bool) -> None:
        experts = make.shard.model.experts
        assert experts is not None
        self.num_experts, self.num_chosen = experts.num_experts, experts.num_experts_per_token
        self.ops, self.is_even = make.ops, is_even
        hidden_size, size = make.shard.model.hidden_size, make.shard.expert_size
        self.router = make.random(self.num_experts, hidden_size)
        self.gate_up = make.random(self.num_experts, 2 * size, hidden_size)
        self.down = make.random(self.num_experts, hidden_size, size)

    def __call__(self, hidden: Tensor) -> Tensor:
        """`(T, hidden_size)` to the same shape: each expert's rows together, as a group of one product."""
        logits = linear(hidden, self.router)
        rows, ends, places, shares = self.ops.dispatch(hidden, logits, self.num_chosen, is_even=self.is_even)
        activated = self.ops.gated(grouped_mm(rows, self.gate_up.mT, offs=ends))
        return self.ops.collect(grouped_mm(activated, self.down.mT, offs=ends), places, shares)
