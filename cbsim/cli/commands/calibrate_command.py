"""`cbsim calibrate`: time kernels on a device, fit timings, import timings of others."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cbsim.base.errors import CalibrationError

if TYPE_CHECKING:
    from cbsim.cost.costfile import CostFile
    from cbsim.lab.calibrate.accuracy import Report

TOLD_IN_LOGS = 10
"""How often progress is told where no terminal is."""

with_out = click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the profile."
)
_file = click.Path(path_type=Path, exists=True, dir_okay=False)
with_picture = click.option(
    "--picture/--no-picture", default=True, help="Draw errors.png beside the profile."
)
with_json = click.option("--json", "as_json", is_flag=True, help="Print the errors as JSON.")
with_seed = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the hold-outs and starts."
)


def _pairs(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """`NAME=VALUE`s of an option that may be given several times."""
    wrong = [text for text in texts if not all(text.partition("="))]
    if wrong:
        raise click.BadParameter(f"expected NAME=VALUE, got '{wrong[0]}'")
    return dict(text.split("=", 1) for text in texts)


def _op_runs(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    from typing import get_args

    from cbsim.lab.calibrate.layers import Runs

    pairs = _pairs(context, option, texts)
    wrong = [runs for runs in pairs.values() if runs not in get_args(Runs)]
    if wrong:
        raise click.BadParameter(f"expected one of {', '.join(get_args(Runs))}, got '{wrong[0]}'")
    return pairs


@click.group(invoke_without_command=True)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="Where to time the kernels.")
@click.option("--model", metavar="NAME", help="A model of configs/models, or a file.")
@click.option("--plan", type=click.Choice(["quick", "full"]), default="full", show_default=True)
@click.option("--tp", type=click.IntRange(min=1), default=1, show_default=True, help="GPUs of a replica.")
@click.option("--gpu", metavar="NAME", help="In configs/gpus; default: as the device calls itself.")
@click.option("--backend", metavar="NAME", help="Paged attention to time; default: the device's best.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the profile.")
@with_picture
@with_json
@with_seed
@click.pass_context
def calibrate(
    context: click.Context,
    device: str | None,
    model: str | None,
    plan: Any,
    tp: int,
    gpu: str | None,
    backend: str | None,
    out: Path | None,
    picture: bool,
    as_json: bool,
    seed: int,
) -> None:
    """Time the kernels of a model on a device, and fit a cost model to them.

    A killed run goes on where it was when called again with the same folder.
    """
    if context.invoked_subcommand is not None:
        return
    if device is None or model is None or out is None:
        raise click.UsageError("give --device, --model and --out, or a command: fit, import")

    try:
        from cbsim.lab.calibrate.measurement import measure
    except ImportError as error:
        raise CalibrationError(f"timing kernels needs torch: pip install 'cbsim[torch]' ({error})") from error
    from cbsim.lab.calibrate.named_spec import load_gpu, load_model
    from cbsim.lab.calibrate.profile_folder import fit_profile

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


@calibrate.command()
@click.argument("points", type=click.Path(path_type=Path))
@with_out
@click.option(
    "--meta", "meta_path", type=click.Path(path_type=Path), help="Default: meta.json beside POINTS."
)
@with_picture
@with_json
@with_seed
def fit(points: Path, out: Path, meta_path: Path | None, picture: bool, as_json: bool, seed: int) -> None:
    """Fit a cost model to POINTS, a points.csv with its meta.json, and report how wrong it is."""
    from cbsim.lab.calibrate.meta import read_meta
    from cbsim.lab.calibrate.pointsfile import read_points
    from cbsim.lab.calibrate.profile_folder import fit_profile, write_profile

    timings = read_points(points)
    meta = read_meta(meta_path or points.with_name("meta.json"))
    is_there = (out / "points.csv").resolve() == points.resolve()
    fitted = fit_profile(out, meta, seed) if is_there else write_profile(out, timings, meta, seed)
    _tell(out, *fitted, picture, as_json)


@calibrate.group(name="import")
def import_() -> None:
    """Build a profile from timings that somebody else has measured."""


@import_.command()
@click.option("--system", required=True, metavar="NAME", help="A system of the tables: h200_sxm, l40s ...")
@click.option("--model", required=True, metavar="NAME", help="A model of configs/models, or a file.")
@click.option("--tp", type=click.IntRange(min=1), default=1, show_default=True, help="GPUs of a replica.")
@click.option("--framework", default="vllm", show_default=True, help="Whose prefill kernels and all-reduces.")
@click.option("--decode-framework", metavar="NAME", help="Whose decode attention; default: the same.")
@click.option(
    "--wheel", type=click.Path(path_type=Path, exists=True), help="The package's wheel, not installed."
)
@with_out
@with_picture
@with_json
@with_seed
def nvidia(
    system: str,
    model: str,
    tp: int,
    framework: str,
    decode_framework: str | None,
    wheel: Path | None,
    out: Path,
    picture: bool,
    as_json: bool,
    seed: int,
) -> None:
    """NVIDIA's measured kernel tables, in the PyPI package aiconfigurator-core."""
    from cbsim.lab.calibrate.named_spec import load_model
    from cbsim.lab.calibrate.nvidia import Wanted, import_meta, import_points
    from cbsim.lab.calibrate.nvidia_tables import NvidiaTables
    from cbsim.lab.calibrate.profile_folder import check_profile_target, write_profile

    wanted = Wanted(load_model(model), tp, framework, decode_framework or framework)
    tables = NvidiaTables(system, wheel)
    meta = import_meta(tables, wanted, datetime.now(UTC).date().isoformat())
    check_profile_target(out, meta)
    points = import_points(tables, wanted)
    _tell(out, *write_profile(out, points, meta, seed), picture, as_json)


