"""Fit: points in, a cost file with honest errors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbsim.base.errors import CalibrationError
from cbsim.cost.costfile import Box, CostFile
from cbsim.cost.form import StepForm
from cbsim.cost.step_columns import Floats
from cbsim.lab.calibrate.accuracy import Table, as_json, errors_by_kind, predict, repeatability
from cbsim.lab.calibrate.attentionfit import fit_decode, fit_fused
from cbsim.lab.calibrate.densefit import fit_dense
from cbsim.lab.calibrate.gridfit import USUAL_KV_HEADS, fit_grid
from cbsim.lab.calibrate.logitsfit import fit_logits
from cbsim.lab.calibrate.meta import Meta
from cbsim.lab.calibrate.point import MIN_POINTS, Op, Point
from cbsim.lab.calibrate.prefillfit import fit_prefill
from cbsim.lab.calibrate.substitute_points import with_stand_ins
from cbsim.results.manifest import hash_files

Mask = NDArray[np.bool_]

NUM_FOLDS = 4
"""Each op point is held out once, with a random quarter of them, and predicted by a fit to the others."""
LARGEST_SHARE = 0.15
"""Share of each op's points, the largest, held out to see how far the form extrapolates."""
MAX_MIXED_POINTS = 2000
"""Mixed points fitted at most, a random choice: some profilers make grids of tens of thousands."""
MIN_MIXED_POINTS = 16
"""Mixed points from which the fused regime is fitted; with fewer, mixed attention is the sum of its parts."""


@dataclass(frozen=True, slots=True)
class Report:
    """How wrong a fitted form is, seen from every side."""

    points: list[Point]
    """The points fitted, and below what is said of each by a fit it was held out of, seconds."""
    predicted: Floats
    fitted: Table
    """On the points it was fitted to."""
    held_out: Table
    """On every point, each predicted by a fit that a random quarter of the points was left out of."""
    largest: Table
    """On the largest sizes, predicted by a fit to the others."""
    steps: Table
    """On whole steps, which are never fitted."""
    repeatability: Table
    """Of timings of the same thing, the floor of all the others."""

    @property
    def tables(self) -> dict[str, Table]:
        """The tables that aren't empty, by name."""
        tables = {
            "fitted": self.fitted,
            "held_out": self.held_out,
            "largest_held_out": self.largest,
            "whole_steps": self.steps,
            "repeatability": self.repeatability,
        }
        return {name: table for name, table in tables.items() if table}


def fit_form(
    points: Sequence[Point], num_layers: int, seed: int, num_kv_heads: int = USUAL_KV_HEADS
) -> StepForm:
    """Fit every part of the form to op points. Raises `CalibrationError` if an op has too few.

    `num_kv_heads` are those of one GPU.
    """
    by_op: dict[Op, list[Point]] = {}
    for point in points:
        by_op.setdefault(point.op, []).append(point)
    short = [
        f"{op}: {len(by_op.get(op, []))} points, expected at least {least}"
        for op, least in MIN_POINTS.items()
        if len(by_op.get(op, [])) < least
    ]
    if short:
        raise CalibrationError(*(f"too few points to fit: {line}" for line in short))
    streams = np.random.SeedSequence(seed).spawn(3)
    decode_rng, prefill_rng, fused_rng = map(np.random.default_rng, streams)
    decode = fit_decode(by_op["decode"], decode_rng)
    prefill = fit_prefill(by_op["prefill"], prefill_rng)
    mixed = by_op.get("mixed", [])
    if len(mixed) > MAX_MIXED_POINTS:
        chosen = fused_rng.choice(len(mixed), size=MAX_MIXED_POINTS, replace=False)
        mixed = [mixed[index] for index in chosen]
    fused = fit_fused(mixed, decode, prefill, fused_rng) if len(mixed) >= MIN_MIXED_POINTS else None
    return StepForm(
        num_layers=num_layers,
        dense=fit_dense(by_op["dense"]),
        logits=fit_logits(by_op["logits"]),
        decode=decode,
        prefill=prefill,
        fused=fused,
        grid=fit_grid(points, decode, prefill, fused, num_kv_heads),
    )


