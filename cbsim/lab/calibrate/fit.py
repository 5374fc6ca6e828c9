"""Fit: points in, a cost file with honest errors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbsim.base.errors import CalibrationError
from cbsim.cost.attention import SlidingAttention
from cbsim.cost.costfile import Box, CostFile
from cbsim.cost.form import StepForm
from cbsim.cost.step_columns import Floats
from cbsim.lab.calibrate.accuracy import Report, errors_by_kind, predict, repeatability
from cbsim.lab.calibrate.attentionfit import fit_decode, fit_fused, fit_prefill
from cbsim.lab.calibrate.estimates import MIXED_ERRORS, Estimate, with_estimates
from cbsim.lab.calibrate.estimates import SENTENCES as ESTIMATED
from cbsim.lab.calibrate.gridfit import LatticeFormula, fit_grid
from cbsim.lab.calibrate.point import MIN_POINTS, OPS, Op, Point, columns_of
from cbsim.lab.calibrate.pointsfile import Meta
from cbsim.lab.calibrate.rowsfit import fit_dense, fit_logits
from cbsim.lab.calibrate.skewfit import USUAL_SPLITTING, Splitting, with_timed_skew
from cbsim.results.result import hash_files

Mask = NDArray[np.bool_]

NUM_FOLDS = 4
"""Each op point is held out once, with a random quarter of them, and predicted by a fit to the others."""
LARGEST_SHARE = 0.15
"""Share of each op's points, the largest, held out to see how far the form extrapolates."""
MAX_MIXED_POINTS = 2000
"""Mixed points fitted at most, a random choice: some profilers make grids of tens of thousands."""
MIN_MIXED_POINTS = 16
"""Mixed points from which the fused regime is fitted; with fewer, mixed attention is the sum of its parts."""
SENTENCES: dict[Op, str] = {
    "prefill": "chunks alone were hardly timed: launches with the least decode context stand for them, "
    "which makes steps without decodes too long",
    "decode": "decodes alone were hardly timed: launches with the smallest chunks stand for them, which "
    "makes steps of decodes alone too long, by a third and more",
}
"""What is said of launches of chunks and decodes together that stand for those alone."""


def fit_form(
    points: Sequence[Point],
    num_layers: int,
    seed: int,
    splitting: Splitting = USUAL_SPLITTING,
    num_sliding_layers: int = 0,
    *,
    with_lengths: bool = True,
) -> StepForm:
    """Fit every part of the form to op points. Raises `CalibrationError` if an op has too few.

    `splitting` says when decodes alone split contexts, `num_sliding_layers` are the layers whose attention
    points have a window.
    `with_lengths` looks for effects of single lengths of prompts, which takes most of the time.
    """
    sliding = [point for point in points if point.window]
    points = [point for point in points if not point.window]
    by_op = {op: [point for point in points if point.op == op] for op in OPS}
    short = [
        f"too few points to fit: {op}: {len(by_op[op])} points, expected at least {least}"
        for op, least in MIN_POINTS.items()
        if len(by_op[op]) < least
    ]
    if short:
        raise CalibrationError(*short)
    streams = np.random.SeedSequence(seed).spawn(4)
    decode_rng, prefill_rng, fused_rng, sliding_rng = map(np.random.default_rng, streams)
    decode = fit_decode(by_op["decode"], decode_rng)
    prefill = fit_prefill(by_op["prefill"], prefill_rng, with_lengths=with_lengths)
    mixed = by_op["mixed"]
    if len(mixed) > MAX_MIXED_POINTS:
        chosen = fused_rng.choice(len(mixed), size=MAX_MIXED_POINTS, replace=False)
        mixed = [mixed[index] for index in chosen]
    fused = fit_fused(mixed, decode, prefill, fused_rng) if len(mixed) >= MIN_MIXED_POINTS else None
    form = StepForm(
        num_layers=num_layers,
        dense=fit_dense(by_op["dense"], may_fall=True),
        experts=fit_dense(by_op["experts"]) if by_op["experts"] else None,
        collectives=fit_dense(by_op["collectives"]) if by_op["collectives"] else None,
        logits=fit_logits(by_op["logits"]),
        decode=decode,
        prefill=prefill,
        fused=fused,
        grid=fit_grid(points, LatticeFormula(decode, prefill, fused), splitting),
        sliding=_fit_sliding(sliding, num_sliding_layers, sliding_rng) if sliding else None,
    )
    return with_timed_skew(form, by_op["unequal"], splitting)


