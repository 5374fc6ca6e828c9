"""StepForm: by hand, monotone in everything, and the scalar the same as the vector to the last bit."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cbsim.cost.attention import PrefillAttention, SlidingAttention, blend, spilled_s
from cbsim.cost.cost_model import StepShape
from cbsim.cost.elementwise import over_columns
from cbsim.cost.form import DenseTable
from cbsim.cost.profile_record import form_seconds
from cbsim.cost.step_columns import StepColumns, num_pairs
from tests.cost.laws import LENGTHS, NUM_LAYERS, SPILL, make_form, measured_chunks, shapes

FORMS = {kind: make_form(fused=kind == "fused") for kind in ("split", "fused")}
FORMS["measured chunks"] = measured_chunks(FORMS["split"])
KINDS = st.sampled_from(sorted(FORMS))


def seconds(form, *several: StepShape) -> list[float]:
    return form_seconds(form, StepColumns.from_shapes(several)).tolist()


def test_blend_runs_from_maximum_to_sum():
    a, b = np.array([3.0, 1.0, 0.0]), np.array([4.0, 1.0, 2.0])
    assert over_columns(blend)(a, b, 0.0).tolist() == [4.0, 1.0, 2.0]
    assert over_columns(blend)(a, b, 4.0).tolist() == [7.0, 2.0, 2.0]
    assert blend(1.0, 1.0, 1.0) == 1.5  # (1 + 1 + sqrt(1)) / 2


def test_pairs_by_hand():
    """Two tiles of 64 queries over 10 of context: all of it, and half a diagonal of whole tiles."""
    assert num_pairs([(128, 10)], 64) == 128 * 10 + 128 * (128 + 64) // 2
    assert num_pairs([(65, 0)], 64) == 128 * (65 + 64) // 2
    assert num_pairs([(1, 0)], 2) == 3
    assert num_pairs([(128, 10), (65, 0)], 64) == num_pairs([(128, 10)], 64) + num_pairs([(65, 0)], 64)


def test_table_between_and_beyond_knots():
    table = DenseTable(tokens=(1, 5, 10), seconds=(1.0, 2.0, 4.0), tail_s_per_token=0.5)
    assert table.at(np.array([0, 1, 3, 5, 10, 14])).tolist() == [0.0, 1.0, 1.5, 2.0, 4.0, 6.0]
    falling = DenseTable(tokens=(1, 5), seconds=(2.0, 1.0), tail_s_per_token=0.5)
    assert falling.at(np.array([1, 3, 5, 7])).tolist() == [2.0, 1.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"tokens": (5, 1), "seconds": (1.0, 2.0)}, "positive and rise"),
        ({"tokens": (1, 5), "seconds": (1.0,)}, "2 tokens for 1 seconds"),
        ({"tokens": (1,), "seconds": (-1.0,)}, "greater than or equal to 0"),
    ],
)
def test_a_table_that_cannot_be(settings_, message):
    with pytest.raises(ValidationError, match=message):
        DenseTable(**settings_, tail_s_per_token=0.0)


def test_a_decode_step_by_hand():
    """Beyond `start` the stream costs 0.9 ns a token and 6 us more; blends as written out."""
    form = FORMS["split"]
    work, stream = 0.18e-6 * 64, 0.9e-9 * 128_000 + 0.3e-9 * 20_000
    together = (work + stream + np.sqrt((work - stream) ** 2 + 1.2 * work * stream)) / 2
    attention = 5e-6 + (together + 4e-6 + np.sqrt((together - 4e-6) ** 2 + 0.8 * together * 4e-6)) / 2
    dense = float(form.dense.at(np.array([64]))[0])
    expected = NUM_LAYERS * (dense + attention) + 280e-6 + 64 * 0.4e-6
    assert seconds(form, StepShape((), 0, 64, 128_000, 2000))[0] == pytest.approx(expected, rel=1e-12)


def test_split_adds_and_fused_takes_the_largest():
    mixed = StepShape(((512, 1000),), 1, 64, 128_000, 4000)
    columns = StepColumns.from_shapes([mixed])
    for kind in ("split", "fused"):
        form = FORMS[kind]
        decode, prefill = form.decode.at(columns)[0], form.prefill.at(columns)[0]
        rest = NUM_LAYERS * form.dense.at(columns.num_tokens)[0] + form.logits.at(columns.num_logits)[0]
        attention = decode + prefill
        if kind == "fused":
            attention = max(form.fused.at(columns, form.prefill.tile)[0], decode, prefill)
        assert seconds(form, mixed)[0] == pytest.approx(rest + NUM_LAYERS * attention, rel=1e-12)


def test_what_spills_by_hand():
    """Nothing up to 3,000 tokens, all from 6,000 on."""
    tokens = np.array([0, 3000, 4500, 6000, 9000])
    assert over_columns(spilled_s)(SPILL, tokens).tolist() == pytest.approx(
        [0, 0, 45e-9 * 3000, 45e-9 * 6000, 45e-9 * 9000]
    )


def test_lengths_by_hand():
    """Half of the first at half its length, between two of them between, and level beyond the last."""
    found = LENGTHS.at(np.array([8, 16, 72, 512, 768, 8192, 16_384])).tolist()
    assert found == pytest.approx([0.1e-6, 0.2e-6, -0.05e-6, 4e-6, 2.5e-6, -3e-6, -3e-6])
    several = [
        StepShape(((16, 0), (512, 900)), 0, 0, 0, 0),
        StepShape((), 0, 1, 9, 9),
        StepShape(((512, 0),), 1, 0, 0, 0),
    ]
    assert LENGTHS.together(StepColumns.from_shapes(several)).tolist() == pytest.approx([4.2e-6, 0.0, 4e-6])


def test_chunks_with_both_by_hand():
    """64 prompts of 128: the formula, 64 x -0.3 us, and 8,192 tokens streamed beside it."""
    form = FORMS["measured chunks"].prefill
    formula = 2.4e-11 * 64 * 128 * (128 + 64) / 2 + 5e-9 * 8192 + 0.1e-6 * 64
    work, streamed = formula - 64 * 0.3e-6, 45e-9 * 8192
    together = (work + streamed + np.sqrt((work - streamed) ** 2 + 0.5 * work * streamed)) / 2
    chain = 20e-9 * 128
    together = (together + chain + np.sqrt((together - chain) ** 2 + 0.5 * together * chain)) / 2
    expected = 6e-6 + (together + 6e-6 + np.sqrt((together - 6e-6) ** 2 + 2.0 * together * 6e-6)) / 2
    columns = StepColumns.from_shapes([StepShape(((128, 0),) * 64, 64, 0, 0, 0)])
    assert form.at(columns)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"tokens": (64, 128), "more_s": (1e-3, 0.0)}, "must not take less for more tokens"),
        ({"tokens": (128, 64), "more_s": (0.0, 0.0)}, "positive and rise"),
        ({"tokens": (64,), "more_s": (0.0, 0.0)}, "1 lengths for 2 seconds"),
    ],
)
def test_lengths_must_rise(lengths, message):
    with pytest.raises(ValidationError, match=message):
        PrefillAttention(**FORMS["split"].prefill.model_dump() | {"lengths": lengths})


def grown(shape: StepShape, more: int) -> list[StepShape]:
    """The step with more of each thing it has, one at a time."""
    larger = [
        shape._replace(chunks=(*shape.chunks, (more, more))),
        shape._replace(num_finishing_chunks=shape.num_finishing_chunks + more),
        shape._replace(
            num_decodes=shape.num_decodes + 1,
            decode_context=shape.decode_context + more,
            max_decode_context=max(shape.max_decode_context, more),
        ),
    ]
    if shape.num_decodes:
        longest = shape.max_decode_context + more
        context = shape.decode_context + more
        larger.append(shape._replace(decode_context=context, max_decode_context=longest))
    if shape.chunks:
        (tokens, context), *rest = shape.chunks
        larger.append(shape._replace(chunks=((tokens + more, context), *rest)))
        larger.append(shape._replace(chunks=((tokens, context + more), *rest)))
    return larger


@settings(max_examples=80, deadline=None)
@given(shape=shapes(), more=st.integers(1, 3000), kind=KINDS)
def test_monotone_in_everything(shape, more, kind):
    before, *after = seconds(FORMS[kind], shape, *grown(shape, more))
    assert before > 0
    # The blend's square root may round down by a unit in the last place.
    assert min(after) >= before * (1 - 1e-12)


def test_it_is_linear_far_out():
    """Doubling everything that counts, far beyond the tables, doubles the growth."""
    form = FORMS["split"]
    steps = [StepShape((), 0, 1000, size, size) for size in (10**8, 2 * 10**8, 3 * 10**8)]
    first, second, third = seconds(form, *steps)
    assert third - second == pytest.approx(second - first, rel=1e-6)


EXPERTS = DenseTable(tokens=(1, 64, 4096), seconds=(50e-6, 200e-6, 900e-6), tail_s_per_token=0.2e-6)
COLLECTIVES = DenseTable(tokens=(1, 4096), seconds=(8e-6, 120e-6), tail_s_per_token=0.03e-6)
CHUNKS_AND_DECODES = StepShape(((300, 50), (20, 3000)), 1, 7, 9000, 4000, 7 * 128)


def test_experts_and_collectives_count_the_tokens_of_all_ranks():
    """327 tokens of this rank and 1,000 of others, in 32 layers."""
    plain = FORMS["split"]
    shared = plain.model_copy(update={"experts": EXPERTS, "collectives": COLLECTIVES})
    (alone,), (without,) = seconds(shared, CHUNKS_AND_DECODES), seconds(plain, CHUNKS_AND_DECODES)
    (among,) = seconds(shared, CHUNKS_AND_DECODES._replace(num_other_tokens=1000))
    at = {n: 200e-6 + (n - 64) * 700e-6 / 4032 + 8e-6 + (n - 1) * 112e-6 / 4095 for n in (327, 1327)}
    assert alone - without == pytest.approx(NUM_LAYERS * at[327], rel=1e-9)
    assert among - without == pytest.approx(NUM_LAYERS * at[1327], rel=1e-9)


def test_layers_with_a_window_have_formulas_of_their_own():
    """20 of 32 layers look back 128 tokens: their pairs and keys are those of the window."""
    full = FORMS["split"]
    sliding = SlidingAttention(num_layers=20, window=128, decode=full.decode, prefill=full.prefill)
    form = full.model_copy(update={"sliding": sliding})
    pure, in_window = StepShape((), 0, 7, 9000, 4000, 7 * 128), StepShape((), 0, 7, 7 * 128, 128)
    (whole,), (all_full,), (all_cut,) = seconds(form, pure), seconds(full, pure), seconds(full, in_window)
    assert whole == pytest.approx((12 * all_full + 20 * all_cut) / 32, rel=1e-12)
    assert seconds(form, pure._replace(windowed_context=0)) == [whole]
    columns = StepColumns.from_shapes([CHUNKS_AND_DECODES])
    attention_s = full.prefill.at(replace(columns, window=128)) + full.decode.at(
        StepColumns.from_shapes([in_window])
    )
    (mixed,), (mixed_full,) = seconds(form, CHUNKS_AND_DECODES), seconds(full, CHUNKS_AND_DECODES)
    full_s = full.prefill.at(columns) + full.decode.at(columns)
    assert mixed - mixed_full == pytest.approx(20 * (attention_s - full_s)[0], rel=1e-9)
