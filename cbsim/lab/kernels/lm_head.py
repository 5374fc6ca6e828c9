"""LmHead: the final norm and the logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm

from cbsim.lab.kernels.dense import random_matrix
from cbsim.lab.kernels.shard import Shard


class LmHead:
    """The final RMSNorm and the LM head; `weight` is the embedding table itself where the model ties them."""

    def __init__(
        self,
        shard: Shard,
        device: torch.device,
        generator: torch.Generator | None = None,
        weight: Tensor | None = None,
    ) -> None:
        model = shard.model
        self.hidden_shape = (model.hidden_size,)
        self.eps = model.norm_eps
        self.norm = torch.ones(model.hidden_size, dtype=shard.dtype, device=device)
        if weight is None:
            weight = random_matrix(shard.vocab_size, model.hidden_size, shard.dtype, device, generator)
        self.weight = weight

    def logits(self, hidden: Tensor) -> Tensor:
        """`(S, hidden_size)` to `(S, vocab_size)`, float32."""
        return linear(rms_norm(hidden, self.hidden_shape, self.norm, self.eps), self.weight).float()
