"""KernelReport: what a calibration on one device has found, as Markdown ready to be published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.against_table import against_table
from calibration.reached_peaks import Attainable, Reached, Sum, reached, read_bytes, step_errors
from calibration.variants import variant_name
from cbsim.base.units import TERA, format_seconds, markdown_table
from cbsim.cost.costfile import CostFile
from cbsim.lab.calibrate.accuracy import HEADER, Errors
from cbsim.lab.calibrate.point import Point
from cbsim.lab.calibrate.pointsfile import Meta
from cbsim.specs import GpuSpec, ModelSpec

SOFTWARE = ("cbsim", "torch", "triton", "cuda", "driver", "python")
TABLES = {
    "held_out": "held out",
    "largest_held_out": "largest sizes held out",
    "repeatability": "repeats of the same timing",
}
"""The tables of a cost file's accuracy that a reader judges it by, and what they are called."""
USUAL_DECODES = (64, 4096)
"""Decodes x context that kernels are usually compared at."""


@dataclass(frozen=True, slots=True)
class KernelReport:
    """Timings of one model on one device, the form fitted to them, and the GPU's data sheet if known."""

    model: ModelSpec
    meta: Meta
    points: Sequence[Point]
    cost: CostFile
    gpu: GpuSpec | None
    attainable: Attainable | None = None
    """What the device attains at most, if it was measured."""

    def sections(self, sums: Sequence[Sum], profiles: Path | None = None) -> list[str]:
        """What was timed, what the kernels reach, how they stand against a table, how additive mixing is, how
        far whole steps lie off, and what to do with it all; `profiles` is where its folder is to go.
        """
        parallel = self.meta.tensor_parallel
        rows = reached(self.points, self.model, self.gpu, parallel, self.attainable)
        experts = [row for row in rows if row.op == "experts"]
        return [
            f"## {variant_name(self.model)} on {self.meta.device}",
            self._provenance(),
            "What the kernels reach:",
            highlights(rows),
            "### Paged decode: TB/s of keys and values read" + self._of_peak("memory"),
            grid([row for row in rows if row.op == "decode"], "decodes"),
            "### Prefill attention: TFLOP/s" + self._of_peak("compute"),
            grid([row for row in rows if row.op == "prefill"], "chunk tokens"),
            "### Dense layer",
            self._by_tokens([row for row in rows if row.op == "dense"]),
            *(["### Experts", self._by_tokens(experts)] if experts else []),
            *against_table(self.points, self.model, self.gpu, parallel),
            "### Is the sum the sum?",
            additivity_sentence(sums),
            "### Whole steps against the prediction, nothing fitted to them: errors in %",
            errors_table(step_errors(self.points, self.cost.form)),
            "### Kernels against the fit: errors in %",
            errors_table(self._accuracy()) if self.cost.accuracy else "Not told: time was up.",
            "### What to do with it",
            self._next_steps(profiles),
        ]

    def _provenance(self) -> str:
        software = self.meta.software
        versions = ", ".join(f"{name} {software[name]}" for name in SOFTWARE if name in software)
        cold = sum(point.l2 == "cold" for point in self.points)
        graphs = sum(point.graph for point in self.points)
        lines = [
            f"* {self.meta.source}, {self.meta.date}: {len(self.points)} timings, "
            f"{cold or 'none'} of them with the L2 cache flushed, {graphs or 'none'} by CUDA graphs",
            f"* {versions}",
            f"* {software.get('attention', 'attention kernels not named')}",
            f"* layers beside attention: {software.get('layers', 'not named')}",
            f"* {self._peaks()}",
            *(f"* {warning}" for warning in self.meta.warnings),
        ]
        return "\n".join(lines)

    def _peaks(self) -> str:
        if self.gpu is None:
            return "what this device can do at most is not in `configs/gpus`, so no share of a peak is given"
        flop, moved = self.gpu.peak_flop_per_s(self.model.dtype), self.gpu.memory_bytes_per_s
        return (
            f"peaks of `{self.gpu.name}` by its data sheet: {moved / TERA:.3g} TB/s, "
            f"{flop / TERA:.0f} TFLOP/s in {self.model.dtype}{self._attained()}"
        )

    def _attained(self) -> str:
        if self.attainable is None:
            return ""
        moved, flop = self.attainable.bytes_per_s / TERA, self.attainable.flop_per_s / TERA
        return f"; attained here by a large copy {moved:.3g} TB/s, by a large product {flop:.0f} TFLOP/s"

    def _next_steps(self, profiles: Path | None) -> str:
        """Which file goes where, and which command makes the figures of which page."""
        name = f"{self.gpu.name if self.gpu else 'GPU'}-torch/{variant_name(self.model)}"
        source = profiles or Path(variant_name(self.model))
        return "\n".join(
            (
                f"* keep it: `mv {source} calibration/profiles/{name}`",
                f"* use it: `cost_model: {{type: profile, profile: {name}}}`",
                "* `python -m calibration.errors` prints its row for the table of `calibration/README.md`; "
                "the tables above go below that page's chapter on how wrong profiles are",
                f"* live beside simulated: `cbsim validate EXPERIMENT --device cuda --profile {source}`",
            )
        )

    def _accuracy(self) -> dict[str, Errors]:
        """The errors of the cost file that a reader judges it by."""
        return {
            f"{label}: {kind}": Errors(**errors)
            for name, label in TABLES.items()
            for kind, errors in self.cost.accuracy.get(name, {}).items()
        }

    def _of_peak(self, kind: str) -> str:
        if self.gpu is None:
            return ""
        attained = "" if self.attainable is None else "; of what is attainable"
        return f" (share of the {kind} peak{attained})"

    def _by_tokens(self, rows: Sequence[Reached]) -> str:
        """A row for each power of two of tokens: FLOP against weights that must be read at least once."""
        cells = []
        for row in sorted(rows, key=lambda row: row.batch):
            if row.batch & (row.batch - 1) == 0:
                moved = read_bytes(self.model, row.op, row.batch) / self.meta.tensor_parallel
                figures = [f"{row.rate:.3g}", f"{moved / row.seconds / TERA:.3g}"]
                mfu = [f"{share:.0%}" for share in (row.share, row.attained) if share is not None]
                cells.append([f"{row.batch:,}", format_seconds(row.seconds), *figures, *mfu])
        told = {
            "MFU": any(row.share is not None for row in rows),
            "of the attainable": any(row.attained is not None for row in rows),
        }
        mfu_header = [name for name, is_known in told.items() if is_known]
        return markdown_table(["tokens", "time", "TFLOP/s", "weights read, TB/s", *mfu_header], cells)


