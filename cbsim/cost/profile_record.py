"""ProfileRecord: a fitted step form, padding, host and errors, as arrays and records for `profile_step`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cbsim.config.section import Section
from cbsim.cost.attention import NO_SPILL, DecodeAttention, FusedAttention, PrefillAttention, Spill
from cbsim.cost.attention_grid import (
    AttentionGrid,
    ChunkTable,
    DecodeTable,
    MixedTable,
    Skew,
    Slopes,
    Table,
    harmonic_numbers,
)
from cbsim.cost.costrules import as_record
from cbsim.cost.elementwise import over_columns
from cbsim.cost.form import DenseLine, LogitsForm, StepForm
from cbsim.cost.grid_step import decodes_height_s
from cbsim.cost.interpolation import Axis, axis_of
from cbsim.cost.kernel_errors import KernelErrors, Kind
from cbsim.cost.profile_step import MOST_BITS, HostTime
from cbsim.cost.step_columns import Floats
from cbsim.cost.tiles import Tiles

Axes = tuple[Axis, ...]


class DecodeGrid(NamedTuple):
    """A `DecodeTable`."""

    axes: Axes
    """Mean context, number of decodes."""
    values: Any
    lines: Any
    """Seconds at each knot of the mean context, by number of decodes from 0 on."""
    slopes: Any
    skew: Any


class ChunkGrid(NamedTuple):
    """A `ChunkTable`."""

    axes: Axes
    """Tokens, context."""
    values: Any
    slopes: Any


class MixedGrid(NamedTuple):
    """A `MixedTable`."""

    axes: Axes
    """Tokens and context of the chunk, mean context and number of decodes."""
    values: Any
    chain: Any
    """Seconds of one decode beside the smallest chunk, at the knots of its context."""
    slopes: Any
    skew: Any
    crowding_axes: Axes
    crowding: Any


class ErrorTables(NamedTuple):
    """What kernels' times are multiplied by, less 1, by bit lengths of sizes; empty without errors.

    Larger sizes than a table has err like its largest.
    """

    dense: Any
    """By tokens."""
    logits: Any
    """By rows."""
    prefill: Any
    """By tokens and longest context."""
    decode: Any
    """By decodes and mean context."""
    mixed: Any
    """By tokens, longest context, decodes and mean context."""
    most_bits: Any
    """The largest bit lengths of `mixed`: `tokens`, `context` (twice) and `decodes`."""


class ProfileRecord(NamedTuple):
    """What `profile_step_s` takes. Records have the fields of the sections of `StepForm` they are made of."""

    figures: Any
    """The number of layers, and which parts there are."""
    host: HostTime
    dense: Any
    """Seconds of all layers outside attention, by tokens."""
    logits: Any
    """Seconds of LM head and sampling, by rows."""
    padded: Any
    """Tokens that a step of decodes alone runs dense layers at, by decodes; beyond the list as many."""
    dense_line: DenseLine
    logits_form: Any
    logits_tiles: Any
    decode: Any
    prefill: Any
    spill: Any
    fused: Any
    lengths: Axis
    lengths_more: Any
    """Seconds more of chunks of the lengths of `lengths`."""
    by_length: Any
    """The same by each length."""
    decode_grid: DecodeGrid
    chunk_grid: ChunkGrid
    mixed_grid: MixedGrid
    harmonic: Any
    """Of `harmonic_numbers`, by decodes."""
    errors: ErrorTables


def _flat(num_axes: int) -> Table:
    return Table(axes=((0, 1),) * num_axes, seconds=(0.0,) * 2**num_axes)


_NO_SKEW = Skew(chain_s_per_token=0.0, tokens_per_s=1.0, split_up_to=0)
_NO_CHUNKS = ChunkTable(table=_flat(2), slopes=Slopes())
_NO_MIXED = MixedTable(table=_flat(4), slopes=Slopes(), skew=_NO_SKEW, crowding=_flat(1))
_NO_GRID = AttentionGrid(decode=DecodeTable(table=_flat(2), slopes=Slopes(), skew=_NO_SKEW))
"""In place of tables that a form lacks, which nobody then reads."""


def profile_record(
    form: StepForm,
    padded_tokens: Sequence[int] = (),
    host: HostTime | None = None,
    max_tokens: int = 0,
    max_decodes: int = 0,
) -> ProfileRecord:
    """The record of a form; a step of n decodes alone runs dense layers at `padded_tokens[n]` tokens.

    Up to `max_tokens` and `max_decodes` it lists what counts alone decide.
    """
    grid = form.grid or _NO_GRID
    tokens = np.arange(max_tokens + 1, dtype=np.int64)
    lengths = form.prefill.lengths
    axis, more = (axis_of(()), np.zeros(0)) if lengths is None else lengths.line
    figures = {
        "num_layers": float(form.num_layers),
        "has_lengths": lengths is not None,
        "has_fused": form.fused is not None,
        "has_decode_grid": form.grid is not None,
        "has_chunk_grid": grid.prefill is not None,
        "has_mixed_grid": grid.mixed is not None,
        "has_errors": False,
    }
    no_bits = as_record({"tokens": 0, "context": 0, "decodes": 0})
    return ProfileRecord(
        figures=as_record(figures),
        host=host or HostTime(),
        dense=form.num_layers * form.dense.at(tokens),
        logits=form.logits.at(tokens),
        padded=np.array(padded_tokens, dtype=np.int64),
        dense_line=form.dense.line._replace(tiles=_numbers(Tiles, form.dense.tiles)),
        logits_form=_numbers(LogitsForm, form.logits),
        logits_tiles=_numbers(Tiles, form.logits.tiles),
        decode=_numbers(DecodeAttention, form.decode),
        prefill=_numbers(PrefillAttention, form.prefill),
        spill=_numbers(Spill, form.prefill.spill or NO_SPILL),
        fused=_numbers(FusedAttention, form.fused),
        lengths=axis,
        lengths_more=more,
        by_length=np.zeros(0) if lengths is None else lengths.at(tokens),
        decode_grid=_decode_grid(grid.decode, max_decodes + 1),
        chunk_grid=chunk_grid(grid.prefill or _NO_CHUNKS),
        mixed_grid=_mixed_grid(grid.mixed or _NO_MIXED),
        harmonic=harmonic_numbers(max_decodes),
        errors=ErrorTables(*(np.zeros(0),) * 5, most_bits=no_bits),
    )


def with_errors(record: ProfileRecord, errors: KernelErrors, max_context: int) -> ProfileRecord:
    """The record with factors on kernels' times; contexts beyond `max_context` err like it in mixed steps."""
    figures = {name: record.figures[name].item() for name in record.figures.dtype.names}
    tokens, decodes = (len(record.dense) - 1).bit_length(), (len(record.harmonic) - 1).bit_length()
    context = max_context.bit_length()
    return record._replace(
        figures=as_record(figures | {"has_errors": True}),
        errors=ErrorTables(
            dense=_excesses(errors, "dense", MOST_BITS),
            logits=_excesses(errors, "logits", MOST_BITS),
            prefill=_excesses(errors, "prefill", MOST_BITS, MOST_BITS),
            decode=_excesses(errors, "decode", MOST_BITS, MOST_BITS),
            mixed=_excesses(errors, "mixed", tokens, context, decodes, context),
            most_bits=as_record({"tokens": tokens, "context": context, "decodes": decodes}),
        ),
    )


