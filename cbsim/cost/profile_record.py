"""ProfileRecord: a fitted step form, padding, host and errors, as arrays and records for `profile_step`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cbsim.config.section import Section
from cbsim.cost.attention import (
    NO_SPILL,
    DecodeAttention,
    FusedAttention,
    PrefillAttention,
    Spill,
)
from cbsim.cost.attention_grid import (
    ChunkTable,
    DecodeTable,
    MixedTable,
    SkewFigures,
    Slopes,
    harmonic_numbers,
)
from cbsim.cost.costrules import MAX_DECODES, MAX_TOKENS, as_record
from cbsim.cost.elementwise import over_columns
from cbsim.cost.form import DenseLine, LogitsForm, StepForm
from cbsim.cost.grid_step import decodes_height_s
from cbsim.cost.host import HostTime
from cbsim.cost.interpolation import Axis, axis_of
from cbsim.cost.kernel_errors import KernelErrors, Kind
from cbsim.cost.profile_step import MOST_BITS
from cbsim.cost.step_columns import Floats
from cbsim.cost.tiles import Tiles


class DecodeGrid(NamedTuple):
    """A `DecodeTable`; without knots where there is none."""

    axes: tuple[Axis, ...]
    """Mean context, number of decodes."""
    values: Any
    lines: Any
    """Seconds at each knot of the mean context, by number of decodes from 0 on."""
    slopes: Any
    skew: Any


class ChunkGrid(NamedTuple):
    """A `ChunkTable`; without knots where there is none."""

    axes: tuple[Axis, ...]
    """Tokens, context."""
    values: Any
    slopes: Any


class MixedGrid(NamedTuple):
    """A `MixedTable`; without knots where there is none."""

    axes: tuple[Axis, ...]
    """Tokens and context of the chunk, mean context and number of decodes."""
    values: Any
    chain: Any
    """Seconds of one decode beside the smallest chunk, at the knots of its context."""
    slopes: Any
    skew: Any
    crowding_axes: tuple[Axis, ...]
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
    host: Any
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


def profile_record(
    form: StepForm,
    padded_tokens: list[int],
    host: HostTime | None = None,
    max_tokens: int = MAX_TOKENS,
    max_decodes: int = MAX_DECODES,
) -> ProfileRecord:
    """The record of a form; a step of n decodes alone runs dense layers at `padded_tokens[n]` tokens."""
    grid = form.grid
    prefill_table = None if grid is None else grid.prefill
    mixed_table = None if grid is None else grid.mixed
    tokens = np.arange(max_tokens + 1, dtype=np.int64)
    dense = form.num_layers * form.dense.at(tokens)
    logits = form.logits.at(tokens)
    lengths = form.prefill.lengths
    axis, more = (axis_of(()), np.zeros(0)) if lengths is None else lengths.line
    return ProfileRecord(
        figures=as_record(
            {
                "num_layers": float(form.num_layers),
                "has_lengths": lengths is not None,
                "has_fused": form.fused is not None,
                "has_decode_grid": grid is not None,
                "has_chunk_grid": prefill_table is not None,
                "has_mixed_grid": mixed_table is not None,
                "has_errors": False,
            }
        ),
        host=host_record(host or HostTime()),
        dense=dense,
        logits=logits,
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
        decode_grid=_decode_grid(None if grid is None else grid.decode, max_decodes + 1),
        chunk_grid=chunk_grid(prefill_table),
        mixed_grid=_mixed_grid(mixed_table),
        harmonic=harmonic_numbers(max_decodes),
        errors=ErrorTables(
            *(np.zeros(0),) * 5,
            most_bits=as_record({"tokens": 0, "context": 0, "decodes": 0}),
        ),
    )


def host_record(host: HostTime) -> np.void:
    """What the host adds, as rules take it."""
    return as_record({name: float(value) for name, value in host._asdict().items()})


def with_errors(record: ProfileRecord, errors: KernelErrors, max_context: int) -> ProfileRecord:
    """The record with factors on kernels' times; contexts beyond `max_context` err like it in mixed steps."""
    figures = {name: record.figures[name].item() for name in record.figures.dtype.names}
    tokens = (len(record.dense) - 1).bit_length()
    decodes = (len(record.harmonic) - 1).bit_length()
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
    cells = np.indices([most + 1 for most in most_bits]).reshape(len(most_bits), -1)
    occurs = np.logical_or(kind != "mixed", np.all(cells > 0, axis=0))
    found = np.zeros(cells.shape[1])
    found[occurs] = errors.excesses(kind, *cells[:, occurs])
    return found


def _decode_grid(part: DecodeTable | None, num_counts: int) -> DecodeGrid:
    if part is None:
        skew = as_record(SkewFigures()._asdict())
        return DecodeGrid(_no_axes(2), np.zeros(0), np.zeros(0), _numbers(Slopes, None), skew)
    means, decodes = part.table.known_axes
    values = part.table.values.ravel()
    counts, places = np.ogrid[:num_counts, : len(means.knots)]
    lines = over_columns(decodes_height_s)(decodes, values, counts, places).ravel()
    skew = as_record(part.skew.figures._asdict())
    return DecodeGrid(part.table.known_axes, values, lines, _numbers(Slopes, part.slopes), skew)


def chunk_grid(part: ChunkTable | None) -> ChunkGrid:
    """A table of chunks alone as rules take it."""
    if part is None:
        return ChunkGrid(_no_axes(2), np.zeros(0), _numbers(Slopes, None))
    return ChunkGrid(part.table.known_axes, part.table.values.ravel(), _numbers(Slopes, part.slopes))


def _mixed_grid(part: MixedTable | None) -> MixedGrid:
    if part is None:
        skew = as_record(SkewFigures()._asdict())
        slopes = _numbers(Slopes, None)
        return MixedGrid(_no_axes(4), np.zeros(0), np.zeros(0), slopes, skew, _no_axes(1), np.zeros(0))
    return MixedGrid(
        axes=part.table.known_axes,
        values=part.table.values.ravel(),
        chain=part.table.values[0, 0, :, 0].copy(),
        slopes=_numbers(Slopes, part.slopes),
        skew=as_record(part.skew.figures._asdict()),
        crowding_axes=part.crowding.known_axes,
        crowding=part.crowding.values.ravel(),
    )


def _no_axes(number: int) -> tuple[Axis, ...]:
    return (axis_of(()),) * number


def _numbers(kind: type[Section], section: Section | None) -> np.void:
    """The numbers of a section as a record; zeros where there is none."""
    names = {name: field.annotation for name, field in kind.model_fields.items()}
    return as_record(
        {
            name: number(0 if section is None else getattr(section, name))
            for name, number in names.items()
            if number in (int, float)
        }
    )
