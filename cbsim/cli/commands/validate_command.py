"""`cbsim validate`: an experiment in both worlds, or a recorded run beside its simulation."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from cbsim.base.errors import ConfigError
from cbsim.base.paths import find_experiment, is_file
from cbsim.base.units import MS_PER_S, format_count
from cbsim.cli.commands import arguments as args
from cbsim.config.bounds import unreal_figures
from cbsim.cost.profile import ProfileConfig
from cbsim.lab.calibrate.pointsfile import read_meta
from cbsim.lab.validate.both_worlds import IN_TURNS, BothWorlds, calibrate_here, validate_live, with_profile
from cbsim.lab.validate.log_verdict import Verdict, judge
from cbsim.lab.validate.metrics_page import beside, is_metrics_page, read_metrics_page
from cbsim.lab.validate.recorded_run import compare_with_log, figures_table, replay_log
from cbsim.lab.validate.server_log import ServerLog, read_server_log
from cbsim.lab.validate.token_clock import RecordedTokens
from cbsim.results.output import check_run_target
from cbsim.show.style import save_figure
from cbsim.show.text import MISSING, Table, format_figure
from cbsim.show.validation_plot import recorded_picture
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_workload, simulate

MAX_SHOWN = 5
PICTURE = "recorded-and-simulated.png"


@args.command()
def validate(
    config: str = args.CONFIG,
    overrides: tuple[str, ...] = args.SET,
    log_path: Path | None = args.option(
        "--log FILE",
        "A server's log, a benchmark's results (workloads/README.md), vLLM's /metrics or a run folder in "
        "place of a live run.",
        type=args.PATH,
    ),
    columns: dict[str, str] = args.option(
        "--column WHAT=NAME",
        "A log's own column for request_id, prompt_tokens, output_tokens, arrival, queued, scheduled, "
        "first_token, last_token or token_times; may be repeated.",
        multiple=True,
        callback=args.named_values,
    ),
    since: Path | None = args.option(
        "--since FILE", "The /metrics before the run, where --log has that after it.", type=args.PATH
    ),
    prompts: Path | None = args.option(
        "--prompts FILE",
        "What the log's prompts hold, a row a request: its id and hash_ids of blocks (of "
        "workload.hash_block_tokens tokens, else found) or token ids.",
        type=args.PATH,
    ),
    arrivals: Any = args.choice(
        "--arrivals",
        ["sent", "queued"],
        "What latencies of a log count from: the client's sending, or the engine's queue.",
        default="sent",
    ),
    replay: bool = args.flag("--replay", "Force the simulated clock to the log's recorded tokens too."),
    device: str = args.DEVICE,
    plan: str = args.choice("--plan", ["quick", "full"], default="quick"),
    profile: Path | None = args.option(
        "--profile DIR",
        "A calibrated profile, of which --set cost_model.KEY then is; default: CONFIG's with --log, else "
        "this machine is timed.",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
    ),
    time_scale: float = args.option("--time-scale", "Live arrivals so much faster.", default=1.0),
    out: Path | None = args.option(
        "--out DIR", "Of a live run, or the picture; default: runs/NAME-validate.", type=args.PATH
    ),
    picture: bool = args.option(
        "--picture/--no-picture", "Draw a log's run beside its simulation.", default=True, show_default=False
    ),
    as_json: bool = args.JSON,
) -> None:
    """Hold the simulation of CONFIG against reality.

    Without --log: time this machine's kernels, serve CONFIG live, simulate the same arrivals, and compare.
    With --log: simulate the log's requests by CONFIG's scheduler and cost model, and compare; end in a
    verdict: how right it is, where it is off, which setting or timing would mend it, and a picture.
    With vLLM's /metrics: simulate CONFIG's own workload, and compare means, counts and histograms.
    """
    experiment = _load(config, overrides, profile, is_live=log_path is None)
    if log_path is None:
        for name, is_given in (
            ("--replay", replay),
            ("--column", columns),
            ("--prompts", prompts),
            ("--since", since),
        ):
            if is_given:
                raise ConfigError(f"{name}: needs --log")
        _validate_live(experiment, device, plan, profile, time_scale, out, as_json)
        return
    if profile is not None:
        experiment = with_profile(experiment, profile)
    if is_metrics_page(log_path):
        _validate_metrics(experiment, log_path, since, as_json)
        return
    if since is not None:
        raise ConfigError(f"--since: needs vLLM's /metrics as --log, not {log_path}")
    log = _read_log(experiment, log_path, columns, prompts)
    folder = (out or _default_folder(experiment)) if picture and (out or not as_json) else None
    _validate_log(experiment, log, arrivals, replay, folder, as_json)


def _default_folder(experiment: Experiment) -> Path:
    return Path("runs") / f"{experiment.name}-validate"


def _read_log(experiment: Experiment, path: Path, columns: dict[str, str], prompts: Path | None) -> ServerLog:
    """The log, with what its prompts hold where that is known, in hash blocks as the workload has them."""
    if experiment.cluster is not None:
        raise ConfigError("cluster: got pools; a log is one replica's")
    if experiment.replicas.count != 1:
        raise ConfigError(f"replicas.count: got {experiment.replicas.count}; a log is one replica's")
    block_tokens = getattr(experiment.workload, "hash_block_tokens", None)
    log = read_server_log(path, columns, block_tokens)
    return log if prompts is None else log.with_prompts(prompts, block_tokens)


def _load(config: str, overrides: tuple[str, ...], profile: Path | None, *, is_live: bool) -> Experiment:
    """The experiment; `--set cost_model.KEY=...` is of the profile given, whatever CONFIG's cost model is."""
    path = find_experiment(config)
    others = [override for override in overrides if not override.startswith("cost_model.")]
    sets_type = any(override.startswith("cost_model.type=") for override in overrides)
    is_of_profile = profile is not None and not sets_type and len(others) < len(overrides)
    if is_of_profile and not isinstance(Experiment.load(path, others).cost_model, ProfileConfig):
        settings = {"type": "profile", "profile": str(profile)} | (IN_TURNS if is_live else {})
        overrides = (f"cost_model={json.dumps(settings)}", *overrides)
    return Experiment.load(path, overrides)


