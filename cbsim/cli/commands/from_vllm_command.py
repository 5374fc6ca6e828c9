"""`cbsim from-vllm`: the experiment that a serve command of vLLM, SGLang or TensorRT-LLM stands for."""

from __future__ import annotations

from pathlib import Path

import click

from cbsim.base.errors import ConfigError
from cbsim.base.paths import write_text
from cbsim.cli.commands import arguments as args
from cbsim.studies.serve_command import read_source
from cbsim.studies.served_experiment import ServedExperiment


@args.command("from-vllm", short_help="Write the experiment that a `vllm serve` command stands for.")
def from_vllm(
    command: str = args.argument(metavar="COMMAND|FILE"),
    gpu: str | None = args.option("--gpu NAME", "The GPU served on; default: one the text names, else h200."),
    model: str | None = args.option("--model NAME", "A shipped model, or the folder of a config.json."),
    release: str | None = args.option("--release", "vLLM's, as 0.11; default: the image's, else 0.33."),
    which: int | None = args.option(
        "--which N", "Of several commands; default: the first.", type=args.POSITIVE
    ),
    out: Path | None = args.option("--out FILE", "Write the YAML there.", type=args.NEW_FILE),
) -> None:
    """Print the experiment of COMMAND, a quoted line of shell, or of the one in FILE.

    Read are `vllm serve`, `python -m sglang.launch_server` and `trtllm-serve`, in a script or in a Kubernetes
    or compose YAML too, and the traffic of `vllm bench serve` or SGLang's `bench_serving` beside them. Below
    the YAML stands what it takes for granted and what has no counterpart.
    """
    source = read_source(command)
    number, num_found = which or 1, len(source.commands)
    if number > num_found:
        raise ConfigError(f"--which: got {number}; expected up to {num_found}, the serve commands found")
    if num_found > 1 and which is None:
        click.echo(
            f"{num_found} serve commands found, the first is taken; --which N takes another:", err=True
        )
        for place, each in enumerate(source.commands, start=1):
            click.echo(f"  {place}: {each.engine}, {' '.join(each.text.split())[:80]}", err=True)
    text = ServedExperiment(source.commands[number - 1], source, gpu, model, release).yaml_text()
    if out is None:
        click.echo(text, nl=False)
        return
    write_text(out, text)
    click.echo(f"written to {out}")
