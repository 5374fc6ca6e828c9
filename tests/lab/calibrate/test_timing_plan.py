"""The plan of a calibration: what is in it, in which order, and what a small device leaves out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.lab.calibrate.timing_plan import (
    DENSE_TOKENS,
    EDGE_TOKENS,
    LOGITS_ROWS,
    Limits,
    coarse_to_fine,
    latin_hypercube,
    make_plan,
    spread_contexts,
)

FULL = make_plan("full", Limits())


def test_the_full_plan_has_every_family() -> None:
    fitted = Counter(point.op for point in FULL if point.split == "fit")
    splits = Counter(point.split for point in FULL)
    assert fitted["dense"] == len({*DENSE_TOKENS, *EDGE_TOKENS}) == 50
    assert fitted["logits"] == len(LOGITS_ROWS) == 16
    assert fitted["mixed"] == 40
    assert splits["repeat"] == 25
    assert 100 <= splits["unseen"] <= 120
    assert 440 <= len(FULL) <= 500
    unequal = [p for p in FULL if p.op == "decode" and len(set(p.contexts)) > 1 and p.split == "fit"]
    assert len(unequal) == 30
    assert {len(p.contexts) for p in FULL} >= {24, 40, 48, 56, 80, 96, 112}


def test_prompts_go_as_far_as_the_dense_layer() -> None:
    """A step's attention and its dense layers are calibrated up to the same number of tokens."""
    prompts = max(sum(n for n, _ in point.chunks) for point in FULL if point.op == "prefill")
    assert prompts == max(DENSE_TOKENS) == Limits().max_chunk_tokens == 16384


def test_whole_steps_alone_are_never_fitted() -> None:
    steps = [point for point in FULL if point.op == "step"]
    assert {point.split for point in steps} <= {"unseen", "repeat"}
    kinds = Counter((bool(point.chunks), bool(point.contexts)) for point in steps)
    assert min(kinds[True, True], kinds[True, False], kinds[False, True]) >= 30
    for point in steps:
        assert point.tokens == len(point.contexts) + sum(n for n, _ in point.chunks)
        assert len(point.contexts) <= point.num_logits <= len(point.contexts) + len(point.chunks)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_an_interrupted_plan_can_be_fitted(share: float) -> None:
    """Its first part has the ends of every family, and points between."""
    part = FULL[: int(share * len(FULL))]
    counts = Counter(point.op for point in part)
    assert counts["dense"] >= 8
    assert counts["logits"] >= 3
    assert counts["decode"] >= 20
    assert counts["prefill"] >= 15
    tokens = {point.tokens for point in part if point.op == "dense"}
    assert {1, 16384} <= tokens
    corners = {(len(p.contexts), p.contexts[0]) for p in part if p.op == "decode"}
    assert {(1, 16), (512, 16), (1, 131072)} <= corners


def test_orders_are_places_and_repeats_come_after_their_originals() -> None:
    assert [point.order for point in FULL] == list(range(len(FULL)))
    seen = set()
    for point in FULL:
        key = (point.op, point.chunks, point.contexts, point.tokens, point.num_logits)
        assert point.split != "repeat" or key in seen
        seen.add(key)


def test_equal_arguments_give_an_equal_plan() -> None:
    assert make_plan("full", Limits()) == FULL
    assert make_plan("full", Limits(), seed=1) != FULL


def test_the_quick_plan_is_a_quarter_and_what_tables_and_mixes_need() -> None:
    quick = make_plan("quick", Limits())
    assert 0.2 < len(quick) / len(FULL) < 0.33
    assert sum(point.op == "dense" and point.split == "fit" for point in quick) == 20 + 4
    assert sum(point.op == "mixed" and point.split == "fit" for point in quick) == 24
    assert {point.op for point in quick} == {point.op for point in FULL}


def test_experts_are_planned_as_the_dense_layer_and_windows_beside_full_attention() -> None:
    plan = make_plan("full", Limits(), ops=["experts"], window=128)
    fitted = Counter((point.op, point.window) for point in plan if point.split == "fit")
    assert fitted["experts", 0] == fitted["dense", 0] == 50
    assert fitted["decode", 128] >= 40
    assert fitted["prefill", 128] >= 60
    assert {op for op, window in fitted if window} == {"decode", "prefill"}
    contexts = {context for point in plan if point.window for context in point.contexts}
    assert contexts == {16, 64, 128, 512}
    plain = {replace(point, order=0) for point in FULL if point.split != "repeat"}
    assert plain < {replace(point, order=0) for point in plan}


@settings(max_examples=20, deadline=None)
@given(st.integers(10, 14), st.integers(8, 17), st.integers(10, 20), st.integers(10, 17), st.integers(3, 9))
def test_nothing_exceeds_the_limits(tokens: int, context: int, kv: int, step_kv: int, decodes: int) -> None:
    limits = Limits(
        max_tokens=2**tokens,
        max_chunk_tokens=2**tokens,
        max_context=2**context,
        max_kv_tokens=2**kv,
        max_step_kv_tokens=2**step_kv,
        max_decodes=2**decodes,
    )
    plan = make_plan("full", limits)
    assert all(limits.allow(point) for point in plan)
    assert {"dense", "logits", "decode", "prefill"} <= {point.op for point in plan}
    for point in plan:
        assert max(point.contexts, default=0) <= 2**context
        assert max(len(point.contexts), point.num_logits) <= 2**decodes
        assert max(point.tokens, sum(n for n, _ in point.chunks)) <= 2**tokens
        assert point.num_kv_tokens <= (2**step_kv if point.op == "step" else 2**kv)


def test_coarse_to_fine_halves() -> None:
    assert coarse_to_fine([1, 2, 3, 4, 5]) == [(1,), (5,), (3,), (2,), (4,)]
    assert coarse_to_fine([7]) == [(7,)]
    grid = coarse_to_fine([1, 2, 3], [8, 9])
    assert grid[:4] == [(1, 8), (1, 9), (3, 8), (3, 9)]
    assert sorted(grid) == [(i, j) for i in (1, 2, 3) for j in (8, 9)]


def test_a_latin_hypercube_has_a_point_in_every_share_of_every_axis() -> None:
    rows = np.array(latin_hypercube(np.random.default_rng(0), 16, (1, 10), (256, 1000)))
    for column, (low, high) in zip(rows.T, ((1, 256), (10, 1000)), strict=True):
        shares = np.floor(np.log(column / low) / np.log(high / low) * 16)
        assert sorted(shares) == list(range(16))


def test_unequal_contexts_look_like_traffic() -> None:
    rng = np.random.default_rng(0)
    sets = [np.array(spread_contexts(rng, 64, 1000, 10**6)) for _ in range(200)]
    assert np.mean([contexts.mean() for contexts in sets]) == pytest.approx(1000, rel=0.01)
    longest = np.median([contexts.max() / contexts.mean() for contexts in sets])
    assert 2 <= longest <= 3.5
