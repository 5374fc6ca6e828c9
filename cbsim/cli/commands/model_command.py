"""`cbsim model`: what a model's file becomes: layers, parameters, weights, KV cache, and what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import Field

from cbsim.base.units import format_bytes, format_count
from cbsim.cli.commands import arguments as args
from cbsim.config.assembly import Assembly
from cbsim.config.document import Document, parse_overrides
from cbsim.config.section import Section
from cbsim.show.text import MISSING, Table
from cbsim.specs import ModelSpec, ParallelSpec
from cbsim.specs.huggingface import NAMED_MODEL


class ModelFile(Section):
    """A model alone, and how GPUs share it."""

    model: Annotated[ModelSpec, NAMED_MODEL]
    parallel: ParallelSpec = Field(default_factory=ParallelSpec)


@args.command("model", short_help="Print what a model's config.json becomes, and what of it is not modelled.")
def tell_model(
    file: str = args.argument(),
    overrides: tuple[str, ...] = args.SET,
    as_json: bool = args.JSON,
) -> None:
    """Print what FILE becomes: a Hugging Face config.json or its folder, a model's YAML, a shipped name.

    Settings begin with `model.` or `parallel.`, as in an experiment: --set parallel.tensor=8 adds what lies
    on each of 8 GPUs, --set model.weight_dtype=fp8 stores weights otherwise.
    """
    document = Document({"model": file}, "FILE")
    settings = Assembly(ModelFile, document, parse_overrides(overrides), Path()).whole()
    if as_json:
        args.print_json(_figures(settings.model, settings.parallel))
        return
    tables = _tables(settings.model, settings.parallel)
    for place, table in enumerate(tables):
        click.echo("\n" * (place > 0), nl=False)
        table.print()


_ATTENTION = ("layers", "attention", "heads", "KV heads", "window", "KV a token")


def _kv_bytes_of_gpu(model: ModelSpec, parallel: ParallelSpec) -> int:
    """Bytes of the KV cache for one token on one GPU, windows apart."""
    return sum(kind.num_layers * kind.token_bytes for kind in model.layer_kinds(parallel))


def _figures(model: ModelSpec, parallel: ParallelSpec) -> dict[str, Any]:
    """What is printed as JSON."""
    return {
        "name": model.name,
        "num_layers": model.num_layers,
        "attention": [
            {
                "num_layers": kind.num_layers,
                "is_latent": kind.is_latent,
                "num_heads": kind.num_heads,
                "num_kv_heads": kind.num_kv_heads,
                "window": kind.window or None,
                "kv_bytes_per_token": kind.kv_elements * model.kv_element_bytes,
            }
            for kind in model.attention_kinds
        ],
        "experts": model.experts and {**model.experts.model_dump(), "num_layers": model.num_expert_layers},
        "num_parameters": model.num_parameters,
        "num_active_parameters": model.num_active_parameters,
        "weights": [
            {"part": part.name, "num_weights": part.num_weights, "dtype": part.dtype, "bytes": part.num_bytes}
            for part in model.parts
        ],
        "weight_bytes": model.weight_bytes,
        "kv_bytes_per_token": model.kv_bytes_per_token,
        "kv_dtype": model.kv_dtype or model.dtype,
        "max_model_len": model.max_model_len,
        "parallel": parallel.model_dump(),
        "weight_bytes_of_gpu": model.weight_bytes_of_gpu(parallel),
        "kv_bytes_per_token_of_gpu": _kv_bytes_of_gpu(model, parallel),
        "not_modelled": model.not_modelled,
    }


def _tables(model: ModelSpec, parallel: ParallelSpec) -> list[Table]:
    """What is printed as text."""
    multiplied = sum(part.num_used for part in model.parts)
    active = format_count(model.num_active_parameters)
    if not model.tie_embeddings:
        active += f" ({format_count(multiplied)} without the embedding)"
    rows = [
        ("parameters", format_count(model.num_parameters)),
        ("active for a token", active),
        ("weights", format_bytes(model.weight_bytes)),
        ("KV cache a token", f"{format_bytes(model.kv_bytes_per_token)} in {model.kv_dtype or model.dtype}"),
        ("longest context", f"{model.max_model_len:,} tokens"),
    ]
    if parallel.num_gpus > 1:
        of_gpu = model.weight_bytes_of_gpu(parallel), _kv_bytes_of_gpu(model, parallel)
        weights, cache = map(format_bytes, of_gpu)
        told = f"{weights} of weights, {cache} of KV cache a token"
        rows.append((f"on each of {parallel.num_gpus} GPUs", told))
    notes = tuple(f"not modelled: {each}" for each in model.not_modelled)
    return [
        Table((model.name, ""), tuple(rows), words=("",)),
        Table(_ATTENTION, _attention_rows(model), words=("attention",)),
        Table(("layers", "MLP"), tuple(_mlp_rows(model)), words=("MLP",)),
        Table(("weights", "number", "dtype", "bytes"), _weight_rows(model), words=("dtype",), notes=notes),
    ]


def _attention_rows(model: ModelSpec) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            str(kind.num_layers),
            "latent" if kind.is_latent else "sliding" if kind.window else "full",
            str(kind.num_heads),
            MISSING if kind.is_latent else str(kind.num_kv_heads),
            f"{kind.window:,}" if kind.window else MISSING,
            format_bytes(kind.num_layers * kind.kv_elements * model.kv_element_bytes),
        )
        for kind in model.attention_kinds
    )


def _mlp_rows(model: ModelSpec) -> list[tuple[str, str]]:
    num_dense, experts = model.num_layers - model.num_expert_layers, model.experts
    rows = [(str(num_dense), f"dense, {model.intermediate_size:,} wide")] if num_dense else []
    if experts is not None:
        told = f"{experts.num_experts} experts, {experts.num_experts_per_token} a token, each "
        told += f"{experts.intermediate_size:,} wide"
        if experts.shared_intermediate_size:
            told += f"; {experts.shared_intermediate_size:,} more for every token"
        rows.append((str(model.num_expert_layers), told))
    return rows


def _weight_rows(model: ModelSpec) -> tuple[tuple[str, ...], ...]:
    names = {"mlp": "dense MLPs", "shared_experts": "shared experts", "head": "LM head and embedding"}
    names["head"] = "LM head, tied" if model.tie_embeddings else names["head"]
    return tuple(
        (
            names.get(part.name, part.name),
            format_count(part.num_weights),
            part.dtype,
            format_bytes(part.num_bytes),
        )
        for part in model.parts
    )
