"""What a layer computes after attention: a gated MLP, or experts that a router sends each token to."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, linear

from cbsim.lab.kernels.layer_ops import LayerOps
from cbsim.lab.kernels.quantised import Fp8Matrix, Matrix
from cbsim.lab.kernels.shard import Shard
from cbsim.specs.model import PartName


def random_matrix(
    *shape: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Tensor:
    """Normal weights of variance 1 / columns, so that activations keep their size."""
    out = torch.empty(shape, dtype=dtype, device=device)
    return out.normal_(std=shape[-1] ** -0.5, generator=generator)


def shard_matrix(
    shard: Shard, part: PartName, *shape: int, device: torch.device, generator: torch.Generator
) -> Matrix:
    """Random weights of one part of a model, in the dtype that it has them in."""
    matrix = random_matrix(*shape, dtype=shard.dtype, device=device, generator=generator)
    return Fp8Matrix.of(matrix) if shard.model.weight_dtype_of(part) == "fp8" else matrix


class GatedMlp:
    """SwiGLU (arXiv:2002.05202), with random weights."""

    def __init__(
        self,
        shard: Shard,
        part: PartName,
        size: int,
        device: torch.device,
        generator: torch.Generator,
        ops: LayerOps,
    ) -> None:
        matrix = partial(shard_matrix, shard, part, device=device, generator=generator)
        self.ops = ops
        self.gate_up = matrix(2 * size, shard.model.hidden_size)
        self.down = matrix(shard.model.hidden_size, size)

    def __call__(self, hidden: Tensor) -> Tensor:
        """`(T, hidden_size)` to the same shape."""
        return self.ops.product(self.ops.gated(self.ops.product(hidden, self.gate_up)), self.down)


class Experts:
    """Routed experts, SwiGLU each, with random weights; those that every token goes to are a `GatedMlp`.

    A token goes to the `k` experts of the highest logits and adds up their outputs, weighted by a softmax
    over these `k` (Mixtral, arXiv:2401.04088, sec. 2.1). With `is_even` the router is computed and then not
    heeded: tokens are dealt out to the experts in turn.
    """

    def __init__(
        self,
        shard: Shard,
        device: torch.device,
        generator: torch.Generator,
        ops: LayerOps,
        is_even: bool = False,
    ) -> None:
        experts = shard.model.experts
        assert experts is not None
        matrix = partial(random_matrix, dtype=shard.dtype, device=device, generator=generator)
        self.num_experts, self.num_chosen = experts.num_experts, experts.num_experts_per_token
        self.ops = ops
        self.is_even = is_even
        hidden_size, size = shard.model.hidden_size, shard.expert_size
        self.router = matrix(self.num_experts, hidden_size)
        self.gate_up = matrix(self.num_experts, 2 * size, hidden_size)
        self.down = matrix(self.num_experts, hidden_size, size)

    def __call__(self, hidden: Tensor) -> Tensor:
        """`(T, hidden_size)` to the same shape: each expert's rows together, as a group of one product."""
        logits = linear(hidden, self.router)
        rows, ends, places, shares = self.ops.dispatch(hidden, logits, self.num_chosen, is_even=self.is_even)
        activated = self.ops.gated(grouped_mm(rows, self.gate_up.mT, offs=ends))
        return self.ops.collect(grouped_mm(activated, self.down.mT, offs=ends), places, shares)