def _validate_log(
    experiment: Experiment, log: ServerLog, arrivals: Any, replay: bool, folder: Path | None, as_json: bool
) -> None:
    run = compare_with_log(experiment, log, arrivals)
    clock = replay_log(experiment, log) if replay else None
    stretches = clock.stretches if clock is not None else None
    tried = partial(compare_with_log, log=log, arrivals=arrivals, with_interval=False)
    _say("trying settings ...")
    verdict = judge(experiment, run, stretches, tried)
    title = f"{log.path.name}: {format_count(len(log))} requests, latencies from when they were {arrivals}"
    if folder is not None:
        drawn = recorded_picture(run.arrival_s, run.recorded, run.simulated, title)
        save_figure(drawn, folder / PICTURE)
    if as_json:
        told: dict[str, Any] = {"figures": _as_rows(run.figures), "notes": run.notes}
        told |= {"replay": _replay_as_dict(clock)} if clock is not None else {}
        args.print_json(told | {"verdict": _verdict_as_dict(verdict)})
        return
    figures_table(run.figures, "recorded", "simulated", title).print()
    for note in run.notes:
        click.echo(f"note: {note}")
    if clock is not None:
        _print_replay(clock)
    for line in verdict.told():
        click.echo(line)
    if folder is not None:
        click.echo(f"picture: {folder / PICTURE}")


def _validate_metrics(experiment: Experiment, path: Path, since: Path | None, as_json: bool) -> None:
    page = read_metrics_page(path)
    if since is not None:
        page = page.since(read_metrics_page(since))
    log, notes = simulate(experiment, make_workload(experiment))
    means, quantiles = beside(page, log)
    notes += unreal_figures({each.name: each.recorded for each in means})
    if not means:
        raise ConfigError(f"{path}: has no latency and no count that a simulation has, too")
    if as_json:
        figures = [figure._asdict() | {"error_pct": _finite(figure.error_pct)} for figure in means]
        told = [
            figure._asdict() | {"high": _finite(figure.high), "is_within": figure.is_within}
            for figure in quantiles
        ]
        args.print_json({"figures": figures, "quantiles": told, "notes": notes})
        return
    rows = tuple(
        (
            each.name,
            *map(format_figure, (each.recorded, each.simulated)),
            MISSING if math.isnan(each.error_pct) else f"{each.error_pct:+.1f}%",
        )
        for each in means
    )
    title = f"{path.name}, summed over its engines; latencies in seconds"
    Table(header=("", "server", "simulated", "error"), rows=rows, title=title).print()
    rows = tuple(
        (
            each.name,
            f"above {format_figure(each.low)}"
            if math.isinf(each.high)
            else f"{format_figure(each.low)} to {format_figure(each.high)}",
            format_figure(each.simulated),
            "within" if each.is_within else "outside",
        )
        for each in quantiles
    )
    Table(header=("", "server's bucket", "simulated", ""), rows=rows, title="Quantiles (s)").print()
    for note in notes:
        click.echo(f"note: {note}")


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _verdict_as_dict(verdict: Verdict) -> dict[str, Any]:
    return {
        "within_pct": verdict.within_pct,
        "error_pct": dict(verdict.error_pct),
        "where": verdict.where,
        "remedies": verdict.remedies,
        "steps": [
            {name: getattr(each.cell, name) for name in ("kind", "least", "most")}
            | {name: getattr(each, name) for name in ("num_steps", "predicted_s", "ratio")}
            for each in verdict.cells
        ],
    }


