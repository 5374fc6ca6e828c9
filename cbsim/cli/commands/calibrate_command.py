"""`cbsim calibrate`: time kernels on a device, fit timings, import timings of others."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import click

from cbsim.base.units import format_seconds
from cbsim.cli.commands import arguments as args
from cbsim.cost.costfile import CostFile
from cbsim.lab.calibrate.accuracy import Report
from cbsim.lab.calibrate.layers import LayerTimings, Runs
from cbsim.lab.calibrate.named_spec import load_gpu, load_model
from cbsim.lab.calibrate.nvidia import (
    DISTRIBUTION,
    Wanted,
    collectives_points,
    import_meta,
    import_points,
    system_of,
)
from cbsim.lab.calibrate.nvidia_tables import NvidiaTables
from cbsim.lab.calibrate.pointsfile import read_meta, read_points
from cbsim.lab.calibrate.profile_folder import check_profile_target, fit_profile, write_profile
from cbsim.specs import ParallelSpec

TOLD_IN_LOGS = 10
"""How often progress is told where no terminal is."""

MODEL = args.option("--model NAME", "A model of configs/models, or a file.", required=True)
WEIGHT_DTYPE = args.option("--weight-dtype", "Of weights; default: the model's.")
KV_DTYPE = args.option("--kv-dtype", "Of the KV cache; default: the model's.")
TP = args.option("--tp", "GPUs of a replica.", type=args.POSITIVE, default=1)
EP = args.option("--ep", "Groups of GPUs with experts of their own.", type=args.POSITIVE, default=1)
OUT = args.option("--out", "Folder of the profile.", type=args.FOLDER, required=True)
PICTURE = args.option(
    "--picture/--no-picture", "Draw errors.png beside the profile.", default=True, show_default=False
)
JSON = args.flag("--json", "Print the errors as JSON.")
SEED = args.option("--seed", "Of the hold-outs and starts.", type=args.NATURAL, default=0)


def _op_runs(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """How often each op runs, by its name."""
    pairs = args.named_values(context, option, texts)
    wrong = [runs for runs in pairs.values() if runs not in get_args(Runs)]
    if wrong:
        raise click.BadParameter(f"expected one of {', '.join(get_args(Runs))}, got '{wrong[0]}'")
    return pairs


@click.group(invoke_without_command=True)
@args.with_parameters
def calibrate(
    device: str | None = args.choice("--device", ["cuda", "cpu"], "Where to time the kernels."),
    model: str | None = args.option("--model NAME", "A model of configs/models, or a file."),
    plan: Any = args.choice("--plan", ["quick", "full"], default="full"),
    tp: int = TP,
    gpu: str | None = args.option("--gpu NAME", "In configs/gpus; default: as the device calls itself."),
    backend: str | None = args.option("--backend NAME", "Paged attention to time; default: the best."),
    weight_dtype: str | None = WEIGHT_DTYPE,
    kv_dtype: str | None = KV_DTYPE,
    out: Path | None = args.option("--out", "Folder of the profile.", type=args.FOLDER),
    picture: bool = PICTURE,
    as_json: bool = JSON,
    seed: int = SEED,
    check: bool = args.flag("--check", "Only say what works on the device and what does not."),
) -> None:
    """Time the kernels of a model on a device, and fit a cost model to them.

    A killed run goes on where it was when called again with the same folder. `--check` looks at torch, Triton
    and the device (cuda unless said), and with a model tries each kernel once; it exits with 2 where nothing
    can be timed.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    if check and device is None:
        # What a first look is for: whether there is a card that can be timed.
        device = "cuda"
    if device is None or ((model is None or out is None) and not check):
        raise click.UsageError("give --device, --model and --out, or a command: fit, import")
    with args.needs_torch("timing kernels"):
        from cbsim.lab.calibrate.device_check import check_device, told, worst
        from cbsim.lab.calibrate.measurement import measure
    dtypes = {"weight_dtype": weight_dtype, "kv_dtype": kv_dtype}
    of = load_model(model, **dtypes) if model is not None else None
    found = check_device(device, of if check else None, tp)
    if check:
        click.echo(told(found))
        click.get_current_context().exit(2 if worst(found) == "stop" else 0)
    for finding in found:
        if finding.level == "note":
            click.echo(finding.text, err=True)
    assert of is not None
    assert out is not None
    measured = measure(
        of,
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


@args.command(of=calibrate)
def fit(
    points: Path = args.argument(type=args.PATH),
    out: Path = OUT,
    meta_path: Path | None = args.option("--meta", "Default: meta.json beside POINTS.", type=args.PATH),
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


@args.command(of=import_)
def nvidia(
    system: str = args.option("--system NAME", "A system of the tables: h200_sxm, l40s ...", required=True),
    model: str = MODEL,
    tp: int = TP,
    ep: int = EP,
    dp: int = args.option("--dp", "Ranks with their own requests.", type=args.POSITIVE, default=1),
    weight_dtype: str | None = WEIGHT_DTYPE,
    kv_dtype: str | None = KV_DTYPE,
    distribution: str = args.option("--distribution", "Of tokens over experts.", default=DISTRIBUTION),
    framework: str = args.option(
        "--framework", "Whose prefill attention, experts and all-reduces.", default="vllm"
    ),
    decode_framework: str | None = args.option(
        "--decode-framework NAME", "Whose decode attention; default: the same."
    ),
    wheel: Path | None = args.option(
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


@args.command(of=import_)
def layers(
    dense: Path = args.option("--dense", "CSV: layer, tokens, time_us.", type=args.FILE, required=True),
    per_sequence: Path | None = args.option(
        "--per-sequence", "CSV: layer, sequences, time_us: LM head, sampler.", type=args.FILE
    ),
    attention: Path = args.option(
        "--attention",
        "CSV: prefill_chunk, kv_prefill, n_decode, kv_decode, time_us.",
        type=args.FILE,
        required=True,
    ),
    moe: Path | None = args.option(
        "--moe", "CSV: tokens, time_us: one layer's experts, if not among the dense ops.", type=args.FILE
    ),
    collectives: Path | None = args.option(
        "--collectives",
        "CSV: tokens, time_us: a layer's collectives; or bytes, time_us: one all-reduce.",
        type=args.FILE,
    ),
    collectives_of: str | None = args.option(
        "--collectives-of FRAMEWORK",
        "In their place, all-reduces by NVIDIA's tables for that GPU: vllm, or of a release, vllm/0.19.0.",
    ),
    wheel: Path | None = args.option(
        "--wheel", "The tables' wheel, not installed.", type=click.Path(path_type=Path, exists=True)
    ),
    products: Path | None = args.option(
        "--products",
        "CSV as --dense: ops timed with the server's own libraries, in place of those.",
        type=args.FILE,
    ),
    skew: Path | None = args.option(
        "--skew",
        "CSV: n, nb, pc, kp, kvs, kv_big, t_mean_us, t_skew_us: decodes of unequal contexts.",
        type=args.FILE,
    ),
    model: str = MODEL,
    gpu: str = args.option("--gpu NAME", "A GPU of configs/gpus, or a file.", required=True),
    tp: int = TP,
    ep: int = EP,
    columns: dict[str, str] = args.option(
        "--column NAME=THEIRS",
        "What a column is called that isn't found.",
        multiple=True,
        callback=args.named_values,
    ),
    ops: dict[str, Any] = args.option(
        "--op OP=RUNS",
        "How often an op runs: layer (once a layer), twice, step, experts (once a layer with experts), "
        "sequence (by rows of logits) or none.",
        multiple=True,
        callback=_op_runs,
    ),
    source: str = args.option(
        "--source", "Who timed it, for meta.json.", default="layer timings", show_default=False
    ),
    out: Path = OUT,
    picture: bool = PICTURE,
    as_json: bool = JSON,
    seed: int = SEED,
) -> None:
    """Layer timings of another profiler, as LLMServingSim 2.0 writes them or with other usual names."""
    of, on = load_model(model), load_gpu(gpu)
    apart: dict[str, Any] = {"moe": moe, "collectives": collectives, "skew": skew, "products": products}
    if collectives_of is not None:
        if collectives is not None:
            raise click.UsageError("give --collectives or --collectives-of, not both")
        wanted = Wanted(of, ParallelSpec(tensor=tp, expert=ep), collectives_of)
        reduces = tuple(collectives_points(NvidiaTables(system_of(on.name), wheel), wanted))
        apart |= {"reduces": reduces, "reduces_source": collectives_of}
    timings = LayerTimings(dense, per_sequence, attention, of, on, tp, ep, columns, **apart, ops=ops)
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
