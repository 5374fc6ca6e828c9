"""Points from layer timings of other profilers: dense ops, per-sequence ops, attention in one launch.

Three CSV files, as LLMServingSim 2.0 writes them (times in microseconds, of one layer):

* dense: `layer,tokens,time_us`
* per sequence: `layer,sequences,time_us`
* attention: `prefill_chunk,kv_prefill,n_decode,kv_decode,time_us`: a chunk, its context, and decodes of
  equal context
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date as Date
from pathlib import Path

import pandas as pd

from cbsim.calibrate.meta import Meta
from cbsim.calibrate.point import Op, Point
from cbsim.cost.costfile import model_shape
from cbsim.errors import CalibrationError
from cbsim.specs import GpuSpec, ModelSpec
from cbsim.units import US_PER_S

ONCE_A_STEP = frozenset({"embedding", "final_layernorm"})
"""Dense ops that run once a step; the others run in each layer."""
TWICE_A_LAYER = frozenset({"layernorm"})
DENSE_COLUMNS = ("layer", "tokens", "time_us")
SEQUENCE_COLUMNS = ("layer", "sequences", "time_us")
ATTENTION_COLUMNS = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")


@dataclass(frozen=True, slots=True)
class LayerTimings:
    """Where the three files are, and what was timed."""

    dense: Path
    per_sequence: Path
    attention: Path
    model: ModelSpec
    gpu: GpuSpec

    def points(self) -> list[Point]:
        """All timings. Raises `CalibrationError` for a file that isn't as expected."""
        return [*self._dense_points(), *self._logits_points(), *self._attention_points()]

    def meta(self, source: str, date: Date) -> Meta:
        """Where the points come from."""
        return Meta(
            device=self.gpu.name,
            gpu=self.gpu.name,
            model=model_shape(self.model),
            source=source,
            date=date.isoformat(),
            command=f"cbsim calibrate import layers --model {self.model.name} --gpu {self.gpu.name} "
            f"--dense {self.dense.name} --per-sequence {self.per_sequence.name} "
            f"--attention {self.attention.name}",
            warnings=["attention whose KV cache exceeds the device's memory is left out of the fit"],
        )

    def _dense_points(self) -> list[Point]:
        table = _read(self.dense, DENSE_COLUMNS).pivot_table(
            index="tokens", columns="layer", values="time_us"
        )
        runs = {name: self._runs_a_layer(str(name)) for name in table.columns}
        layer_us = sum(
            (table[name] * share for name, share in runs.items()), start=pd.Series(0.0, table.index)
        )
        return [
            Point("dense", us / US_PER_S, tokens=int(tokens))
            for tokens, us in zip(table.index, layer_us, strict=True)
            if us == us  # an op that wasn't timed at a size leaves no sum there
        ]

    def _runs_a_layer(self, op: str) -> float:
        if op in ONCE_A_STEP:
            return 1.0 / self.model.num_layers
        return 2.0 if op in TWICE_A_LAYER else 1.0

    def _logits_points(self) -> list[Point]:
        table = _read(self.per_sequence, SEQUENCE_COLUMNS)
        step_us = table.pivot_table(index="sequences", columns="layer", values="time_us").sum(
            axis=1, skipna=False
        )
        return [
            Point("logits", us / US_PER_S, num_logits=int(rows))
            for rows, us in zip(step_us.index, step_us, strict=True)
            if us == us
        ]

    def _attention_points(self) -> list[Point]:
        table = _read(self.attention, ATTENTION_COLUMNS)
        max_tokens = self.gpu.memory_bytes / self.model.kv_bytes_per_token
        rows = zip(*(table[name].tolist() for name in ATTENTION_COLUMNS), strict=True)
        points = []
        for chunk, chunk_context, num_decodes, context, us in rows:
            chunks = ((int(chunk), int(chunk_context)),) if chunk else ()
            op: Op = "mixed" if chunk and num_decodes else "prefill" if chunk else "decode"
            num_keys = num_decodes * context + (chunk + chunk_context if chunk else 0)
            points.append(
                Point(
                    op,
                    us / US_PER_S,
                    chunks=chunks,
                    num_decodes=int(num_decodes),
                    decode_context=int(num_decodes * context),
                    max_decode_context=int(context) if num_decodes else 0,
                    split="unseen" if num_keys > max_tokens else "fit",
                )
            )
        return points


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A table with these columns, every time > 0 and every count >= 0."""
    try:
        table = pd.read_csv(path)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise CalibrationError(f"{path}: can't be read: {str(error).splitlines()[0]}") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise CalibrationError(f"{path}:1: column {missing[0]} is missing; expected {', '.join(columns)}")
    numbers = table[[name for name in columns if name != "layer"]].apply(pd.to_numeric, errors="coerce")
    wrong = numbers.isna().any(axis=1) | (numbers < 0).any(axis=1) | (numbers["time_us"] <= 0)
    if wrong.any():
        lines = ", ".join(str(index + 2) for index in wrong.index[wrong][:5])
        raise CalibrationError(f"{path}: expected counts >= 0 and times > 0 in lines {lines}")
    return table.assign(**{str(name): numbers[name] for name in numbers})
