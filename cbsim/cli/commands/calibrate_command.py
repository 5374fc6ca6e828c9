"""`cbsim calibrate`: time kernels on a device, fit timings, import timings of others."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import click

from cbsim.base.errors import CalibrationError
from cbsim.base.units import format_seconds
from cbsim.cli.commands import shared
from cbsim.cli.commands.arguments import argument, command, flag, option, with_parameters
from cbsim.cost.costfile import CostFile
from cbsim.lab.calibrate.accuracy import Report
from cbsim.lab.calibrate.layers import LayerTimings, Runs
from cbsim.lab.calibrate.meta import read_meta
from cbsim.lab.calibrate.named_spec import load_gpu, load_model
from cbsim.lab.calibrate.nvidia import DISTRIBUTION, Wanted, import_meta, import_points
from cbsim.lab.calibrate.nvidia_tables import NvidiaTables
from cbsim.lab.calibrate.pointsfile import read_points
from cbsim.lab.calibrate.profile_folder import check_profile_target, fit_profile, write_profile
from cbsim.specs import ParallelSpec

TOLD_IN_LOGS = 10
"""How often progress is told where no terminal is."""

MODEL = option("--model NAME", "A model of configs/models, or a file.", required=True)
TP = option("--tp", "GPUs of a replica.", type=shared.POSITIVE, default=1)
OUT = option("--out", "Folder of the profile.", type=shared.FOLDER, required=True)
PICTURE = option(
    "--picture/--no-picture", "Draw errors.png beside the profile.", default=True, show_default=False
)
JSON = flag("--json", "Print the errors as JSON.")
SEED = option("--seed", "Of the hold-outs and starts.", type=shared.NATURAL, default=0)


def _pairs(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """`NAME=VALUE`s of an option that may be given several times."""
    wrong = [text for text in texts if not all(text.partition("="))]
    if wrong:
        raise click.BadParameter(f"expected NAME=VALUE, got '{wrong[0]}'")
    return dict(text.split("=", 1) for text in texts)


def _op_runs(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:

    pairs = _pairs(context, option, texts)
    wrong = [runs for runs in pairs.values() if runs not in get_args(Runs)]
    if wrong:
        raise click.BadParameter(f"expected one of {', '.join(get_args(Runs))}, got '{wrong[0]}'")
    return pairs


@click.group(invoke_without_command=True)
@with_parameters
def calibrate(
    device: str | None = option("--device", "Where to time the kernels.", type=click.Choice(["cuda", "cpu"])),
    model: str | None = option("--model NAME", "A model of configs/models, or a file."),
    plan: Any = option("--plan", type=click.Choice(["quick", "full"]), default="full"),
    tp: int = TP,
    gpu: str | None = option("--gpu NAME", "In configs/gpus; default: as the device calls itself."),
    backend: str | None = option("--backend NAME", "Paged attention to time; default: the device's best."),
    out: Path | None = option("--out", "Folder of the profile.", type=shared.FOLDER),
    picture: bool = PICTURE,
    as_json: bool = JSON,
    seed: int = SEED,
) -> None:
    """Time the kernels of a model on a device, and fit a cost model to them.

    A killed run goes on where it was when called again with the same folder.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    if device is None or model is None or out is None:
        raise click.UsageError("give --device, --model and --out, or a command: fit, import")

    try:
        from cbsim.lab.calibrate.measurement import measure
    except ImportError as error:
        raise CalibrationError(f"timing kernels needs torch: pip install 'cbsim[torch]' ({error})") from error

    measured = measure(
        load_model(model),
        out,
        device=device,
        plan=plan,
        tensor_parallel=tp,
        gpu=load_gpu(gpu).name if gpu else None,
        backend=backend,
        seed=seed,
        progress=_show_progress,
    )
    for warning in measured.meta.warnings:
        click.echo(warning, err=True)
    click.echo("fitting", err=True)
    _tell(out, *fit_profile(out, measured.meta, seed), picture, as_json)


@command(of=calibrate)
def fit(
    points: Path = argument(type=shared.PATH),
    out: Path = OUT,
    meta_path: Path | None = option("--meta", "Default: meta.json beside POINTS.", type=shared.PATH),
    picture: bool = PICTURE,
    as_json: bool = JSON,
    seed: int = SEED,
) -> None:
    """Fit a cost model to POINTS, a points.csv with its meta.json, and report how wrong it is."""
    timings = read_points(points)
    meta = read_meta(meta_path or points.with_name("meta.json"))
    is_there = (out / "points.csv").resolve() == points.resolve()
    fitted = fit_profile(out, meta, seed) if is_there else write_profile(out, timings, meta, seed)
    _tell(out, *fitted, picture, as_json)


