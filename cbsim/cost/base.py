"""CostModel: the shape of a step in, its seconds out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbsim.config.section import ComponentConfig
from cbsim.cost.costrules import MAX_DECODES, MAX_TOKENS, CostRules
from cbsim.specs import GpuSpec, ModelSpec

if TYPE_CHECKING:
    from cbsim.cost.columns import Floats, Ints, StepColumns


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


class CostModel(ABC):
    """Predicts step times for one model on the GPUs of one replica.

    `is_deterministic` says that equal shapes always cost equal seconds; a model with random noise sets it to
    False, and the engine then goes step by step.
    """

    Config: ClassVar[type[ComponentConfig]]
    is_deterministic: ClassVar[bool] = True

    def __init__(
        self, config: ComponentConfig, model: ModelSpec, gpu: GpuSpec, tensor_parallel: int = 1
    ) -> None:
        self.config = config
        self.model = model
        self.gpu = gpu
        self.tensor_parallel = tensor_parallel

    @property
    def uses_seed(self) -> bool:
        """Whether another seed may give other step times."""
        return not self.is_deterministic

    def drawn(self, seed: int) -> CostModel:
        """The model as it is under a seed: itself, unless it has something to draw."""
        return self

    def rules(self, max_tokens: int = MAX_TOKENS, max_decodes: int = MAX_DECODES) -> CostRules | None:
        """The model as the core runs it, compiled or not; `None` for one that is a `step_s` alone.

        Steps of more than `max_tokens` tokens or `max_decodes` decodes cost the same, but may take longer to
        compute.
        """
        return None

    @abstractmethod
    def step_s(self, shape: StepShape) -> float:
        """Seconds from the start of a step to its end, host time included."""

    def decode_s(self, num_decodes: int, decode_context: int, max_decode_context: int) -> float:
        """Seconds of a step of decodes alone: the same number, to the last bit, as `step_s` gives for it."""
        return self.step_s(StepShape((), 0, num_decodes, decode_context, max_decode_context))

    def decodes_s(
        self, num_decodes: int, decode_context: int, max_decode_context: int, num_steps: int
    ) -> list[float]:
        """Seconds of so many such steps in a row, each with one token more of context for every decode.

        Each is the same number, to the last bit, as `decode_s` gives.
        """
        price_s = self.decode_s
        contexts = range(decode_context, decode_context + num_decodes * num_steps, num_decodes)
        return [
            price_s(num_decodes, context, max_context)
            for max_context, context in enumerate(contexts, max_decode_context)
        ]

    def steps_s(self, columns: StepColumns) -> Floats:
        """Seconds of many steps at once: the same bits as `step_s` gives for each."""
        return np.array([self.step_s(shape) for shape in columns.shapes()], dtype=np.float64)

    def host_s(self, step_s: Floats, num_requests: Ints, columns_of: Callable[[Ints], StepColumns]) -> Floats:
        """Seconds by which each of some steps would be shorter without the host; 0 unless a model knows.

        `step_s` are the seconds of the steps. `columns_of` gives the columns of those at some places: for a
        model to which seconds and number of requests do not tell enough.
        """
        return np.zeros(len(step_s))

    def notes(self, steps: Mapping[str, NDArray[Any]] | None = None) -> list[str]:
        """Sentences for `summary.json`: what was assumed, how many steps lay outside the calibrated range.

        `steps` are the step columns of the finished run's log, so that every engine counts alike.
        """
        return []

    def inputs(self) -> list[Path]:
        """The files read, whose hashes go into the run's manifest."""
        return []
