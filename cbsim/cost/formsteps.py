"""Steps by a `StepForm` alone: on the GPU, without host, padding or errors."""

from __future__ import annotations

import numpy as np

from cbsim.base.records import plain
from cbsim.cost.attention_grid import ChunkTable
from cbsim.cost.costrules import CostRules, price
from cbsim.cost.form import StepForm
from cbsim.cost.grid_step import beyond_launch_s
from cbsim.cost.profile_record import chunk_grid, profile_record
from cbsim.cost.profile_step import chunks_attention_s, decodes_attention_s, profile_step_s
from cbsim.cost.step_columns import Floats, StepColumns


def form_seconds(form: StepForm, columns: StepColumns) -> Floats:
    """Seconds of each step."""
    return price(CostRules(profile_step_s, profile_record(form)), columns)


def form_attention_s(form: StepForm, columns: StepColumns) -> tuple[Floats, Floats]:
    """Seconds of one layer's attention: the decodes', and the chunks' (or all of a mixed step)."""
    cost = plain(profile_record(form))
    pairs = []
    for shape, chunks in columns.plain_steps():
        decode_s = decodes_attention_s(cost, shape)
        has_chunks = shape.num_chunks > 0
        pairs.append(chunks_attention_s(cost, shape, chunks, decode_s) if has_chunks else (decode_s, 0.0))
    decode, prefill = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return decode, prefill


def chunks_together_s(table: ChunkTable, columns: StepColumns) -> Floats:
    """Seconds of all chunks of each step by the table of single ones; 0 without chunks."""
    grid = plain(chunk_grid(table))
    return np.array(
        [
            grid.values[0] + beyond_launch_s(grid, chunks, shape.num_chunks) if shape.num_chunks else 0.0
            for shape, chunks in columns.plain_steps()
        ]
    )
