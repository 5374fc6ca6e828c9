"""StepShape: what a step computes, as far as its time depends on it."""

from __future__ import annotations

from typing import NamedTuple


class StepShape(NamedTuple):
    """What a step computes, as far as its time depends on it."""

    chunks: tuple[tuple[int, int], ...]
    """Prompt chunks `(tokens, context)`: tokens computed now, tokens whose KV is there already."""
    num_finishing_chunks: int
    """Chunks that complete their prompt and so need a row of logits."""
    num_decodes: int
    decode_context: int
    """Sum over the decodes of the tokens each attends to, the one computed now included."""
    max_decode_context: int
    """The longest of them; 0 without decodes."""

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the dense layers."""
        return sum(tokens for tokens, _ in self.chunks) + self.num_decodes

    @property
    def num_logits(self) -> int:
        """Rows of logits computed, one for each token sampled."""
        return self.num_finishing_chunks + self.num_decodes

    @property
    def num_requests(self) -> int:
        """Requests (or, in padded batches, slots) in the step."""
        return len(self.chunks) + self.num_decodes
