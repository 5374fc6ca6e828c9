"""Checkpoint: a model's published weights, from a local folder of safetensors files."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cbsim.base.errors import ConfigError
from cbsim.base.registry import did_you_mean
from cbsim.base.units import MIB
from cbsim.lab.kernels.decoder import Decoder
from cbsim.lab.kernels.quantised import unquantised

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
MAX_HEADER_BYTES = 100 * MIB


class _Place(NamedTuple):
    """Where a tensor lies in a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Checkpoint:
    """The tensors of a folder's `*.safetensors` files (github.com/huggingface/safetensors, section Format).

    Names are those of Llama, Mistral and Qwen3 as published. Raises `ConfigError` for files that can't be
    read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ConfigError(f"{folder}: no *.safetensors files there")
        self._places = {name: place for file in files for name, place in _read_header(file)}

    def load_into(self, decoder: Decoder) -> None:
        """Put the weights into a decoder.

        Raises `ConfigError` with a line for each tensor that is missing or has another shape; the decoder is
        then as it was. So it does for models of which a `ModelSpec` leaves open how their router weighs or
        which of their layers slide.
        """
        model = decoder.shard.model
        if model.experts is not None or 0 < model.num_windowed_layers < model.num_layers:
            raise ConfigError(
                f"--weights: {model.name} has experts or a window in some layers; allowed: random weights"
            )
        if decoder.shard.has_fp8_weights:
            raise ConfigError(f"--weights: {model.name} has weights in fp8; allowed: random weights")
        targets = list(self._targets(decoder))
        problems = [problem for target, names in targets for problem in self._misfits(target, names)]
        if problems:
            raise ConfigError(*problems)
        for target, names in targets:
            row = 0
            for name in names:
                rows = _read(self._places[name])
                target[row : row + len(rows)].copy_(rows)
                row += len(rows)

    def _misfits(self, target: Tensor, names: list[str]) -> Iterator[str]:
        """What is wrong with the tensors that go into one of the decoder's."""
        missing = [name for name in names if name not in self._places]
        for name in missing:
            hint = did_you_mean(name, self._places)
            yield f"{self.folder}: no tensor '{name}'{hint if 'did you mean' in hint else ''}"
        if missing:
            return
        shapes = [self._places[name].shape for name in names]
        filled = [sum(shape[0] for shape in shapes if shape), *target.shape[1:]]
        if filled != list(target.shape) or any(shape[1:] != target.shape[1:] for shape in shapes):
            told = ", ".join(f"{name} {list(shape)}" for name, shape in zip(names, shapes, strict=True))
            yield f"{self.folder}: {told} doesn't fill the model's {list(target.shape)}"

    def _targets(self, decoder: Decoder) -> Iterator[tuple[Tensor, list[str]]]:
        """Each of the decoder's tensors, and the published ones that it holds one below the other."""
        yield decoder.embedding, ["model.embed_tokens.weight"]
        for number, layer in enumerate(decoder.layers):
            at = f"model.layers.{number}"
            yield layer.input_norm, [f"{at}.input_layernorm.weight"]
            yield unquantised(layer.qkv), [f"{at}.self_attn.{part}_proj.weight" for part in "qkv"]
            if layer.query_norm is not None and layer.key_norm is not None:
                yield layer.query_norm, [f"{at}.self_attn.q_norm.weight"]
                yield layer.key_norm, [f"{at}.self_attn.k_norm.weight"]
            yield unquantised(layer.o), [f"{at}.self_attn.o_proj.weight"]
            yield layer.mlp_norm, [f"{at}.post_attention_layernorm.weight"]
            if layer.mlp is not None:
                yield (
                    unquantised(layer.mlp.gate_up),
                    [f"{at}.mlp.{part}_proj.weight" for part in ("gate", "up")],
                )
                yield unquantised(layer.mlp.down), [f"{at}.mlp.down_proj.weight"]
        yield decoder.head.norm, ["model.norm.weight"]
        if decoder.head.weight is not decoder.embedding:
            yield decoder.head.weight, ["lm_head.weight"]


def _read_header(file: Path) -> Iterator[tuple[str, _Place]]:
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(stream.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = (8 + size + offset for offset in entry["data_offsets"])
                yield name, _Place(file, entry["dtype"], tuple(entry["shape"]), start, end)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ConfigError(f"{file}: not a safetensors file: {error}") from error


def _read(place: _Place) -> Tensor:
    if place.dtype not in DTYPES:
        raise ConfigError(f"{place.file}: dtype {place.dtype}; allowed: {', '.join(DTYPES)}")
    with place.file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        data = bytearray(mapped[place.start : place.end])
    return torch.frombuffer(data, dtype=DTYPES[place.dtype]).view(place.shape)
