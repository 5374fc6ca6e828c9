"""CountTables: what the time of a step owes to counts alone, as lists."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cbsim.cost.cost_model import StepShape
from cbsim.cost.form import StepForm
from cbsim.cost.formsteps import form_seconds
from cbsim.cost.host import HostTime
from cbsim.cost.step_columns import StepColumns

LISTED_TOKENS = 16_384
"""The lists reach at least so far, however small the sizes measured."""
LISTED_DECODES = 1024


class Counted(NamedTuple):
    """What a step of decodes alone owes to their number."""

    base_s: float
    """Dense layers, LM head."""
    decodes_s: float
    """A quarter of `per_decode B` of `DecodeAttention`."""
    softness_s: float
    """The same times its softness."""
    added_s: float
    """The host's, on top."""
    least_s: float
    """Of the step, host included."""


class CountTables:
    """Lists by tokens, rows and decodes, and the vector form for what lies beyond them."""

    def __init__(self, form: StepForm, padded_tokens: list[int], host: HostTime) -> None:
        self._form, self.host = form, host
        self.layers = float(form.num_layers)
        self.size = max(form.dense.tokens[-1], LISTED_TOKENS) + 1
        counts = np.arange(self.size, dtype=np.int64)
        self.dense: list[float] = (form.num_layers * form.dense.at(counts)).tolist()
        """Of all layers, by tokens."""
        self.logits: list[float] = form.logits.at(counts).tolist()
        """By rows."""
        decodes = np.arange(max(LISTED_DECODES + 1, len(padded_tokens)))
        padded = decodes.copy()
        padded[: len(padded_tokens)] = padded_tokens
        self.counted = self._counted(decodes, padded)
        """By decodes."""

    def counted_at(self, num_decodes: int) -> Counted:
        """Beyond the list."""
        count = np.array([num_decodes])
        return self._counted(count, count)[0]

    def step_s(self, shape: StepShape) -> float:
        """Seconds of a step with chunks by the vector form."""
        gpu = form_seconds(self._form, StepColumns.from_shapes([shape]))
        requests = len(shape.chunks) + shape.num_decodes
        return float(np.maximum(gpu, self.host.hidden_s(requests))[0] + self.host.added_s(requests))

    def _counted(self, counts: Any, padded: Any) -> list[Counted]:
        form, host = self._form, self.host
        base = form.num_layers * form.dense.at(padded) + form.logits.at(counts)
        decodes = 0.25 * (form.decode.per_decode_s * counts)
        added = host.added_s(counts)
        columns = (base, decodes, form.decode.softness * decodes, added, host.hidden_s(counts) + added)
        return list(map(Counted, *(column.tolist() for column in columns)))