@import_.command()
@click.option("--dense", type=_file, required=True, help="CSV: layer, tokens, time_us.")
@click.option("--per-sequence", type=_file, help="CSV: layer, sequences, time_us: LM head, sampler.")
@click.option(
    "--attention",
    type=_file,
    required=True,
    help="CSV: prefill_chunk, kv_prefill, n_decode, kv_decode, time_us.",
)
@click.option("--model", required=True, metavar="NAME", help="A model of configs/models, or a file.")
@click.option("--gpu", required=True, metavar="NAME", help="A GPU of configs/gpus, or a file.")
@click.option("--tp", type=click.IntRange(min=1), default=1, show_default=True, help="GPUs of a replica.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="NAME=THEIRS",
    callback=_pairs,
    help="What a column is called that isn't found.",
)
@click.option(
    "--op",
    "ops",
    multiple=True,
    metavar="OP=RUNS",
    callback=_op_runs,
    help="How often an op runs: layer (once a layer), twice, step, sequence (by rows of logits) or none.",
)
@click.option("--source", default="layer timings", help="Who timed it, for meta.json.")
@with_out
@with_picture
@with_json
@with_seed
def layers(
    dense: Path,
    per_sequence: Path | None,
    attention: Path,
    model: str,
    gpu: str,
    tp: int,
    columns: dict[str, str],
    ops: dict[str, Any],
    source: str,
    out: Path,
    picture: bool,
    as_json: bool,
    seed: int,
) -> None:
    """Layer timings of another profiler, as LLMServingSim 2.0 writes them or with other usual names."""
    from cbsim.lab.calibrate.layers import LayerTimings
    from cbsim.lab.calibrate.named_spec import load_gpu, load_model
    from cbsim.lab.calibrate.profile_folder import write_profile

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
    from cbsim.base.units import format_seconds

    left = f", {format_seconds(left_s)} left" if left_s and done < total else ""
    if sys.stderr.isatty():
        click.echo(f"\r{done} of {total} timings{left}      ", nl=done == total, err=True)
    elif done == total or done % max(1, total // TOLD_IN_LOGS) == 0:
        click.echo(f"{done} of {total} timings{left}", err=True)
