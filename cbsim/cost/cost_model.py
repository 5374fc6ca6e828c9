"""CostModel: the shape of a step in, its seconds out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cbsim.config.section import ComponentConfig
from cbsim.cost.costrules import MAX_DECODES, MAX_TOKENS, CostRules, price, seconds_of
from cbsim.cost.run_errors import StepError
from cbsim.cost.step_columns import Floats, Ints, StepColumns, StepShape
from cbsim.specs import GpuSpec, ModelSpec, ParallelSpec

__all__ = ["CostModel", "StepShape"]


class CostModel:
    """Predicts step times for one model on the GPUs of one replica.

    `is_deterministic` says that equal shapes always cost equal seconds. A model with random noise sets it to
    False: each step is then priced once, in order, and runs with other seeds are taken to differ.
    """

    Config: ClassVar[type[ComponentConfig]]
    is_deterministic: ClassVar[bool] = True

    def __init_subclass__(cls, **settings: Any) -> None:
        """A class with a `step_s` of its own has no rules but its own."""
        super().__init_subclass__(**settings)
        if "step_s" in vars(cls) and "rules" not in vars(cls):
            cls.rules = _no_rules  # type: ignore[method-assign, assignment]

    def __init__(
        self, config: ComponentConfig, model: ModelSpec, gpu: GpuSpec, parallel: ParallelSpec | int = 1
    ) -> None:
        """`parallel` may be a number: of GPUs that share each layer (tensor parallelism)."""
        self.config = config
        self.model = model
        self.gpu = gpu
        self.parallel = ParallelSpec(tensor=parallel) if isinstance(parallel, int) else parallel

    @property
    def uses_seed(self) -> bool:
        """Whether another seed may give other step times."""
        return not self.is_deterministic

    @property
    def step_error(self) -> StepError | None:
        """How wrong its step times may be; `None` where nobody knows, as of times that a user makes up."""
        return None

    @property
    def alternative(self) -> tuple[str, CostModel] | None:
        """What of the model is least certain, in words, and the model without it; `None` if nothing is."""
        return None

    def drawn(self, seed: int) -> CostModel:
        """The model as it is under a seed: itself, unless it has something to draw."""
        return self

    def rules(self, max_tokens: int = MAX_TOKENS, max_decodes: int = MAX_DECODES) -> CostRules | None:
        """The model as the core runs it, compiled or not; `None` for one that is a `step_s` alone.

        Steps of more than `max_tokens` tokens or `max_decodes` decodes can be priced too, but take longer.
        """
        return None

    @cached_property
    def inherited_rules(self) -> CostRules | None:
        """The rules with lists of the usual sizes, even if the class has a `step_s` of its own.

        They are what `super().step_s` in it stands for.
        """
        given = (vars(kind)["rules"] for kind in type(self).__mro__ if "rules" in vars(kind))
        rules: CostRules | None = next(each for each in given if each is not _no_rules)(self)
        return rules

    @property
    def usual_rules(self) -> CostRules | None:
        """`rules` with lists of the usual sizes, made once."""
        return None if type(self).rules is _no_rules else self.inherited_rules

    def step_s(self, shape: StepShape) -> float:
        """Seconds from the start of a step to its end, host time included: by `rules`, interpreted."""
        return self._by_rules(shape)

    @cached_property
    def _by_rules(self) -> Callable[[StepShape], float]:
        if self.inherited_rules is None:
            raise NotImplementedError(f"{type(self).__name__} has neither `rules` nor `step_s`")
        return seconds_of(self.inherited_rules)

    def decode_s(self, num_decodes: int, decode_context: int, max_decode_context: int) -> float:
        """Seconds of a step of decodes alone: the same number, to the last bit, as `step_s` gives for it."""
        return self.step_s(StepShape((), 0, num_decodes, decode_context, max_decode_context))

    def steps_s(self, columns: StepColumns) -> Floats:
        """Seconds of many steps at once: the same bits as `step_s` gives for each."""
        rules = self.usual_rules
        if rules is None:
            return np.array([self.step_s(shape) for shape in columns.shapes()], dtype=np.float64)
        return price(rules, columns)

    def host_s(self, step_s: Floats, num_requests: Ints, columns_of: Callable[[Ints], StepColumns]) -> Floats:
        """Seconds by which each of some steps would be shorter without the host; 0 unless a model knows.

        `step_s` are the seconds of the steps. `columns_of` gives the columns of those at some places: for a
        model to which seconds and number of requests do not tell enough.
        """
        return np.zeros(len(step_s))

    def notes(self, steps: Mapping[str, NDArray[Any]] | None = None) -> list[str]:
        """Sentences for `summary.json`: what was assumed, how many steps lay outside the calibrated range.

        `steps` are the step columns of the finished run's log.
        """
        return []

    def inputs(self) -> list[Path]:
        """The files read, whose hashes go into the run's manifest."""
        return []


def _no_rules(
    cost: CostModel, max_tokens: int = MAX_TOKENS, max_decodes: int = MAX_DECODES
) -> CostRules | None:
    return None
