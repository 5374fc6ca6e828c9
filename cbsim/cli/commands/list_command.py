"""`cbsim list`: every part and named file that an experiment can ask for, each with what it is."""

from __future__ import annotations

import inspect
import itertools
import re
from pathlib import Path
from typing import Any

import click

from cbsim.base.errors import CbsimError, PluginError
from cbsim.base.paths import data_folder, yaml_names
from cbsim.base.registry import Registry, did_you_mean
from cbsim.base.units import GIB, format_bytes
from cbsim.cli.commands import arguments as args
from cbsim.cluster.autoscaler import AUTOSCALERS
from cbsim.cluster.router import ROUTERS
from cbsim.config.document import read_document
from cbsim.cost import COST_MODELS
from cbsim.cost.costfile import read_cost_file, shipped_profiles
from cbsim.observers import OBSERVERS
from cbsim.schedulers import SCHEDULERS
from cbsim.specs import GpuSpec, ModelSpec
from cbsim.workload import WORKLOADS

_REGISTRIES: dict[str, Registry[Any]] = {
    "schedulers": SCHEDULERS,
    "workloads": WORKLOADS,
    "cost-models": COST_MODELS,
    "routers": ROUTERS,
    "autoscalers": AUTOSCALERS,
    "observers": OBSERVERS,
}
_KINDS = (*_REGISTRIES, "models", "gpus", "profiles", "slos", "experiments")


@args.command("list")
def list_parts(kind: str | None = args.argument(required=False), as_json: bool = args.JSON) -> None:
    """List what experiments can name: schedulers, workloads, cost-models, routers, autoscalers, observers,
    models, gpus, profiles, slos or experiments.

    Without a kind, all of them.
    """
    if kind is not None and kind not in _KINDS:
        raise CbsimError(f"no list of '{kind}'{did_you_mean(kind, _KINDS)}")
    found = {name: _catalog(name) for name in ([kind] if kind else _KINDS)}
    if as_json:
        args.print_json(found)
        return
    for i, (name, entries) in enumerate(found.items()):
        width = max(map(len, entries), default=0)
        click.echo("\n" * (i > 0) + f"{name}:")
        for entry, meaning in entries.items():
            click.echo(f"  {entry:{width}}  {meaning}".rstrip())


def _catalog(kind: str) -> dict[str, str]:
    """Name -> what it is, for one of `_KINDS`."""
    if kind in _REGISTRIES:
        return {name: _describe_part(_REGISTRIES[kind], name) for name in _REGISTRIES[kind].names()}
    if kind == "profiles":
        return {name: _describe_profile(path) for name, path in shipped_profiles().items()}
    folder = data_folder("experiments") if kind == "experiments" else data_folder("configs") / kind
    return {name: _describe_file(kind, folder / f"{name}.yaml") for name in yaml_names(folder)}


def _describe_part(registry: Registry[Any], name: str) -> str:
    """The first sentence of what it says about itself; a plug-in that can't be loaded says why."""
    try:
        part = registry.get(name)
    except PluginError as error:
        return f"({error})"
    described = part.Config if registry is SCHEDULERS else part
    return inspect.cleandoc(described.__doc__ or "").partition("\n")[0]


def _describe_profile(path: Path) -> str:
    """How many GPUs share the model, and how wrong single kernels are that were held out."""
    try:
        profile = read_cost_file(path)
    except CbsimError as error:
        return f"({error})"
    parallel = profile.parallel
    shared = "one GPU" if parallel.num_gpus == 1 else f"{parallel.num_gpus} GPUs"
    error_pct = profile.accuracy.get("held_out", {}).get("all", {}).get("median_pct")
    errors = "" if error_pct is None else f", kernels that were held out {error_pct:.1f} % off at the median"
    return f"of {shared}{errors}"


def _describe_file(kind: str, path: Path) -> str:
    """What a model or a GPU is; of other files the sentence that they begin with."""
    try:
        if kind == "models":
            model = ModelSpec.model_validate(read_document(path).data)
            weights = f"{format_bytes(model.weight_bytes)} of {model.weight_dtype or model.dtype} weights"
            kv_cache = f"{format_bytes(model.kv_bytes_per_token)} of KV cache a token"
            return f"{weights}, {kv_cache}, up to {model.max_model_len:,} tokens"
        if kind == "gpus":
            gpu = GpuSpec.model_validate(read_document(path).data)
            memory = f"{gpu.memory_bytes / GIB:g} GiB at {gpu.memory_bandwidth_gb_s:,.0f} GB/s"
            return f"{memory}, {gpu.bf16_tflops:,.0f} TFLOP/s in bf16"
    except (CbsimError, ValueError) as error:
        return f"({error})"
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = itertools.takewhile(lambda line: line.startswith("#"), lines)
    comment = " ".join(line[1:].strip() for line in comments)
    sentence = re.match(r".*?[.?!](?= |$)", comment)
    return sentence[0] if sentence else comment
