"""ProfileRecord: a fitted step form, padding, host and errors, as arrays and records for `profile_step`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cbsim.base.records import plain
from cbsim.config.section import Section
from cbsim.cost.attention import (
    NO_SPILL,
    BesideChunks,
    DecodeAttention,
    FusedAttention,
    PrefillAttention,
    Spill,
)
from cbsim.cost.attention_grid import (
    AttentionGrid,
    ChunkTable,
    DecodeTable,
    MixedTable,
    Skew,
    Slopes,
    Table,
    UnequalTable,
    harmonic_numbers,
)
from cbsim.cost.costrules import CostRules, as_record, price
from cbsim.cost.elementwise import over_columns
from cbsim.cost.form import DenseLine, DenseTable, LogitsForm, StepForm, Tiles
from cbsim.cost.grid_step import beyond_launch_s, decodes_height_s
from cbsim.cost.interpolation import Axis, axis_of
from cbsim.cost.kernel_errors import KernelErrors, Kind
from cbsim.cost.profile_step import (
    MOST_BITS,
    HostTime,
    chunks_attention_s,
    decodes_attention_s,
    far_shared_s,
    profile_step_s,
)
from cbsim.cost.step_columns import Floats, StepColumns


class GridRecord(NamedTuple):
    """A table of attention, and the slopes beyond it."""

    axes: tuple[Axis, ...]
    values: Any
    slopes: Any


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
    shared: Any
    """Seconds of experts, collectives and hops between stages, by the tokens of all ranks."""
    logits: Any
    """Seconds of LM head and sampling, by rows."""
    padded: Any
    """Tokens that a step of decodes alone runs dense layers at, by decodes; beyond the list as many."""
    dense_line: DenseLine
    experts_line: DenseLine
    collectives_line: DenseLine
    logits_form: Any
    logits_tiles: Any
    decode: Any
    prefill: Any
    spill: Any
    fused: Any
    beside: GridRecord
    """Of `BesideChunks`, factors in place of seconds."""
    sliding_decode: Any
    sliding_prefill: Any
    sliding_spill: Any
    lengths: Axis
    lengths_more: Any
    """Seconds more of chunks of the lengths of `lengths`."""
    by_length: Any
    """The same by each length."""
    decode_grid: GridRecord
    decode_lines: Any
    """Seconds of `decode_grid` at each knot of the mean context, by number of decodes from 0 on."""
    decode_skew: Any
    decode_unequal: GridRecord
    chunk_grid: GridRecord
    mixed_grid: GridRecord
    mixed_skew: Any
    mixed_unequal: GridRecord
    mixed_chain: Any
    """Seconds of one decode beside the smallest chunk, at the knots of its context."""
    crowding: GridRecord
    harmonic: Any
    """Of `harmonic_numbers`, by decodes."""
    errors: ErrorTables


class Hops(NamedTuple):
    """What a step takes to pass the state on between the stages of a pipeline, seconds."""

    step_s: float
    token_s: float


def _flat(num_axes: int) -> Table:
    return Table(axes=((0, 1),) * num_axes, seconds=(0.0,) * 2**num_axes)


_NO_SKEW = Skew(chain_s_per_token=0.0, tokens_per_s=1.0, split_up_to=0)
_NO_FACTORS = BesideChunks(decodes=(1, 2), factors=(1.0, 1.0))
_NOT_TIMED = UnequalTable(tokens=(0, 1), decodes=(1, 2), lost_s_per_token=(0.0,) * 4)
_NO_CHUNKS = ChunkTable(table=_flat(2), slopes=Slopes())
_NO_MIXED = MixedTable(table=_flat(4), slopes=Slopes(), skew=_NO_SKEW, crowding=_flat(1))
_NO_GRID = AttentionGrid(decode=DecodeTable(table=_flat(2), slopes=Slopes(), skew=_NO_SKEW))
"""In place of tables that a form lacks, which nobody then reads."""
_NOTHING = DenseTable(tokens=(1,), seconds=(0.0,), tail_s_per_token=0.0)
"""In place of experts or collectives."""


def profile_record(
    form: StepForm,
    padded_tokens: Sequence[int] = (),
    host: HostTime | None = None,
    max_tokens: int = 0,
    max_decodes: int = 0,
    hops: Hops | None = None,
    sort_row_s: float = 0.0,
) -> ProfileRecord:
    """The record of a form; a step of n decodes alone runs dense layers at `padded_tokens[n]` tokens, and
    sorting logits takes `sort_row_s` a row.

    Up to `max_tokens` and `max_decodes` it lists what counts alone decide.
    """
    grid, sliding = form.grid or _NO_GRID, form.sliding
    chunks, mixed = grid.prefill or _NO_CHUNKS, grid.mixed or _NO_MIXED
    decode_grid = grid_record(grid.decode.table, grid.decode.slopes)
    counts, places = np.ogrid[: max_decodes + 1, : len(decode_grid.axes[0].knots)]
    tokens = np.arange(max_tokens + 1, dtype=np.int64)
    lengths = form.prefill.lengths
    axis, more = (axis_of(()), np.zeros(0)) if lengths is None else lengths.line
    figures = {
        "num_layers": float(form.num_layers),
        "num_full_layers": float(form.num_layers - (sliding.num_layers if sliding else 0)),
        "num_sliding_layers": float(sliding.num_layers if sliding else 0),
        "window": sliding.window if sliding else 0,
        "has_shared": bool(form.experts or form.collectives or hops),
        "sort_row_s": sort_row_s,
        "hop_s": hops.step_s if hops else 0.0,
        "hop_token_s": hops.token_s if hops else 0.0,
        "has_lengths": lengths is not None,
        "has_fused": form.fused is not None,
        "has_beside": form.beside is not None,
        "has_decode_grid": form.grid is not None,
        "has_chunk_grid": grid.prefill is not None,
        "has_mixed_grid": grid.mixed is not None,
        "has_errors": False,
    }
    experts, collectives = form.experts or _NOTHING, form.collectives or _NOTHING
    no_bits = as_record({"tokens": 0, "context": 0, "decodes": 0})
    record = ProfileRecord(
        figures=as_record(figures),
        host=host or HostTime(),
        dense=form.num_layers * form.dense.at(tokens),
        shared=np.zeros(0),
        logits=form.logits.at(tokens) + sort_row_s * tokens,
        padded=np.array(padded_tokens, dtype=np.int64),
        dense_line=_line(form.dense),
        experts_line=_line(experts),
        collectives_line=_line(collectives),
        logits_form=_numbers(LogitsForm, form.logits),
        logits_tiles=_numbers(Tiles, form.logits.tiles),
        decode=_numbers(DecodeAttention, form.decode),
        prefill=_numbers(PrefillAttention, form.prefill),
        spill=_numbers(Spill, form.prefill.spill or NO_SPILL),
        fused=_numbers(FusedAttention, form.fused),
        beside=_factors(form.beside or _NO_FACTORS),
        sliding_decode=_numbers(DecodeAttention, sliding and sliding.decode),
        sliding_prefill=_numbers(PrefillAttention, sliding and sliding.prefill),
        sliding_spill=_numbers(Spill, (sliding and sliding.prefill.spill) or NO_SPILL),
        lengths=axis,
        lengths_more=more,
        by_length=np.zeros(0) if lengths is None else lengths.at(tokens),
        decode_grid=decode_grid,
        decode_lines=over_columns(decodes_height_s)(decode_grid, counts, places).ravel(),
        decode_skew=grid.decode.skew.record,
        decode_unequal=_unequal(grid.decode.skew),
        chunk_grid=grid_record(chunks.table, chunks.slopes),
        mixed_grid=grid_record(mixed.table, mixed.slopes),
        mixed_skew=mixed.skew.record,
        mixed_unequal=_unequal(mixed.skew),
        mixed_chain=mixed.table.values[0, 0, :, 0].copy(),
        crowding=grid_record(mixed.crowding),
        harmonic=harmonic_numbers(max_decodes),
        errors=ErrorTables(*(np.zeros(0),) * 5, most_bits=no_bits),
    )
    # The formula over arrays reads sections, not records.
    whole = record._replace(
        figures=plain(record.figures), experts_line=experts.line, collectives_line=collectives.line
    )
    return record._replace(shared=over_columns(far_shared_s)(whole, tokens.astype(np.float64)))


def _factors(beside: BesideChunks) -> GridRecord:
    return GridRecord((axis_of(beside.decodes),), np.array(beside.factors), _numbers(Slopes, None))


def _unequal(skew: Skew) -> GridRecord:
    """What rules take of a skew that was timed; of another one something that nobody reads."""
    timed = skew.timed or _NOT_TIMED
    axes = axis_of(timed.tokens), axis_of(timed.decodes)
    return GridRecord(axes, np.array(timed.lost_s_per_token), _numbers(Slopes, None))


def _line(table: DenseTable) -> DenseLine:
    """A table as `dense_s` takes it, of records alone."""
    return table.line._replace(tiles=_numbers(Tiles, table.tiles))


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


def grid_record(table: Table, slopes: Slopes | None = None) -> GridRecord:
    """A table as rules take it."""
    return GridRecord(table.known_axes, table.values.ravel(), _numbers(Slopes, slopes))


def _numbers(kind: type[Section], section: Section | None) -> np.void:
    """The numbers of a section as a record; zeros where there is none."""
    types = {name: field.annotation for name, field in kind.model_fields.items()}
    values = {name: 0 if section is None else getattr(section, name) for name in types}
    return as_record({name: type_(values[name]) for name, type_ in types.items() if type_ in (int, float)})


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
    grid = plain(grid_record(table.table, table.slopes))
    return np.array(
        [
            grid.values[0] + beyond_launch_s(grid, chunks, shape.num_chunks) if shape.num_chunks else 0.0
            for shape, chunks in columns.plain_steps()
        ]
    )
