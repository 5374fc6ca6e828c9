"""Fit: points in, a cost file with honest errors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cbsim.calibrate.accuracy import Table, as_json, errors_by_kind, repeatability
from cbsim.calibrate.attentionfit import fit_decode, fit_fused, fit_prefill
from cbsim.calibrate.densefit import fit_dense, fit_logits
from cbsim.calibrate.meta import Meta
from cbsim.calibrate.point import Op, Point
from cbsim.cost.costfile import Box, CostFile, file_sha256
from cbsim.cost.form import StepForm
from cbsim.errors import CalibrationError

HELD_OUT_SHARE = 0.25
"""Share of op points held out at random."""
LARGEST_SHARE = 0.15
"""Share of each op's points, the largest, held out to see how far the form extrapolates."""
MIN_POINTS: dict[Op, int] = {"dense": 3, "logits": 3, "prefill": 8, "decode": 8}
"""Fewest points of each op that say anything."""
MIN_MIXED_POINTS = 8
"""Mixed points from which the fused regime is fitted; with fewer, mixed attention is the sum of its parts."""


@dataclass(frozen=True, slots=True)
class Report:
    """How wrong a fitted form is, seen from every side."""

    fitted: Table
    """On the points it was fitted to."""
    held_out: Table
    """On a quarter of the points, chosen at random and left out of a second fit."""
    largest: Table
    """On the largest sizes, left out of a third fit."""
    steps: Table
    """On whole steps, which are never fitted."""
    repeatability: Table
    """Of timings of the same thing, the floor of all the others."""

    def as_json(self) -> dict[str, dict[str, dict[str, float]]]:
        """As it stands in `cost.json`."""
        tables = {
            "fitted": self.fitted,
            "held_out": self.held_out,
            "largest_held_out": self.largest,
            "whole_steps": self.steps,
            "repeatability": self.repeatability,
        }
        return {name: as_json(table) for name, table in tables.items() if table}


def fit_form(points: Sequence[Point], num_layers: int, seed: int) -> StepForm:
    """Fit every part of the form to op points. Raises `CalibrationError` if an op has too few."""
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
    streams = np.random.SeedSequence(seed).spawn(4)
    logits_rng, decode_rng, prefill_rng, fused_rng = map(np.random.default_rng, streams)
    decode = fit_decode(by_op["decode"], decode_rng)
    prefill = fit_prefill(by_op["prefill"], prefill_rng)
    mixed = by_op.get("mixed", [])
    fused = fit_fused(mixed, decode, prefill, fused_rng) if len(mixed) >= MIN_MIXED_POINTS else None
    return StepForm(
        num_layers=num_layers,
        dense=fit_dense(by_op["dense"]),
        logits=fit_logits(by_op["logits"], logits_rng),
        decode=decode,
        prefill=prefill,
        fused=fused,
    )


def evaluate(points: Sequence[Point], form: StepForm, seed: int) -> Report:
    """The report on a form: two more fits, each without the points it is then held against."""
    op_points = [point for point in points if point.op != "step" and point.split == "fit"]
    held_out = _chosen_at_random(op_points, seed)
    largest = _largest(op_points)

    def errors_without(chosen: set[int]) -> Table:
        kept = [point for index, point in enumerate(op_points) if index not in chosen]
        left_out = [point for index, point in enumerate(op_points) if index in chosen]
        return errors_by_kind(fit_form(kept, form.num_layers, seed), left_out)

    return Report(
        fitted=errors_by_kind(form, op_points),
        held_out=errors_without(held_out),
        largest=errors_without(largest),
        steps=errors_by_kind(form, [point for point in points if point.op == "step"]),
        repeatability=repeatability(points),
    )


def fit_cost_file(points: Sequence[Point], meta: Meta, points_path: Path, seed: int = 0) -> CostFile:
    """Fit points and say how wrong the form is. Raises `CalibrationError` if there are too few."""
    op_points = [point for point in points if point.op != "step" and point.split == "fit"]
    form = fit_form(op_points, int(meta.model["num_layers"]), seed)
    report = evaluate(points, form, seed)
    return CostFile(
        format="cbsim-cost/1",
        gpu=meta.gpu,
        device=meta.device,
        model=meta.model,
        tensor_parallel=meta.tensor_parallel,
        form=form,
        box=calibrated_box(op_points),
        assumptions=[*meta.assumptions, *_assumptions(op_points, form)],
        accuracy=report.as_json(),
        points_sha256=file_sha256(points_path),
    )


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


def _chosen_at_random(points: Sequence[Point], seed: int) -> set[int]:
    """A quarter of each op's points, whatever their number of each."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    chosen: set[int] = set()
    for indices in _indices_by_op(points).values():
        count = round(HELD_OUT_SHARE * len(indices))
        chosen.update(int(index) for index in rng.choice(indices, size=count, replace=False))
    return chosen


def _largest(points: Sequence[Point]) -> set[int]:
    """The largest points of each op; those of one size go together."""
    chosen: set[int] = set()
    for indices in _indices_by_op(points).values():
        sizes = sorted(points[index].size for index in indices)
        limit = sizes[int((1.0 - LARGEST_SHARE) * len(sizes))]
        chosen.update(index for index in indices if points[index].size >= limit)
    return chosen


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