def _validate_live(
    experiment: Experiment,
    device: str,
    plan: str,
    profile: Path | None,
    time_scale: float,
    out: Path | None,
    as_json: bool,
) -> None:
    with args.needs_torch("a live run"):
        import cbsim.lab.live.live_run  # noqa: F401
    folder = out or _default_folder(experiment)
    for name in ("live", "simulated"):
        check_run_target(folder / name)
    if profile is not None:
        experiment = with_profile(experiment, profile, **IN_TURNS)
    else:
        _say(f"timing the kernels of {experiment.model.name} on this machine's {device} ...")
        profile = folder / "profile"
        experiment = calibrate_here(experiment, profile, device=device, plan=plan)
    notes = _warnings_of(profile)
    _say("serving live ...")
    both = validate_live(experiment, device=device, time_scale=time_scale)
    both.live.save(folder / "live")
    both.simulated.save(folder / "simulated")
    if as_json:
        args.print_json(
            {
                "figures": _as_rows(both.figures),
                "steps": [asdict(times) for times in both.steps],
                "difference": both.difference and asdict(both.difference),
                "replayed_difference": both.replayed_difference and asdict(both.replayed_difference),
                "notes": notes,
            }
        )
        return
    _print_both(both)
    for note in notes:
        click.echo(f"- {note}")
    click.echo(f"written to {folder}")


def _warnings_of(profile: Path) -> list[str]:
    """What is to be known about the timings of a profile's folder, if it says so."""
    meta = profile / "meta.json"
    return [f"the profile's timings: {told}" for told in read_meta(meta).warnings] if is_file(meta) else []


def _print_both(both: BothWorlds) -> None:
    rows = tuple(
        (
            times.kind,
            f"{times.num_steps:,}",
            f"{times.measured_s * MS_PER_S:.3g}",
            f"{times.predicted_s * MS_PER_S:.3g}",
            f"{times.ratio:.3f}",
            f"{times.median_error_pct:.1f}%",
        )
        for times in both.steps
    )
    header = ("steps", "number", "measured (ms)", "predicted (ms)", "measured / predicted", "median error")
    Table(header=header, rows=rows, title="Step times").print()
    figures_table(both.figures, "live", "simulated", "Both worlds").print()
    for what, difference in (
        ("by predicted step times", both.difference),
        ("by the live steps' times", both.replayed_difference),
    ):
        told = "the same in every step"
        if difference is not None:
            worlds = f"live {difference.first}; simulated {difference.second}"
            told = f"differ from step {difference.step}: {worlds}"
        click.echo(f"decisions {what}: {told}")


def _print_replay(clock: RecordedTokens) -> None:
    click.echo(
        f"replay: {len(clock.contradictions):,} of {clock.num_recorded_steps:,} steps with recorded tokens "
        f"contradict the record ({clock.num_steps:,} steps in all)"
    )
    for found in clock.contradictions[:MAX_SHOWN]:
        click.echo(f"  step {found.step}, from {found.at_s:.3f} s: {found.reason}")
    ratios = clock.recorded_over_predicted()
    rows = tuple((kind, f"{number:,}", f"{ratio:.3f}") for kind, (number, ratio) in ratios.items())
    header = ("steps", "number", "recorded / predicted")
    Table(header=header, rows=rows, title="Step times between recorded instants").print()


def _replay_as_dict(clock: RecordedTokens) -> dict[str, Any]:
    return {
        "num_steps": clock.num_steps,
        "num_recorded_steps": clock.num_recorded_steps,
        "num_contradictions": len(clock.contradictions),
        "first_contradictions": [found._asdict() for found in clock.contradictions[:MAX_SHOWN]],
        "recorded_over_predicted": {
            kind: {"num_steps": number, "ratio": ratio}
            for kind, (number, ratio) in clock.recorded_over_predicted().items()
        },
    }


def _as_rows(figures: list[Any]) -> list[dict[str, Any]]:
    """Figures as JSON: with `low` and `high` where there is an interval."""
    rows = []
    for figure in figures:
        row = asdict(figure) | {"error_pct": figure.error_pct if figure.real else None}
        bounds = row.pop("bounds")
        rows.append(row | (dict(zip(("low", "high"), bounds, strict=True)) if bounds else {}))
    return rows


def _say(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(text, err=True)
