"""`cbsim live`: an experiment served by a real model."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cbsim.base.paths import find_experiment
from cbsim.base.units import format_count, format_seconds
from cbsim.cli.commands import arguments as args
from cbsim.results.output import check_run_target
from cbsim.studies.experiment import Experiment


@args.command()
def live(
    config: str = args.CONFIG,
    overrides: tuple[str, ...] = args.SET,
    device: str = args.DEVICE,
    time_scale: float = args.option("--time-scale", "Arrivals so many times as fast.", default=1.0),
    temperature: float = args.option("--temperature", "0 is greedy.", default=0.0),
    top_k: int = args.option("--top-k", "Most likely tokens to choose from; 0: all.", default=0),
    top_p: float = args.option("--top-p", "Their probability, at least.", default=1.0),
    backend: str | None = args.option(
        "--backend NAME", "Attention: sdpa, triton, module:Class; default: the device's."
    ),
    weights: Path | None = args.option("--weights", "Folder of safetensors.", type=args.FOLDER),
    out: Path | None = args.option("--out DIR", "Default: runs/NAME-live.", type=args.PATH),
    as_json: bool = args.JSON,
) -> None:
    """Serve CONFIG's workload by its own scheduler with a real model, on the wall clock.

    The run folder is that of `cbsim run`: `cbsim report` and `cbsim compare` read both.
    """
    with args.needs_torch("a live run"):
        from cbsim.lab.kernels.sampling import SamplingParams
        from cbsim.lab.live.live_run import run_live
        from cbsim.lab.live.weights import Checkpoint
    experiment = Experiment.load(find_experiment(config), overrides)
    experiment.check_one_run(config)
    folder = out or Path("runs") / f"{experiment.name}-live"
    check_run_target(folder)
    result = run_live(
        experiment,
        device=device,
        time_scale=time_scale,
        sampling=SamplingParams(temperature, top_k, top_p),
        backend=backend,
        checkpoint=Checkpoint(weights) if weights is not None else None,
        progress=_show_progress if sys.stderr.isatty() else None,
    )
    result.save(folder)
    if as_json:
        args.print_json(result.summary)
        return
    summary = result.summary
    click.echo(f"{format_count(summary['num_finished'])} requests in {format_seconds(summary['makespan_s'])}")
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        shown = "  ".join(f"{part} {format_seconds(summary[name][part])}" for part in ("mean", "p50", "p99"))
        click.echo(f"{name.removesuffix('_s').upper():5} {shown}")
    click.echo(f"written to {folder}")


def _show_progress(num_requests: int, now_s: float) -> None:
    click.echo(f"\r{format_count(num_requests)} requests, {format_seconds(now_s)}  ", nl=False, err=True)