def highlights(rows: Sequence[Reached]) -> str:
    """The best of each kernel, and decodes as servers have them, in a line each."""
    usual = [row for row in rows if (row.op, row.batch, row.context) == ("decode", *USUAL_DECODES)]
    by_op = {op: [row for row in rows if row.op == op] for op in ("decode", "prefill", "dense")}
    best = [max(of_op, key=lambda row: row.rate) for of_op in by_op.values() if of_op]
    lines = []
    for row in (*usual, *best):
        sizes = {
            "decode": f"paged decode, {row.batch:,} x {row.context:,} tokens",
            "prefill": f"prefill attention, {row.batch:,} tokens over {row.context:,}",
            "dense": f"dense layer, {row.batch:,} tokens",
        }
        unit = "TB/s" if row.op == "decode" else "TFLOP/s"
        share = "" if row.share is None else f", {row.share:.0%} of the peak"
        share += "" if row.attained is None else f", {row.attained:.0%} of the attainable"
        best_of = " (the best)" if row in best else ""
        lines.append(f"* {sizes[row.op]}: **{row.rate:.3g} {unit}**{share}{best_of}")
    return "\n".join(dict.fromkeys(lines))


def grid(rows: Iterable[Reached], batch_name: str) -> str:
    """Rates by batch, downwards, and context, across: `3.42 (71%)`; empty where nothing was timed."""
    by_size = {(row.batch, row.context): row for row in rows}
    contexts = sorted({context for _, context in by_size})
    header = [f"{batch_name} \\ context", *(f"{context:,}" for context in contexts)]
    cells = [
        [f"{batch:,}", *(_rate(by_size.get((batch, context))) for context in contexts)]
        for batch in sorted({batch for batch, _ in by_size})
    ]
    return markdown_table(header, cells)


def additivity_sentence(sums: Sequence[Sum]) -> str:
    """How many times its parts a mix takes: the median, the middle 80 %, and the mix farthest off."""
    if not sums:
        return "No mix of chunks and decodes could be timed."
    apart = "timed apart" if all(row.is_timed for row in sums) else "as the fitted form has them"
    times = 1.0 + np.array([row.excess for row in sums])
    low, high = np.quantile(times, (0.1, 0.9))
    worst = max(sums, key=lambda row: abs(row.excess))
    chunks = " and ".join(f"{tokens:,} over {context:,}" for tokens, context in worst.chunks)
    return (
        f"Attention of {len(sums)} mixes of chunks and decodes, one layer, timed together took "
        f"{np.median(times):.2f} times the sum of its parts {apart}, at the median ({low:.2f} to "
        f"{high:.2f} for the middle 80 %). Farthest off, {1 + worst.excess:.2f} times: a chunk of {chunks} "
        f"tokens with {worst.num_decodes:,} decodes of {worst.decode_context:,} tokens in all, "
        f"{format_seconds(worst.together_s)} together, {format_seconds(worst.prefill_s)} and "
        f"{format_seconds(worst.decode_s)} apart."
    )


def errors_table(errors: Mapping[str, Errors]) -> str:
    """One row for each kind, percent."""
    return markdown_table(["", *HEADER], [[kind, *row.cells] for kind, row in errors.items()])


def _rate(row: Reached | None) -> str:
    if row is None:
        return ""
    shares = "; ".join(f"{share:.0%}" for share in (row.share, row.attained) if share is not None)
    return f"{row.rate:.3g} ({shares})" if shares else f"{row.rate:.3g}"