@calibrate.group(name="import")
def import_() -> None:
    """Build a profile from timings that somebody else has measured."""


@command(of=import_)
def nvidia(
    system: str = option("--system NAME", "A system of the tables: h200_sxm, l40s ...", required=True),
    model: str = MODEL,
    tp: int = TP,
    ep: int = option("--ep", "Groups of GPUs with experts of their own.", type=shared.POSITIVE, default=1),
    dp: int = option("--dp", "Ranks with their own requests.", type=shared.POSITIVE, default=1),
    weight_dtype: str | None = option("--weight-dtype", "Of weights; default: the model's."),
    kv_dtype: str | None = option("--kv-dtype", "Of the KV cache; default: the model's."),
    distribution: str = option("--distribution", "Of tokens over experts.", default=DISTRIBUTION),
    framework: str = option(
        "--framework", "Whose prefill attention, experts and all-reduces.", default="vllm"
    ),
    decode_framework: str | None = option(
        "--decode-framework NAME", "Whose decode attention; default: the same."
    ),
    wheel: Path | None = option(
        "--wheel", "The package's wheel, not installed.", type=click.Path(path_type=Path, exists=True)
    ),
    out: Path = OUT,
    picture: bool = PICTURE,
    as_json: bool = JSON,
    seed: int = SEED,
) -> None:
    """NVIDIA's measured kernel tables, in the PyPI package aiconfigurator-core."""
    parallel = ParallelSpec(tensor=tp, expert=ep, data=dp)
    of = load_model(model, weight_dtype=weight_dtype, kv_dtype=kv_dtype)
    wanted = Wanted(of, parallel, framework, decode_framework or framework, distribution)
    tables = NvidiaTables(system, wheel)
    meta = import_meta(tables, wanted, datetime.now(UTC).date().isoformat())
    check_profile_target(out, meta)
    points = import_points(tables, wanted)
    meta = meta.model_copy(update={"warnings": [*meta.warnings, *tables.notes]})
    _tell(out, *write_profile(out, points, meta, seed), picture, as_json)


@command(of=import_)
def layers(
    dense: Path = option("--dense", "CSV: layer, tokens, time_us.", type=shared.FILE, required=True),
    per_sequence: Path | None = option(
        "--per-sequence", "CSV: layer, sequences, time_us: LM head, sampler.", type=shared.FILE
    ),
    attention: Path = option(
        "--attention",
        "CSV: prefill_chunk, kv_prefill, n_decode, kv_decode, time_us.",
        type=shared.FILE,
        required=True,
    ),
    model: str = MODEL,
    gpu: str = option("--gpu NAME", "A GPU of configs/gpus, or a file.", required=True),
    tp: int = TP,
    columns: dict[str, str] = option(
        "--column NAME=THEIRS", "What a column is called that isn't found.", multiple=True, callback=_pairs
    ),
    ops: dict[str, Any] = option(
        "--op OP=RUNS",
        "How often an op runs: layer (once a layer), twice, step, sequence (by rows of logits) or none.",
        multiple=True,
        callback=_op_runs,
    ),
    source: str = option(
        "--source", "Who timed it, for meta.json.", default="layer timings", show_default=False
    ),
    out: Path = OUT,
    picture: bool = PICTURE,
    as_json: bool = JSON,
    seed: int = SEED,
) -> None:
    """Layer timings of another profiler, as LLMServingSim 2.0 writes them or with other usual names."""
    timings = LayerTimings(dense, per_sequence, attention, load_model(model), load_gpu(gpu), tp, columns, ops)
    points = timings.points()
    meta = timings.meta(source, datetime.now(UTC).date())
    for warning in meta.warnings:
        click.echo(warning, err=True)
    _tell(out, *write_profile(out, points, meta, seed), picture, as_json)


def _tell(out: Path, cost: CostFile, report: Report, picture: bool, as_json: bool) -> None:
    """Print the errors of a fit, and draw them beside the profile."""
    title = f"{cost.model['name']} on {cost.device}"
    if picture:
        report.draw(title, out / "errors.png")
    if as_json:
        click.echo(json.dumps(cost.accuracy, indent=2))
    else:
        report.table(title).print()
        click.echo(f"wrote {out / 'cost.json'}")


def _show_progress(done: int, total: int, left_s: float | None) -> None:
    """On a terminal a line that stays in its place, in a log one for every tenth of the way."""
    left = f", {format_seconds(left_s)} left" if left_s and done < total else ""
    if sys.stderr.isatty():
        click.echo(f"\r{done} of {total} timings{left}      ", nl=done == total, err=True)
    elif done == total or done % max(1, total // TOLD_IN_LOGS) == 0:
        click.echo(f"{done} of {total} timings{left}", err=True)
