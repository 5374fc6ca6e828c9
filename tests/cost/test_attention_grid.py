"""Attention tables: what lies on them, between, beyond; scalar and vector to the bit; unequal contexts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cbsim.base.records import plain
from cbsim.cost.attention import BesideChunks
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
    skew_factor_s,
)
from cbsim.cost.cost_model import StepShape
from cbsim.cost.grid_step import beyond_launch_s, mixed_by_grid_s
from cbsim.cost.profile_record import form_attention_s, form_seconds, profile_record
from cbsim.cost.profile_step import chunks_attention_s, decodes_attention_s
from cbsim.cost.step_columns import StepColumns
from tests.cost.laws import make_form

CHUNKS = (16.0, 64.0, 500.0, 2048.0)
CONTEXTS = (0.0, 512.0, 4096.0)
MEANS = (16.0, 256.0, 1024.0, 8192.0)
DECODES = (1.0, 8.0, 32.0, 128.0)


def chunk_law(tokens: float, context: float) -> float:
    return 8e-6 + 5e-9 * tokens + 2e-11 * tokens * (context + 0.5 * tokens)


def decode_law(mean: float, decodes: float) -> float:
    return 6e-6 + 1e-7 * decodes + 3e-9 * mean * decodes


def mixed_law(tokens: float, context: float, mean: float, decodes: float) -> float:
    return 1.1 * chunk_law(tokens, context) + 1.4 * decode_law(mean, decodes) + 1e-8 * mean


def table(law, *axes) -> Table:
    return Table(axes=axes, seconds=tuple(law(*sizes) for sizes in itertools.product(*axes)))


GRID = AttentionGrid(
    decode=DecodeTable(
        table=table(decode_law, MEANS, DECODES),
        slopes=Slopes(per_decode_s=1e-7, per_context_token_s=3e-9),
        skew=Skew(chain_s_per_token=2e-8, tokens_per_s=3e8, split_up_to=32),
    ),
    prefill=ChunkTable(
        table=table(chunk_law, CHUNKS, CONTEXTS), slopes=Slopes(per_pair_s=2e-11, per_token_s=5e-9)
    ),
    mixed=MixedTable(
        table=table(mixed_law, CHUNKS, CONTEXTS, MEANS, DECODES),
        slopes=Slopes(per_pair_s=2.2e-11, per_token_s=6e-9, per_decode_s=1e-7, per_context_token_s=4e-9),
        skew=Skew(chain_s_per_token=2e-8, tokens_per_s=2e8, split_up_to=0),
        crowding=Table(axes=((1.0, 128.0),), seconds=(1.0, 2.0)),
    ),
)


def rough(section, seed: int, knots: dict[int, tuple[float, ...]]):
    """A part of the grid with noisy seconds (rising still), some axes with other knots."""
    axes = [knots.get(number, axis) for number, axis in enumerate(section.table.axes)]
    found = section.table.at(*section.table.nearest(*np.meshgrid(*axes, indexing="ij")))
    found = found * np.random.default_rng(seed).uniform(0.7, 1.5, found.shape)
    for axis in range(len(axes)):
        found = np.maximum.accumulate(found, axis=axis)
    return section.model_copy(
        update={"table": Table(axes=tuple(axes), seconds=tuple(found.ravel().tolist()))}
    )


STEEP = Skew(chain_s_per_token=6e-8, tokens_per_s=3e8, split_up_to=32)
# As timings are: now the launch of both is the longest, now the chunk alone, now the decodes alone.
ROUGH = AttentionGrid(
    decode=rough(
        GRID.decode.model_copy(update={"skew": STEEP}),
        1,
        {0: (16.0, 300.0, 1024.0, 6000.0), 1: (1.0, 2.0, 20.0, 32.0, 100.0)},
    ),
    prefill=rough(GRID.prefill, 2, {0: (24.0, 64.0, 300.0, 1500.0), 1: (0.0, 300.0, 512.0, 5000.0)}),
    mixed=rough(GRID.mixed, 3, {}),
)
DEAR_TABLE = Table(
    axes=ROUGH.prefill.table.axes, seconds=tuple(8.0 * seconds for seconds in ROUGH.prefill.table.seconds)
)
DEAR = ROUGH.model_copy(update={"prefill": ROUGH.prefill.model_copy(update={"table": DEAR_TABLE})})
TIMED_LOSS = UnequalTable(
    tokens=(16, 1024), decodes=(8, 32, 64), lost_s_per_token=(0.0, 2e-8, 1e-8, 0.0, 1e-8, 6e-9)
)
TIMED = GRID.model_copy(
    update={
        name: part.model_copy(update={"skew": part.skew.model_copy(update={"timed": TIMED_LOSS})})
        for name, part in (("decode", GRID.decode), ("mixed", GRID.mixed))
    }
)
"""With timings of unequal contexts."""
FACTORS = BesideChunks(decodes=(1, 16, 128), factors=(0.5, 1.0, 2.0))
PARTS = {
    "all": GRID,
    "all, dear chunks": DEAR,
    "all, rough": ROUGH,
    "decodes": GRID.model_copy(update={"prefill": None, "mixed": None}),
    "decodes and chunks": GRID.model_copy(update={"mixed": None}),
}
FORM = make_form(fused=True).model_copy(update={"grid": GRID})
FORMS = {
    (parts, fused): make_form(fused=fused).model_copy(update={"grid": grid})
    for parts, grid in PARTS.items()
    for fused in (True, False)
}


def attention_of(*steps: StepShape) -> np.ndarray:
    decode, rest = form_attention_s(FORM, StepColumns.from_shapes(steps))
    return decode + rest


def equal_decodes(count: int, mean: int) -> dict[str, int]:
    return {"num_decodes": count, "decode_context": count * mean, "max_decode_context": mean}


def test_at_its_knots_it_is_what_was_measured():
    steps = {
        StepShape((), 0, **equal_decodes(32, 256)): decode_law(256, 32),
        StepShape(((500, 512),), 1, 0, 0, 0): chunk_law(500, 512),
        StepShape(((2048, 4096),), 0, **equal_decodes(8, 1024)): mixed_law(2048, 4096, 1024, 8),
    }
    assert attention_of(*steps) == pytest.approx(list(steps.values()), rel=1e-12)


def test_between_knots_it_is_exact_for_products_of_sizes():
    """Decodes by their number, their context and its sum: multilinear, so nothing is lost."""
    for mean, count in ((100, 20), (3000, 100), (17, 3)):
        step = StepShape((), 0, **equal_decodes(count, mean))
        assert attention_of(step)[0] == pytest.approx(decode_law(mean, count), rel=1e-12)


def test_beyond_the_tables_it_grows_by_the_formula():
    step = StepShape((), 0, **equal_decodes(300, 20_000))
    assert attention_of(step)[0] == pytest.approx(decode_law(20_000, 300), rel=1e-12)
    tokens, context = 5000, 9000
    seconds = chunk_law(2048, 4096) + 5e-9 * (tokens - 2048)
    seconds += 2e-11 * (tokens * (context + 0.5 * tokens) - 2048 * (4096 + 1024))
    assert attention_of(StepShape(((tokens, context),), 1, 0, 0, 0))[0] == pytest.approx(seconds, rel=1e-12)


def test_several_chunks_alone_add_what_each_costs_beyond_a_launch():
    both = attention_of(StepShape(((500, 512), (64, 0)), 2, 0, 0, 0))[0]
    expected = chunk_law(500, 512) + chunk_law(64, 0) - chunk_law(16, 0)
    assert both == pytest.approx(expected, rel=1e-12)


def test_several_chunks_among_decodes_are_crowded():
    step = StepShape(((500, 512), (64, 0)), 2, **equal_decodes(128, 256))
    expected = max(
        mixed_law(500, 512, 256, 128) + 2.0 * (chunk_law(64, 0) - chunk_law(16, 0)),
        mixed_law(64, 0, 256, 128) + 2.0 * (chunk_law(500, 512) - chunk_law(16, 0)),
    )
    assert attention_of(step)[0] == pytest.approx(expected, rel=1e-12)


def factor_of(skew: Skew, num_decodes: int) -> float:
    """Seconds for each token that the longest context is beyond the mean."""
    return skew_factor_s(plain(skew.record), harmonic_numbers(num_decodes)[num_decodes], num_decodes)


def worked_skew(contexts: list[float], chain: float, rate: float) -> float:
    """Seconds that decodes of these contexts take, by following them until the last has ended."""
    left = sorted(contexts)
    walked = seconds = 0.0
    for index, context in enumerate(left):
        at_work = len(left) - index
        seconds += (context - walked) * max(chain, at_work / rate)
        walked = context
    return seconds


@pytest.mark.parametrize("count", [40, 64, 128, 250])
def test_unequal_contexts_cost_what_following_each_of_them_says(count):
    """Contexts with an exponential tail: the closed form against a walk through every decode."""
    rng = np.random.default_rng(count)
    chain, rate = 2e-8, 3e8
    walked, told = [], []
    for _ in range(300):
        contexts = 300.0 + rng.exponential(900.0, count)
        mean = contexts.mean()
        walked.append(worked_skew(contexts.tolist(), chain, rate) - mean * count / rate)
        factor = factor_of(GRID.decode.skew, count)
        told.append(factor * (contexts.max() - mean))
    assert np.mean(told) == pytest.approx(np.mean(walked), rel=0.1)


def test_equal_contexts_and_split_ones_have_no_skew():
    assert factor_of(GRID.decode.skew, 32) == 0.0
    assert factor_of(GRID.decode.skew, 33) > 0.0
    assert factor_of(GRID.mixed.skew, 4) == 0.0
    equal, unequal = (StepShape((), 0, 20, 20_000, longest) for longest in (1000, 9000))
    assert attention_of(equal)[0] == attention_of(unequal)[0]


@pytest.mark.parametrize(
    ("chunks", "count", "lost_s_per_token"),
    [
        ((), 32, 2e-8),
        ((), 48, 1.5e-8),
        ((), 500, 1e-8),
        ((), 4, 0.0),
        (((16, 0),), 32, 2e-8),
        (((520, 0),), 32, 1.5e-8),
        (((500, 0), (524, 0)), 64, 6e-9),
        (((2048, 0),), 20, 5e-9),
    ],
)
def test_where_unequal_contexts_were_timed_theory_is_silent(chunks, count, lost_s_per_token):
    """Linear between the sizes timed, level beyond, for each token of the longest beyond the mean."""
    form = make_form(fused=True).model_copy(update={"grid": TIMED})
    shapes = [StepShape(chunks, 0, count, 2000 * count, longest) for longest in (2000, 3000)]
    equal, unequal = form_seconds(form, StepColumns.from_shapes(shapes))
    assert (unequal - equal) / 32 == pytest.approx(1000 * lost_s_per_token, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("count", "factor"), [(16, 1.0), (72, 1.5), (128, 2.0), (400, 2.0)])
def test_mixed_launches_nobody_timed_cost_a_factor_more_for_their_decodes(count, factor):
    form = make_form(fused=False).model_copy(update={"beside": FACTORS})
    decodes, chunks = equal_decodes(count, 2000), ((500, 512), (64, 0))
    steps = [StepShape((), 0, **decodes), StepShape(chunks, 0, 0, 0, 0), StepShape(chunks, 0, **decodes)]
    (decode_s, _, _), (_, chunks_s, mixed_s) = form_attention_s(form, StepColumns.from_shapes(steps))
    assert mixed_s == pytest.approx(chunks_s + factor * decode_s, rel=1e-12)


def test_a_mixed_launch_is_never_shorter_than_its_parts():
    none = BesideChunks(decodes=(1, 2), factors=(0.0, 0.0))
    form = make_form(fused=False).model_copy(update={"beside": none})
    steps = [StepShape(chunks, 0, **equal_decodes(200, 8000)) for chunks in ((), ((16, 0),))]
    decode_s, rest_s = form_attention_s(form, StepColumns.from_shapes(steps))
    alone, mixed = decode_s + rest_s
    assert mixed == alone


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"decodes": (0, 16, 128)}, "decodes must be positive and rise"),
        ({"factors": (0.5, 1.0, 0.9)}, "factors must not fall"),
        ({"factors": (0.5, 1.0)}, "3 decodes for 2 factors"),
    ],
)
def test_factors_that_are_none(changed, message):
    with pytest.raises(ValidationError, match=message):
        BesideChunks(**FACTORS.model_dump() | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": (16, 16)}, "tokens must rise"),
        ({"decodes": (8, 4, 64)}, "decodes must rise"),
        ({"lost_s_per_token": (0.0,) * 5}, "5 seconds for"),
        ({"lost_s_per_token": (-1e-9,) * 6}, "greater than or equal to 0"),
    ],
)
def test_losses_that_are_no_table(changed, message):
    with pytest.raises(ValidationError, match=message):
        UnequalTable(**TIMED_LOSS.model_dump() | changed)


def test_no_launch_ends_before_its_longest_decode():
    step = StepShape(((16, 0),), 0, 3, 8192 + 32, 8192)
    assert attention_of(step)[0] >= mixed_law(16, 0, 8192, 1)


def sizes_near(rng, knots, num_steps: int) -> np.ndarray:
    """On knots, beside them, between them and somewhat beyond."""
    between = rng.integers(0, int(knots[-1] * 1.1), num_steps)
    beside = rng.choice(knots, num_steps).astype(np.int64) + rng.integers(-1, 2, num_steps)
    return np.maximum(np.where(rng.random(num_steps) < 0.4, beside, between), 0)


def steps_near(grid: AttentionGrid, num_steps: int, seed: int) -> list[StepShape]:
    """Steps of one chunk, some of two, and decodes, of sizes about those of a grid's tables."""
    rng = np.random.default_rng(seed)
    tokens, context, mean, count = (
        np.array([sizes_near(rng, axis, num_steps) for _ in range(2)]) for axis in grid.mixed.table.axes
    )
    tokens, mean, count = np.maximum(tokens, 1), np.maximum(mean[0], 1), np.maximum(count[0], 1)
    context[:, rng.random(num_steps) < 0.5] = 0
    total = mean * count + rng.integers(0, count)
    longest = -(-total // count) + rng.choice([0, 5, 300, 4000], num_steps)
    num_chunks = 1 + (rng.random(num_steps) < 0.2)
    chunks = [
        tuple(zip(tokens[:number, step].tolist(), context[:number, step].tolist(), strict=True))
        for step, number in enumerate(num_chunks.tolist())
    ]
    columns = (count.tolist(), total.tolist(), longest.tolist())
    return [StepShape(*row) for row in zip(chunks, num_chunks.tolist(), *columns, strict=True)]


def test_each_of_three_launches_is_now_and_then_the_longest():
    """Else the tests of what is the longest would prove little."""
    columns = StepColumns.from_shapes(steps_near(DEAR, 5000, seed=8))
    form = make_form(fused=False).model_copy(update={"grid": DEAR})
    cost = plain(profile_record(form))
    longest, smallest_s = [], float(DEAR.prefill.table.values.flat[0])
    for shape, chunks in columns.plain_steps():
        beyond_s = beyond_launch_s(cost.chunk_grid, chunks, shape.num_chunks)
        mixed_s = mixed_by_grid_s(cost, shape, chunks, beyond_s)
        three = (mixed_s, decodes_attention_s(cost, shape), smallest_s + beyond_s)
        assert chunks_attention_s(cost, shape, chunks, three[1]) == (0.0, max(three))
        longest.append(three.index(max(three)))
    assert np.bincount(longest, minlength=3).min() > 50


@settings(max_examples=100, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 9000)), max_size=3),
    count=st.integers(8, 200),
    mean=st.integers(1, 12_000),
    more=st.integers(1, 2000),
    which=st.sampled_from(["chunk tokens", "chunk context", "new chunk", "contexts", "longest", "decodes"]),
)
# A chunk smaller than any timed lies below the smallest: as company it must not take time away.
@example(chunks=[(1, 0)], count=8, mean=1, more=1, which="new chunk")
def test_more_of_anything_never_costs_less(chunks, count, mean, more, which):
    before = after = (chunks, count, count * mean, 2 * mean)
    if which == "chunk tokens" and chunks:
        after = ([(chunks[0][0] + more, chunks[0][1]), *chunks[1:]], *before[1:])
    elif which == "chunk context" and chunks:
        after = ([(chunks[0][0], chunks[0][1] + more), *chunks[1:]], *before[1:])
    elif which == "new chunk":
        after = ([*chunks, (more, 0)], *before[1:])
    elif which == "contexts":
        after = (chunks, count, count * (mean + more), 2 * mean + more)
    elif which == "longest":
        after = (chunks, count, count * mean, 2 * mean + more)
    elif which == "decodes":
        after = (chunks, count + 1, (count + 1) * mean, 2 * mean)

    def seconds(sizes) -> float:
        chunks, count, context, longest = sizes
        shape = StepShape(tuple(chunks), 0, count, context, longest)
        return float(form_seconds(FORM, StepColumns.from_shapes([shape]))[0])

    assert seconds(after) >= seconds(before) * (1 - 1e-12)


@pytest.mark.parametrize(
    ("axes", "seconds", "message"),
    [
        (((1.0, 2.0),), (1.0,), "1 seconds for a grid of"),
        (((2.0, 1.0),), (1.0, 2.0), "two or more knots that rise"),
        (((1.0,),), (1.0,), "two or more knots that rise"),
        (((1.5, 2.0),), (1.0, 2.0), "whole numbers"),
        (((1.0, 1e9),), (1.0, 2.0), "whole numbers up to 10,000,000"),
        (((1.0, 2.0),), (2.0, 1.0), "seconds must not fall along axis 0"),
    ],
)
def test_tables_that_are_none(axes, seconds, message):
    with pytest.raises(ValidationError, match=message):
        Table(axes=axes, seconds=seconds)
