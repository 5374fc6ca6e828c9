"""`cbsim compare`: two runs, request by request."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from cbsim.cli.commands import shared
from cbsim.cli.commands.arguments import argument, option, print_json, with_parameters


@click.command()
@with_parameters
def compare(
    first: Path = argument(type=shared.PATH),
    second: Path = argument(type=shared.PATH),
    seed: int = option("--seed", "Of the resampling.", type=shared.NATURAL, default=0),
    out: Path | None = shared.OUT,
    as_json: bool = shared.JSON,
) -> None:
    """Compare the runs in folders FIRST and SECOND, paired by request.

    Differences are second - first, with 95% intervals. With --out, the latencies of both are drawn there.
    """
    from cbsim.results.result import load_run
    from cbsim.show.differences import difference_table, run_labels
    from cbsim.studies.compare import compare as compare_results

    runs = [load_run(folder) for folder in (first, second)]
    comparison = compare_results(*runs, seed=seed)
    labels = run_labels([first, second])
    written = []
    if out is not None:
        from cbsim.show.cdf_plot import latency_cdfs
        from cbsim.show.style import save_figure

        slo = {name: limit for name, limit in (runs[0].config.get("slo") or {}).items() if limit is not None}
        written = save_figure(latency_cdfs(dict(zip(labels, runs, strict=True)), slo), out / "latency_cdfs")
    if as_json:
        told = asdict(comparison)
        for difference, row in zip(comparison.differences, told["differences"], strict=True):
            row["change"] = difference.change._asdict()
        print_json({"first": labels[0], "second": labels[1], **told})
        return
    difference_table(comparison, *labels).print()
    for path in written:
        click.echo(f"written to {path}")
