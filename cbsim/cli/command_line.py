"""The command line: `cbsim COMMAND`. Bodies import what they need, so that `cbsim --help` is quick."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cbsim.base.errors import CbsimError
from cbsim.base.garbage import collect_seldom
from cbsim.base.units import format_count
from cbsim.cli.commands import arguments as args
from cbsim.cli.standard_output import standard_output

if TYPE_CHECKING:
    from cbsim.studies.experiment import Experiment

_ELSEWHERE = {
    "bench": ("bench_command", "Measure what simulating costs, on your configuration too."),
    "calibrate": ("calibrate_command", "Time kernels, fit a cost model, import timings."),
    "capacity": ("capacity_command", "Find the highest request rate within an SLO."),
    "explain": ("explain_command", "Tell where a run's time goes, step by step."),
    "from-vllm": ("from_vllm_command", "Write the experiment that a `vllm serve` command stands for."),
    "list": ("list_command", "List what experiments can name: schedulers, routers, models, gpus and more."),
    "live": ("live_command", "Serve an experiment's workload with a real model."),
    "model": ("model_command", "Print what a model's config.json becomes, and what of it is not modelled."),
    "play": ("play_command", "Play an experiment in the terminal, step by step."),
    "run": (
        "run_command",
        "Run CONFIG: an experiment file, or the name of a shipped one (`cbsim list experiments`).",
    ),
    "tune": ("tune_command", "Find the best settings within an SLO, over any keys."),
    "sweep": ("run_command", "Run every point of CONFIG's sweep and compare them."),
    "validate": ("validate_command", "Hold a simulation against a live run or a log."),
    "workload": ("workload_command", "Look into traces and generators, and convert them."),
}
"""Commands from elsewhere: name -> module of `commands`, which is imported when they are named, and help."""

OUT_OF_MEMORY = "out of memory"
INTERRUPTED = 130
"""The exit code of a command that Ctrl-C has stopped: 128 and the signal's number, as of any shell's."""
TRUST_FLAGS = ("--plugins", "--no-plugins")
"""Options of all commands, which may stand anywhere on the line."""
SEVERAL_WORKERS = re.compile(r"--workers[ =](?!1\b)\d")
OWN_PROCESS = object()
"""The `click.Context.obj` of a command that is run as a program."""
LOOKS_ON = ("check", "compare", "report", "workload")
"""Commands that only look at what somebody may have sent: they run no `module:Class` unless told to."""
POSIX_MODULES = ("resource", "termios")
"""Modules of Python's that some commands need and Windows lacks."""
TRACEBACK = "CBSIM_TRACEBACK"
"""Environment variable: set to anything, a traceback is printed before the lines that tell a mistake."""