def evaluate(points: Sequence[Point], form: StepForm, seed: int) -> Report:
    """The report on a form: more fits, each without the points it is then held against."""
    op_points = _op_points(points)
    fold = _folds(op_points, seed)
    is_large = _largest(op_points)
    predicted = np.empty(len(op_points))
    for number in range(NUM_FOLDS):
        predicted[fold == number] = _predicted_without(op_points, fold == number, form.num_layers, seed)
    large = [point for point, chosen in zip(op_points, is_large, strict=True) if chosen]
    return Report(
        points=op_points,
        predicted=predicted,
        fitted=errors_by_kind(op_points, predict(form, op_points)),
        held_out=errors_by_kind(op_points, predicted),
        largest=errors_by_kind(large, _predicted_without(op_points, is_large, form.num_layers, seed)),
        steps=_step_errors(form, [point for point in points if point.op == "step"]),
        repeatability=repeatability(points),
    )


def _predicted_without(points: Sequence[Point], held_out: Mask, num_layers: int, seed: int) -> Floats:
    """What a fit to the points that are not held out says of those that are."""
    kept = [point for point, out in zip(points, held_out, strict=True) if not out]
    left_out = [point for point, out in zip(points, held_out, strict=True) if out]
    return predict(fit_form(kept, num_layers, seed), left_out)


def _step_errors(form: StepForm, steps: Sequence[Point]) -> Table:
    return errors_by_kind(steps, predict(form, steps)) if steps else {}


def _op_points(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.op != "step" and point.split == "fit"]


def fit_cost_file(
    points: Sequence[Point], meta: Meta, points_path: Path, seed: int = 0
) -> tuple[CostFile, Report]:
    """Fit points and say how wrong the form is. Raises `CalibrationError` if there are too few."""
    points, stand_ins = with_stand_ins(points)
    op_points = _op_points(points)
    kv_heads = max(1, int(meta.model["num_kv_heads"]) // meta.tensor_parallel)
    form = fit_form(op_points, int(meta.model["num_layers"]), seed, kv_heads)
    report = evaluate(points, form, seed)
    cost_file = CostFile(
        format="cbsim-cost/1",
        gpu=meta.gpu,
        device=meta.device,
        model=meta.model,
        tensor_parallel=meta.tensor_parallel,
        form=form,
        box=calibrated_box(op_points),
        assumptions=[*meta.assumptions, *stand_ins, *_assumptions(op_points, form)],
        accuracy={name: as_json(table) for name, table in report.tables.items()},
        points_sha256=hash_files([points_path])[points_path],
    )
    return cost_file, report


def calibrated_box(points: Sequence[Point]) -> Box:
    """The largest sizes among points."""
    context = pairs = decodes = 1
    for point in points:
        if point.op not in ("prefill", "decode", "mixed"):
            continue
        decodes = max(decodes, point.num_decodes)
        chunk_keys = sum(tokens + context for tokens, context in point.chunks)
        chunk_pairs = sum(tokens * context + tokens * (tokens + 1) // 2 for tokens, context in point.chunks)
        context = max(context, point.decode_context + chunk_keys)
        pairs = max(pairs, point.decode_context + chunk_pairs)
    return Box(
        max_tokens=max(point.tokens for point in points if point.op == "dense"),
        max_logits=max(point.num_logits for point in points if point.op == "logits"),
        max_decodes=decodes,
        max_context_tokens=context,
        max_attention_pairs=pairs,
    )


def _folds(points: Sequence[Point], seed: int) -> NDArray[np.int64]:
    """The fold of each point: every fold holds the same share of each op."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    fold = np.zeros(len(points), dtype=np.int64)
    for indices in _indices_by_op(points).values():
        fold[rng.permutation(indices)] = np.arange(len(indices)) % NUM_FOLDS
    return fold


def _largest(points: Sequence[Point]) -> Mask:
    """Whether a point is among the largest of its op; those of one size go together."""
    large = np.zeros(len(points), dtype=np.bool_)
    for indices in _indices_by_op(points).values():
        sizes = np.array([points[index].size for index in indices])
        limit = np.sort(sizes)[int((1.0 - LARGEST_SHARE) * len(sizes))]
        large[np.array(indices)[sizes >= limit]] = True
    return large


def _indices_by_op(points: Sequence[Point]) -> dict[Op, list[int]]:
    indices: dict[Op, list[int]] = {}
    for index, point in enumerate(points):
        indices.setdefault(point.op, []).append(index)
    return indices


def _assumptions(points: Sequence[Point], form: StepForm) -> list[str]:
    """What the form takes for granted because nothing of the kind was measured."""
    sentences = []
    if form.fused is None:
        sentences.append(
            "attention of steps that mix chunks and decodes was not measured: the sum of the two is taken"
        )
    if not any(context for point in points if point.op == "prefill" for _, context in point.chunks):
        sentences.append(
            "chunks over existing context were not measured: their pairs are taken to cost alike"
        )
    return sentences