def _excesses(errors: KernelErrors, kind: Kind, *most_bits: int) -> Floats:
    """Of all cells up to the largest, the last size fastest; 0 for mixed steps that lack one of the sizes."""
    first = int(kind == "mixed")
    found = np.zeros([most + 1 for most in most_bits])
    found[(slice(first, None),) * len(most_bits)] = errors.excesses(kind, first, most_bits)
    return found.ravel()


def _decode_grid(part: DecodeTable, num_counts: int) -> DecodeGrid:
    axes, values = part.table.known_axes, part.table.values.ravel()
    counts, places = np.ogrid[:num_counts, : len(axes[0].knots)]
    lines = over_columns(decodes_height_s)(axes[1], values, counts, places).ravel()
    return DecodeGrid(axes, values, lines, _numbers(Slopes, part.slopes), part.skew.record)


def chunk_grid(part: ChunkTable) -> ChunkGrid:
    """A table of chunks alone as rules take it."""
    return ChunkGrid(part.table.known_axes, part.table.values.ravel(), _numbers(Slopes, part.slopes))


def _mixed_grid(part: MixedTable) -> MixedGrid:
    return MixedGrid(
        axes=part.table.known_axes,
        values=part.table.values.ravel(),
        chain=part.table.values[0, 0, :, 0].copy(),
        slopes=_numbers(Slopes, part.slopes),
        skew=part.skew.record,
        crowding_axes=part.crowding.known_axes,
        crowding=part.crowding.values.ravel(),
    )


def _numbers(kind: type[Section], section: Section | None) -> np.void:
    """The numbers of a section as a record; zeros where there is none."""
    types = {name: field.annotation for name, field in kind.model_fields.items()}
    values = {name: 0 if section is None else getattr(section, name) for name in types}
    return as_record({name: type_(values[name]) for name, type_ in types.items() if type_ in (int, float)})