class Commands(click.Group):
    """Imports commands from elsewhere when named; turns a user's mistakes into lines and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See `click.Group.list_commands`."""
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """See `click.Group.get_command`."""
        if name in _ELSEWHERE:
            try:
                found = vars(import_module(f"cbsim.cli.commands.{_ELSEWHERE[name][0]}")).values()
            except ModuleNotFoundError as error:
                if error.name not in POSIX_MODULES:
                    raise
                raise CbsimError(f"{name}: needs a POSIX system: there is no '{error.name}' here") from error
            return next(each for each in found if isinstance(each, click.Command) and each.name == name)
        return super().get_command(ctx, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See `click.Group.format_commands`; imports nothing."""
        rows = [
            (name, _ELSEWHERE[name][1] if name in _ELSEWHERE else self.commands[name].get_short_help_str(90))
            for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See `click.Group.resolve_command`; a wrong name is told with the nearest one."""
        from cbsim.base.registry import did_you_mean

        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            ctx.fail(f"no command '{args[0]}'{did_you_mean(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Group.parse_args`; options on trust may stand behind the command too."""
        end = args.index("--") if "--" in args else len(args)
        if ctx.obj is OWN_PROCESS and SEVERAL_WORKERS.search(" ".join(args[:end])):
            from cbsim.studies.worker_pool import start_server

            start_server()
        moved = [arg for arg in args[:end] if arg in TRUST_FLAGS]
        return super().parse_args(ctx, [*moved, *(a for a in args[:end] if a not in moved), *args[end:]])

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """See `click.Group.__call__`: a whole process is this command's."""
        return super().__call__(*arguments, obj=OWN_PROCESS, **settings)

    def main(self, *arguments: Any, **settings: Any) -> Any:
        """See `click.Group.main`; standard output may be of any kind."""
        with standard_output(), clearing_up():
            return super().main(*arguments, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        """See `click.Group.invoke`."""
        collect_seldom()
        try:
            if _is_main() and signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # see `cbsim.__main__`
                signal.signal(signal.SIGINT, signal.default_int_handler)
            return super().invoke(ctx)
        except (CbsimError, MemoryError) as error:
            if os.environ.get(TRACEBACK):
                click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
            problems = error.problems if isinstance(error, CbsimError) else [f"{OUT_OF_MEMORY}: {error}"]
            for problem in problems:
                click.echo(problem, err=True)
            ctx.exit(2)
        except KeyboardInterrupt as interrupt:
            click.echo(f"\n{str(interrupt) or 'interrupted'}", err=True)
            ctx.exit(INTERRUPTED)


def _is_main() -> bool:
    """Whether this is the thread that signals come to."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def clearing_up() -> Iterator[None]:
    """Have whoever asks this process to end, or closes its terminal, find nothing half written behind it."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    asked = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    asked = [number for number in asked if _is_main() and signal.getsignal(number) == signal.SIG_DFL]
    for number in asked:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in asked:
            signal.signal(number, signal.SIG_DFL)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="cbsim", prog_name="cbsim")
@click.option(
    "--plugins/--no-plugins",
    default=None,
    help="Whether plug-ins may run. Parts named module:Class run the code of that module, with all you may "
    "do; check, compare, report, workload and explain of a folder refuse them without --plugins. "
    "--no-plugins refuses every plug-in, and files that don't lie beside the configuration. May stand "
    "anywhere.",
)
@click.pass_context
def main(ctx: click.Context, plugins: bool | None) -> None:
    """What an LLM serving engine does with your traffic: simulated, before any GPU hour is spent."""
    from cbsim.base.trust import Trust, trusting

    if plugins is None:
        trust = Trust.INSTALLED if ctx.invoked_subcommand in LOOKS_ON else Trust.EVERYTHING
    else:
        trust = Trust.EVERYTHING if plugins else Trust.NOTHING
    ctx.with_resource(trusting(trust))


@args.command(of=main)
def check(
    configs: tuple[str, ...] = args.argument(nargs=-1, required=True, metavar="CONFIG..."),
    overrides: tuple[str, ...] = args.SET,
) -> None:
    """Check configurations and the traces they name without running them."""
    from cbsim.studies.run import make_cost_model, too_long_notes

    problems: list[str] = []
    for config in configs:
        try:
            experiment = args.load_experiment(config, overrides)
            points = [point for _, point in experiment.points()]
            for point in {repr((p.cost_model, p.model, p.gpu, p.sharing)): p for p in points}.values():
                make_cost_model(point)
            click.echo(f"ok  {config}: {preview(experiment)}")
            shortfalls = [(point.kv_capacity.shortfall,) for point in points]
            counts = _request_counts(points)
            is_small = bool(counts) and max(counts) * len(points) <= MOST_LOOKED_AT
            too_long = map(too_long_notes, points) if is_small else ()
            settings = chain.from_iterable((*point.assumed, *point.at_odds) for point in points)
            for note in dict.fromkeys(chain(*shortfalls, *too_long, settings)):
                if note is not None:
                    click.echo(f"    note: {note}")
        except CbsimError as error:
            problems += error.problems
    if problems:
        raise CbsimError(*dict.fromkeys(problems))


@args.command(of=main)
def schema(
    out: Path | None = args.option("--out DIR", "Write schema and reference.md.", type=args.FOLDER),
) -> None:
    """Print the JSON Schema of experiment files, for editors; with --out write it and the reference."""
    from cbsim.config.reference_page import make_reference, make_schema
    from cbsim.studies.experiment import Experiment

    text = json.dumps(make_schema(Experiment), indent=2) + "\n"
    if out is None:
        click.echo(text, nl=False)
        return
    from cbsim.base.paths import write_text

    for name, content in (("experiment.schema.json", text), ("reference.md", make_reference(Experiment))):
        write_text(out / name, content)
        click.echo(f"written to {out / name}")


@args.command(short_help="Compare two runs, request by request.", of=main)
def compare(
    first: Path = args.argument(type=args.PATH),
    second: Path = args.argument(type=args.PATH),
    seed: int = args.option("--seed", "Of the resampling.", type=args.NATURAL, default=0),
    out: Path | None = args.OUT,
    as_json: bool = args.JSON,
) -> None:
    """Compare the runs in folders FIRST and SECOND, paired by request.

    Differences are second - first, with 95% intervals. With --out, the latencies of both are drawn there.
    """
    from cbsim.results.result import load_run
    from cbsim.show.reader_tables import compare_answer, difference_table, run_labels
    from cbsim.show.text import print_answer
    from cbsim.studies.compare import compare as compare_results

    runs = [load_run(folder) for folder in (first, second)]
    comparison = compare_results(*runs, seed=seed)
    labels = run_labels([first, second])
    labelled = dict(zip(labels, runs, strict=True))
    written = []
    if out is not None:
        from cbsim.show.latency_plot import latency_cdfs
        from cbsim.show.style import save_figure

        drawn = latency_cdfs(labelled, runs[0].promised)
        written = save_figure(drawn, out / "latency_cdfs")
    if as_json:
        told = asdict(comparison)
        for difference, row in zip(comparison.differences, told["differences"], strict=True):
            row["change"] = difference.change._asdict()
        args.print_json({"first": labels[0], "second": labels[1], **told})
        return
    print_answer(*compare_answer(labelled))
    difference_table(comparison, *labels).print()
    for path in written:
        click.echo(f"written to {path}")


@args.command(short_help="Write runs, sweeps, capacities and tunes as one HTML page.", of=main)
def report(
    folders: tuple[Path, ...] = args.argument(nargs=-1, required=True, type=args.PATH, metavar="DIR..."),
    out: Path | None = args.option(
        "--out FILE", "Default: report.html, in DIR if there is only one.", type=args.NEW_FILE
    ),
    title: str | None = args.option("--title", "Of the page; default: what each DIR is."),
) -> None:
    """Write one HTML file on what lies in DIR...: folders of runs, sweeps, capacities and tunes.

    It needs no network and no other file.
    """
    from cbsim.show.report_file import write_report

    path = out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    write_report(folders, path, title)
    click.echo(f"written to {path}")


MOST_LOOKED_AT = 200_000
"""Requests, of all points, whose lengths `check` compares with KV caches."""


def preview(experiment: Experiment) -> str:
    """One line on what would run. Raises `CbsimError` for traces that can't be read."""
    points = experiment.points()
    experiments = [point for _, point in points]
    swept = dict.fromkeys(key for values, _ in points for key in values)
    over = f"{len(points)} points over {', '.join(swept)}; " if experiment.sweep else ""
    over += f"a tune over {', '.join(experiment.space.keys)}; " if experiment.space else ""
    requests = " or ".join(format_count(count) for count in _request_counts(experiments))
    alone = [each.alone for each in experiments]
    pools = [pool for each in alone for pool in each]
    parts = [(each.scheduler.type, each.model.name, each.cost_model.type) for each in pools]
    schedulers, models, costs = (" and ".join(dict.fromkeys(names)) for names in zip(*parts, strict=True))
    gpus = " or ".join(dict.fromkeys(map(_gpus, alone)))
    capacities = [each.kv_capacity for each in pools]
    tokens = _from_to(each.num_tokens for each in capacities)
    longest = _from_to(each.max_model_len for each in capacities)
    each = " a rank" if experiment.parallel.data > 1 else ""
    admission = " or ".join(dict.fromkeys(", ".join(pool.kv_at_admission) for pool in pools))
    return (
        f"{over}{requests or 'unknown number of'} requests, {schedulers}, {models} on {gpus}, {costs} costs, "
        f"KV cache of {tokens} tokens{each} for a longest context of {longest}"
        f"{f' ({admission})' if admission else ''}"
    )


def _from_to(numbers: Iterable[int]) -> str:
    """`8,192`, or the least and the most of several."""
    known = sorted({*numbers})
    return f"{known[0]:,}" if len(known) == 1 else f"{known[0]:,} to {known[-1]:,}"


def _request_counts(experiments: list[Experiment]) -> list[int]:
    """How many requests each different workload holds, after a look at its first."""
    from cbsim.studies.run import check_num_requests, make_workload

    counts: list[int | None] = []
    problems: list[str] = []
    looked_at: list[object] = []
    for experiment in experiments:
        kind = (experiment.workload, experiment.seed)
        if kind in looked_at:
            continue
        looked_at.append(kind)
        workload = make_workload(experiment)
        try:
            counts.append(check_num_requests(experiment, workload))
            next(workload.requests(), None)
        except CbsimError as error:
            problems += error.problems
    if problems:
        raise CbsimError(*dict.fromkeys(problems))
    return [count for count in dict.fromkeys(counts) if count is not None]


def _gpus(pools: list[Experiment]) -> str:
    """How many of which GPUs the pools have in all."""
    counts: dict[str, int] = {}
    for pool in pools:
        num_gpus = pool.replicas.count * pool.num_gpus
        counts[pool.gpu.name] = counts.get(pool.gpu.name, 0) + num_gpus
    return " and ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())