def _fit_sliding(points: Sequence[Point], num_layers: int, rng: np.random.Generator) -> SlidingAttention:
    """Attention of the layers with a window."""
    ops: tuple[Op, ...] = ("decode", "prefill")
    by_op = {op: [point for point in points if point.op == op] for op in ops}
    problems = [
        f"too few points to fit: {op} with a window: {len(found)} points, expected at least {MIN_POINTS[op]}"
        for op, found in by_op.items()
        if len(found) < MIN_POINTS[op]
    ]
    if len({point.window for point in points}) > 1:
        problems.append("points of several windows; expected one")
    if problems:
        raise CalibrationError(*problems)
    return SlidingAttention(
        num_layers=num_layers,
        window=points[0].window,
        decode=fit_decode(by_op["decode"], rng),
        prefill=fit_prefill(by_op["prefill"], rng, with_lengths=False),
    )


def evaluate(
    points: Sequence[Point], form: StepForm, seed: int, splitting: Splitting = USUAL_SPLITTING
) -> Report:
    """The report on a form: more fits, each without the points it is then held against."""
    op_points, steps = _op_points(points), [point for point in points if point.op == "step"]
    fold, is_large = _folds(op_points, seed), _largest(op_points)
    predicted = np.empty(len(op_points))

    def predicted_without(held_out: Mask) -> Floats:
        """What a fit to the points that are not held out says of those that are."""
        kept = list(compress(op_points, ~held_out))
        num_sliding = form.sliding.num_layers if form.sliding else 0
        fitted = fit_form(kept, form.num_layers, seed, splitting, num_sliding)
        return predict(fitted, list(compress(op_points, held_out)))

    for number in range(NUM_FOLDS):
        predicted[fold == number] = predicted_without(fold == number)
    large_s = predicted_without(is_large)
    # A whole step is timed on one GPU alone, which has nobody to reduce with.
    alone = form.model_copy(update={"collectives": None})
    tables = {
        "fitted": errors_by_kind(op_points, predict(form, op_points)),
        "held_out": errors_by_kind(op_points, predicted),
        "largest_held_out": errors_by_kind(list(compress(op_points, is_large)), large_s),
        "whole_steps": errors_by_kind(steps, predict(alone, steps)) if steps else {},
        "repeatability": repeatability(points),
    }
    return Report(op_points, predicted, {name: table for name, table in tables.items() if table})


def _op_points(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.op not in ("step", "unequal") and point.split == "fit"]


def fit_cost_file(
    points: Sequence[Point], meta: Meta, points_path: Path, seed: int = 0
) -> tuple[CostFile, Report]:
    """Fit points and say how wrong the form is. Raises `CalibrationError` if there are too few."""
    cost_file = fit_unreported(points, meta, points_path, seed, with_lengths=True)
    report = evaluate(with_stand_ins(points)[0], cost_file.form, seed, _splitting(meta))
    accuracy = {
        name: {kind: asdict(errors) for kind, errors in table.items()}
        for name, table in report.tables.items()
    }
    estimated: dict[str, Any] = {"mixed": MIXED_ERRORS} if cost_file.form.beside is not None else {}
    if "collectives" in meta.estimates:
        estimated["collectives"] = {}
    if estimated:
        accuracy["estimated"] = estimated
    return cost_file.model_copy(update={"accuracy": accuracy}), report


def fit_unreported(
    points: Sequence[Point], meta: Meta, points_path: Path, seed: int = 0, *, with_lengths: bool = False
) -> CostFile:
    """Fit points alone, by default without effects of single lengths, in a tenth of the time; raises as
    `fit_cost_file`.
    """
    points, stand_ins = with_stand_ins(points)
    op_points = _op_points(points)
    num_sliding = int(meta.model.get("num_windowed_layers", 0))
    num_layers, splitting = int(meta.model["num_layers"]), _splitting(meta)
    unequal = [point for point in points if point.op == "unequal"]
    form = fit_form(
        [*op_points, *unequal], num_layers, seed, splitting, num_sliding, with_lengths=with_lengths
    )
    form = with_estimates(form, meta.estimates, splitting)
    return CostFile(
        format="cbsim-cost/1",
        gpu=meta.gpu,
        device=meta.device,
        model=meta.model,
        tensor_parallel=meta.tensor_parallel,
        expert_parallel=meta.expert_parallel,
        data_parallel=meta.data_parallel,
        form=form,
        box=calibrated_box(op_points),
        assumptions=[*meta.assumptions, *stand_ins, *_assumptions(op_points, form, meta.estimates)],
        points_sha256=hash_files([points_path])[points_path],
    )


