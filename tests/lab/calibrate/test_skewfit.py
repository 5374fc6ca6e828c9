"""Losses by unequal contexts from timings of launches with a few long ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from cbsim.cost.profile_record import form_attention_s
from cbsim.cost.step_columns import StepColumns
from cbsim.lab.calibrate.point import Point
from cbsim.lab.calibrate.skewfit import Splitting, with_timed_skew
from tests.cost.laws import make_form
from tests.cost.test_attention_grid import GRID

FORM = make_form(fused=True).model_copy(update={"grid": GRID})
COUNTS, TOKENS = (2, 4, 8, 16, 32, 64, 128), (0, 64, 1024)
MOST_LEFT = 10.0


def phi_s(count: int, left: int, tokens: int) -> float:
    """Seconds lost for each token that `left` of the decodes walk on alone: none while contexts are split."""
    if not tokens and count <= 40:
        return 0.0
    return 2e-8 * max(0.0, 1.0 - left / MOST_LEFT) / (1 + tokens / 1024)


def timed(scale: float = 3.0) -> list[Point]:
    """Launches of two contexts, in times that are sums of three runs."""
    points = []
    for count, tokens, others in product(COUNTS, TOKENS, (256, 512)):
        for left in sorted({1, 2, 3, count // 8, count // 4, count // 2} - {0}):
            if left > count // 2:
                continue
            longest = 4 * others
            context = left * longest + (count - left) * others
            chunks = ((tokens, 0),) if tokens else ()
            point = Point("unequal", 1.0, chunks, count, context, longest, num_longest=left)
            equal = point.shape._replace(max_decode_context=-(-context // count))
            equal_s = sum(float(part[0]) for part in form_attention_s(FORM, StepColumns.from_shapes([equal])))
            skew_s = equal_s + phi_s(count, left, tokens) * (longest - others)
            points.append(replace(point, t_median_s=scale * skew_s, t_equal_s=scale * equal_s))
    return points


def walked_s(contexts: np.ndarray, tokens: int) -> float:
    """Seconds that decodes of these contexts lose, by following them until the last has ended."""
    ends = np.sort(contexts)
    count = len(ends)
    return sum((ends[at] - ends[at - 1]) * phi_s(count, count - at, tokens) for at in range(1, count))


@pytest.mark.parametrize(("count", "tokens"), [(64, 0), (128, 0), (32, 64), (128, 1024)])
def test_exponential_tails_lose_what_following_each_context_says(count, tokens):
    form = with_timed_skew(FORM, timed(), Splitting())
    part = form.grid.mixed if tokens else form.grid.decode
    table = part.skew.timed
    at = table.tokens.index(tokens) * len(table.decodes) + table.decodes.index(count)
    rng = np.random.default_rng(count)
    drawn = [300.0 + rng.exponential(900.0, count) for _ in range(400)]
    told = np.mean([table.lost_s_per_token[at] * (each.max() - each.mean()) for each in drawn])
    assert told == pytest.approx(np.mean([walked_s(each, tokens) for each in drawn]), rel=0.1)


def test_the_loss_leaps_where_contexts_are_no_longer_split():
    """Timed are 32 decodes and 64; on 188 multiprocessors 38 of 8 heads are the first not split."""
    table = with_timed_skew(FORM, timed(), Splitting(8, 188)).grid.decode.skew.timed
    lost = dict(zip(table.decodes, table.lost_s_per_token, strict=False))
    assert lost[37] < 1e-12
    assert lost[38] > lost[64] > 1e-9


def test_only_the_ratio_of_times_counts():
    assert with_timed_skew(FORM, timed(1.0), Splitting()) == with_timed_skew(FORM, timed(7.0), Splitting())


def test_without_tables_or_timings_the_form_is_what_it_was():
    plain = FORM.model_copy(update={"grid": None})
    assert with_timed_skew(plain, timed(), Splitting()) is plain
    assert with_timed_skew(FORM, [], Splitting()) is FORM


def test_decodes_alone_may_be_all_that_was_timed():
    alone = [point for point in timed() if not point.chunks]
    grid = with_timed_skew(FORM, alone, Splitting()).grid
    assert grid.decode.skew.timed is not None
    assert grid.mixed == GRID.mixed
