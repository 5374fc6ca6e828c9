"""Attention tables from timings: gaps, noise, knots that say nothing, and sets that are no grid."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from cbsim.cost.attention_grid import AttentionGrid
from cbsim.cost.profile_record import form_attention_s
from cbsim.cost.step_columns import StepColumns
from cbsim.lab.calibrate.attentionfit import fit_decode, fit_fused, fit_prefill
from cbsim.lab.calibrate.gridfit import LatticeFormula, fit_grid
from cbsim.lab.calibrate.point import Point, columns_of, seconds_of
from cbsim.lab.calibrate.skewfit import Splitting
from tests.cost.laws import make_form

LAW = make_form(fused=True)
CHUNKS, CONTEXTS = (0, 16, 64, 256, 1024), (0, 256, 1024, 4096)
DECODES, MEANS = (0, 1, 4, 16, 64), (64, 256, 1024, 4096)


def make_points(*, noise: float, left_out: float = 0.0) -> list[Point]:
    """A grid of timings of the law, a random share of the mixed ones left out."""
    rng = np.random.default_rng(0)
    points = []
    for tokens, context, count, mean in itertools.product(CHUNKS, CONTEXTS, DECODES, MEANS):
        if (not tokens and (context or not count)) or (not count and mean != MEANS[0]):
            continue
        if tokens and count and rng.random() < left_out:
            continue
        op = "mixed" if tokens and count else "prefill" if tokens else "decode"
        point = Point(
            op,
            1.0,
            chunks=((tokens, context),) if tokens else (),
            num_decodes=count,
            decode_context=count * mean,
            max_decode_context=mean if count else 0,
        )
        decode, prefill = form_attention_s(LAW, StepColumns.from_shapes([point.shape]))
        seconds = float(decode[0] + prefill[0]) * rng.lognormal(0.0, noise)
        points.append(
            Point(
                op, seconds, point.chunks, point.num_decodes, point.decode_context, point.max_decode_context
            )
        )
    return points


def fit(points: list[Point]):
    """Tables over the formulas that are fitted to the same points."""
    rng = np.random.default_rng(0)
    by_op = {op: [point for point in points if point.op == op] for op in ("decode", "prefill", "mixed")}
    decode, prefill = fit_decode(by_op["decode"], rng), fit_prefill(by_op["prefill"], rng)
    fused = fit_fused(by_op["mixed"], decode, prefill, rng)
    return fit_grid(points, LatticeFormula(decode, prefill, fused))


def attention(grid, points: list[Point]) -> np.ndarray:
    decode, rest = form_attention_s(LAW.model_copy(update={"grid": grid}), columns_of(points))
    return decode + rest


def test_gaps_and_noise_are_bridged():
    grid = fit(make_points(noise=0.01, left_out=0.6))
    assert grid is not None
    whole = make_points(noise=0.0)
    error = np.abs(attention(grid, whole) / seconds_of(whole) - 1.0)
    assert np.median(error) < 0.02
    assert np.quantile(error, 0.9) < 0.05


def test_what_no_formula_says_is_kept():
    """A slow spot in the middle of the grid, of all launches with 16 decodes, stays where it was timed."""
    points = [
        replace(point, t_median_s=point.t_median_s * (1.3 if point.num_decodes == 16 else 1.0))
        for point in make_points(noise=0.0)
    ]
    grid = fit(points)
    assert grid is not None
    slow = [point for point in points if point.num_decodes == 16]
    error = np.abs(attention(grid, slow) / seconds_of(slow) - 1.0)
    assert np.median(error) < 0.001
    assert error.max() < 0.1  # Where 64 decodes cost less, monotony takes a little.


def test_chains_and_rates_come_from_the_timings():
    grid = fit(make_points(noise=0.0))
    assert grid is not None
    lines = {
        count: float(
            grid.mixed.table.at(16, 0, 4096, count)[()] - grid.mixed.table.at(16, 0, 1024, count)[()]
        )
        for count in (1, 64)
    }
    assert grid.mixed.skew.chain_s_per_token == pytest.approx(lines[1] / 3072, rel=0.02)
    assert 1.0 / grid.mixed.skew.tokens_per_s == pytest.approx(lines[64] / (64 * 3072), rel=0.3)


def test_contexts_are_split_until_the_kv_heads_fill_the_gpu():
    """256 of decodes x KV heads, so 32 decodes of 8 heads and 128 of 2, where nobody knows the GPU's size."""
    points = make_points(noise=0.0)
    formula = LatticeFormula(LAW.decode, LAW.prefill, LAW.fused)
    assert fit_grid(points, formula).decode.skew.split_up_to == 32
    assert fit_grid(points, formula, Splitting(2)).decode.skew.split_up_to == 128
    assert Splitting(8, 188).up_to == 37
    assert Splitting(8, 128).up_to == 25


def test_several_chunks_and_unequal_contexts_are_left_to_the_formula():
    points = make_points(noise=0.0)
    odd = [
        Point("prefill", 9.0, chunks=((16, 0), (16, 0))),
        Point("decode", 9.0, num_decodes=2, decode_context=300, max_decode_context=200),
    ]
    formula = LatticeFormula(LAW.decode, LAW.prefill, LAW.fused)
    assert fit_grid(points, formula) == fit_grid([*points, *odd], formula)


def slow_at(count: int, points: list[Point]) -> list[Point]:
    """Launches with so many decodes, whatever their context, take a third longer than the law says."""
    return [
        replace(point, t_median_s=point.t_median_s * (1.35 if point.num_decodes == count else 1.0))
        for point in points
    ]


def test_regimes_that_were_timed_over_a_grid_have_a_table_each():
    points = slow_at(4, make_points(noise=0.0))
    formula = LatticeFormula(LAW.decode, LAW.prefill, LAW.fused)

    def without(op: str) -> AttentionGrid | None:
        return fit_grid([point for point in points if point.op != op], formula)

    assert without("decode") is None
    for op in ("prefill", "mixed"):
        grid = without(op)
        assert grid is not None
        assert grid.mixed is None
        assert grid.prefill is None, "the formula says as much of chunks"


def test_decodes_alone_keep_what_the_formula_misses():
    """A leap from one number of decodes to the next is the same over all contexts, so gaps are bridged."""
    points = [point for point in slow_at(4, make_points(noise=0.0)) if point.op == "decode"]
    grid = fit_grid([*points[:5], *points[6:]], LatticeFormula(LAW.decode, LAW.prefill, None))
    assert points[5].num_decodes == 4
    assert attention(grid, points[5:6])[0] == pytest.approx(points[5].t_median_s, rel=0.01)


def test_a_formula_that_says_as_much_is_kept():
    """A table follows all of the noise, eight coefficients a little of it."""
    rng = np.random.default_rng(0)
    shapes = itertools.product((1, 2, 4, 8, 16, 32, 64, 128), (64, 128, 256, 512, 1024, 2048, 4096))
    points = [Point("decode", 1.0, (), count, count * mean, mean) for count, mean in shapes]
    seconds = LAW.decode.at(columns_of(points)) * rng.lognormal(0.0, 0.05, len(points))
    points = [replace(point, t_median_s=float(s)) for point, s in zip(points, seconds, strict=True)]
    assert fit_grid(points, LatticeFormula(fit_decode(points, rng), LAW.prefill, None)) is None


def test_a_few_points_here_and_there_are_no_grid():
    points = make_points(noise=0.0, left_out=0.95)
    assert fit_grid(points, LatticeFormula(LAW.decode, LAW.prefill, LAW.fused)) is None
