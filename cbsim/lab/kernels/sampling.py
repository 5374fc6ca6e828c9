"""Sampling: from a row of logits to a token, greedy or at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cbsim.base.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a request's tokens are chosen. Raises `ConfigError` for values outside what is allowed."""

    temperature: float = 0.0
    """0 is greedy: the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens; 0 is all."""
    top_p: float = 1.0
    """Only the fewest most likely tokens whose probabilities reach p (Holtzman et al., arXiv:1904.09751)."""

    def __post_init__(self) -> None:
        problems = []
        if not self.temperature >= 0:
            problems.append(f"temperature: got {self.temperature}; allowed: 0 (greedy) or more")
        if self.top_k < 0:
            problems.append(f"top_k: got {self.top_k}; allowed: 0 (all) or more")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p: got {self.top_p}; allowed: more than 0, at most 1")
        if problems:
            raise ConfigError(*problems)

    @property
    def is_greedy(self) -> bool:
        """Whether no chance is involved."""
        return self.temperature == 0

    @property
    def is_restricted(self) -> bool:
        """Whether some tokens are out of the question."""
        return not self.is_greedy and (self.top_k > 0 or self.top_p < 1)


def greedy(logits: Tensor) -> Tensor:
    """The most likely token of each row, the first of equals: `(S, vocab)` to `(S,)` int64."""
    return logits.argmax(dim=-1)


def sample(logits: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    """One token a row, `(S,)` int64: row i by `params[i]` and its own random number `uniforms[i]` in [0, 1).

    The inverse of the cumulative distribution, so a row's token depends on its logits and its number alone,
    never on the batch. Top-k is applied before top-p, as in vLLM.
    """
    if all(row.is_greedy for row in params):
        return greedy(logits)
    device = logits.device
    is_greedy = torch.tensor([row.is_greedy for row in params], device=device)
    temperature = torch.tensor([row.temperature or 1.0 for row in params], device=device)
    uniform = torch.tensor(uniforms, dtype=torch.float32, device=device)
    probabilities = torch.softmax(logits / temperature[:, None], dim=-1)
    chosen = _place(probabilities, uniform)
    rows = [i for i, row in enumerate(params) if row.is_restricted]
    if rows:
        at = torch.tensor(rows, device=device)
        chosen[at] = _restricted(probabilities[at], [params[i] for i in rows], uniform[at])
    return torch.where(is_greedy, greedy(logits), chosen)


def _restricted(probabilities: Tensor, params: Sequence[SamplingParams], uniform: Tensor) -> Tensor:
    """Sample among the top k, of these the top p."""
    device = probabilities.device
    vocab_size = probabilities.shape[1]
    top_k = torch.tensor([row.top_k or vocab_size for row in params], device=device)
    top_p = torch.tensor([row.top_p for row in params], device=device)
    ranked, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    ranked = ranked.masked_fill(torch.arange(vocab_size, device=device) >= top_k[:, None], 0.0)
    before = ranked.cumsum(dim=-1) - ranked
    ranked = ranked.masked_fill(before >= top_p[:, None] * ranked.sum(dim=-1, keepdim=True), 0.0)
    return tokens.gather(1, _place(ranked, uniform)[:, None])[:, 0]


def _place(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first place whose cumulative weight exceeds the row's share `uniform` of the total."""
    cumulative = weights.cumsum(dim=-1)
    target = uniform[:, None] * cumulative[:, -1:]
    # Rounding may lift the target to the total: stay on the last place that has weight.
    last = (cumulative < cumulative[:, -1:]).sum(dim=-1)
    return torch.minimum(torch.searchsorted(cumulative, target, right=True)[:, 0], last)
