"""Point: the timing of one kernel, or of one whole step, and what was timed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from cbsim.cost.step_columns import Floats, StepColumns, StepShape

Op = Literal["dense", "experts", "collectives", "logits", "prefill", "decode", "mixed", "unequal", "step"]
Split = Literal["fit", "repeat", "unseen", "warm"]
OPS: tuple[Op, ...] = get_args(Op)
SPLITS: tuple[Split, ...] = get_args(Split)
Chunks = tuple[tuple[int, int], ...]
"""Prompt chunks `(tokens, context)`."""
BY_TOKENS: tuple[Op, ...] = ("dense", "experts", "collectives")
"""Those that are a function of tokens alone."""
MIN_POINTS: dict[Op, int] = {"dense": 3, "logits": 3, "prefill": 8, "decode": 8}
"""Fewest points of each op that say anything."""


@dataclass(frozen=True, slots=True)
class Point:
    """One timing. `dense` is a layer outside attention by `tokens`; `experts` and `collectives` its routed
    experts and all-reduces by the `tokens` of all ranks, averaged over all layers; `logits` the LM head and
    sampling by `num_logits`; `prefill`, `decode` and `mixed` are one layer's attention, of decodes of equal
    contexts but for few; `unequal` is that of decodes of two contexts, with chunks or without; `step` is
    everything. Seconds.
    """

    op: Op
    t_median_s: float
    chunks: Chunks = ()
    num_decodes: int = 0
    decode_context: int = 0
    max_decode_context: int = 0
    tokens: int = 0
    num_logits: int = 0
    backend: str = ""
    page_size: int = 16
    dtype: str = "bfloat16"
    graph: bool = False
    """Whether a CUDA graph was replayed."""
    l2: str = "cold"
    """`cold`: other data went through the L2 cache between runs, as in serving; `warm`: it did not."""
    num_runs: int = 1
    t_min_s: float = math.nan
    t_p90_s: float = math.nan
    order: int = 0
    split: Split = "fit"
    """`fit`; `repeat`: an earlier one again; `unseen`: never fitted; `warm`: left out, its KV sat in L2."""
    seed: int = 0
    window: int = 0
    """Tokens that attention reaches back in the layer timed; 0 for all."""
    num_longest: int = 0
    """Of an `unequal` point: decodes with the longest context; the others have one of their own."""
    t_equal_s: float = math.nan
    """Of an `unequal` point: seconds of as many decodes over as many tokens, all contexts equal, taken in the
    same way; some profilers sum up runs, so that only the ratio of both counts."""

    @classmethod
    def attention(
        cls, median_s: float, chunks: Chunks, num_decodes: int = 0, context: int = 0, **how: Any
    ) -> Point:
        """The timing of a layer's attention to chunks and decodes of equal context; `how` are attributes."""
        op: Op = "mixed" if chunks and num_decodes else "prefill" if chunks else "decode"
        return cls(op, median_s, chunks, num_decodes, num_decodes * context, context, **how)

    @property
    def shape(self) -> StepShape:
        """A step with this part: a `dense` point's tokens as a chunk, a `logits` point's rows as decodes."""
        chunks = ((self.tokens, 0),) if self.op in BY_TOKENS else self.chunks
        num_decodes = self.num_logits if self.op == "logits" else self.num_decodes
        finishing = self.num_logits - self.num_decodes if self.op == "step" else 0
        context = self.decode_context
        if self.window:
            context = min(context, num_decodes * self.window)
        return StepShape(chunks, finishing, num_decodes, context, self.max_decode_context)

    @property
    def size(self) -> int:
        """What "the largest points" of an op are the largest of."""
        if self.op in BY_TOKENS:
            return self.tokens
        if self.op == "logits":
            return self.num_logits
        pairs = sum(tokens * context + tokens * tokens // 2 for tokens, context in self.chunks)
        return pairs + self.decode_context

    @property
    def key(self) -> tuple[Op, int, StepShape]:
        """What was timed: equal for a point and its repeats."""
        return self.op, self.window, self.shape


def columns_of(points: Sequence[Point]) -> StepColumns:
    """The shapes of points as columns; attention points must have one window."""
    columns = StepColumns.from_shapes([point.shape for point in points])
    return replace(columns, window=points[0].window if points else 0)


def seconds_of(points: Sequence[Point]) -> Floats:
    """The medians of points."""
    return np.array([point.t_median_s for point in points])