def _splitting(meta: Meta) -> Splitting:
    """When decodes alone split contexts on one GPU."""
    num_kv_heads = max(1, int(meta.model["num_kv_heads"]) // meta.tensor_parallel)
    return Splitting(num_kv_heads, meta.num_multiprocessors)


def with_stand_ins(points: Sequence[Point]) -> tuple[list[Point], list[str]]:
    """The points, with stand-ins for chunks alone and decodes alone if too few were timed, a sentence each.

    A fused launch costs more than its larger part alone, so that pure steps come out dear rather than cheap.
    """
    fitted = _op_points(points)
    mixed = [point for point in fitted if point.op == "mixed"]
    added: list[Point] = []
    sentences = []
    for op, sentence in SENTENCES.items():
        if mixed and sum(point.op == op for point in fitted) < MIN_POINTS[op]:
            added += [_alone(point, op) for point in _least_mixed(mixed, op)]
            sentences.append(sentence)
    return [*points, *added], sentences


def _least_mixed(mixed: Sequence[Point], op: Op) -> list[Point]:
    """Of launches equal but for the part that isn't `op`, those with the least of it."""

    def other_size(point: Point) -> int:
        return point.decode_context if op == "prefill" else sum(map(sum, point.chunks))

    best: dict[object, Point] = {}
    for point in sorted(mixed, key=other_size):
        own_part = point.chunks if op == "prefill" else (point.num_decodes, point.decode_context)
        best.setdefault(own_part, point)
    limit = 2 * min(map(other_size, mixed))
    few = 2 * MIN_POINTS[op]
    return [point for number, point in enumerate(best.values()) if number < few or other_size(point) <= limit]


def _alone(point: Point, op: Op) -> Point:
    """One part of a mixed launch, with the time of the whole."""
    if op == "prefill":
        return replace(point, op=op, num_decodes=0, decode_context=0, max_decode_context=0)
    return replace(point, op=op, chunks=())


def calibrated_box(points: Sequence[Point]) -> Box:
    """The largest sizes among points."""
    attention_ops = ("prefill", "decode", "mixed")
    attention = columns_of([point for point in points if point.op in attention_ops and not point.window])
    steps, tokens, before = attention.flat_chunks
    keys, pairs = attention.decode_context.copy(), attention.decode_context.copy()
    np.add.at(keys, steps, tokens + before)
    np.add.at(pairs, steps, tokens * before + tokens * (tokens + 1) // 2)
    return Box(
        max_tokens=max(point.tokens for point in points if point.op == "dense"),
        max_logits=max(point.num_logits for point in points if point.op == "logits"),
        max_decodes=max(1, int(attention.num_decodes.max())),
        max_context_tokens=max(1, int(keys.max())),
        max_attention_pairs=max(1, int(pairs.max())),
    )


def _folds(points: Sequence[Point], seed: int) -> NDArray[np.int64]:
    """The fold of each point: every fold holds the same share of each op."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    fold = np.zeros(len(points), dtype=np.int64)
    for places in _places_by_op(points):
        fold[rng.permutation(places)] = np.arange(len(places)) % NUM_FOLDS
    return fold


def _largest(points: Sequence[Point]) -> Mask:
    """Whether a point is among the largest of its op; those of one size go together."""
    large = np.zeros(len(points), dtype=np.bool_)
    sizes = np.array([point.size for point in points])
    for places in _places_by_op(points):
        limit = np.sort(sizes[places])[int((1.0 - LARGEST_SHARE) * len(places))]
        large[places] = sizes[places] >= limit
    return large


def _places_by_op(points: Sequence[Point]) -> list[NDArray[np.int64]]:
    """The places of each op's points, in the order in which ops occur."""
    ops = np.array([point.op for point in points])
    return [np.flatnonzero(ops == op) for op in dict.fromkeys(ops.tolist())]


def _assumptions(points: Sequence[Point], form: StepForm, estimates: Sequence[Estimate]) -> list[str]:
    """What the form takes for granted because nothing of the kind was measured."""
    has_context = any(context for point in points if point.op == "prefill" for _, context in point.chunks)
    mixed = "attention of steps that mix chunks and decodes was not measured: the sum of the two is taken"
    chunks = "chunks over existing context were not measured: their pairs are taken to cost alike"
    sentences = [] if form.fused else [ESTIMATED["mixed"] if form.beside else mixed]
    if "unequal" in estimates and form.grid is not None:
        sentences.append(ESTIMATED["unequal"])
    return [*sentences, *([] if has_context else [chunks])]
