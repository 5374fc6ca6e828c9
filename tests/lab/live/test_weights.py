"""Published weights: written to safetensors files by hand, read back into a decoder, mistakes named."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

from cbsim.base.errors import ConfigError
from cbsim.lab.kernels.attention_backends import make_backend
from cbsim.lab.kernels.decoder import Decoder
from cbsim.lab.kernels.shard import Shard
from cbsim.lab.live.weights import Checkpoint
from tests.lab.kernels.references import load_model

CPU = torch.device("cpu")
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    """The format: length of the header, the header, the tensors' bytes."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def make_decoder(**changes: object) -> Decoder:
    shard = Shard(load_model("tiny", **changes))
    return Decoder(shard, make_backend("sdpa", shard, CPU), CPU, max_positions=32)


def published(decoder: Decoder) -> dict[str, Tensor]:
    """Random tensors with the names and shapes of a Llama or Qwen3 checkpoint."""
    model, generator = decoder.shard.model, torch.Generator().manual_seed(9)
    hidden, mlp, size = model.hidden_size, model.intermediate_size, model.head_size
    shapes = {"model.embed_tokens.weight": (model.vocab_size, hidden), "model.norm.weight": (hidden,)}
    for i in range(model.num_layers):
        at = f"model.layers.{i}."
        shapes |= {
            at + "input_layernorm.weight": (hidden,),
            at + "self_attn.q_proj.weight": (model.num_heads * size, hidden),
            at + "self_attn.k_proj.weight": (model.num_kv_heads * size, hidden),
            at + "self_attn.v_proj.weight": (model.num_kv_heads * size, hidden),
            at + "self_attn.o_proj.weight": (hidden, model.num_heads * size),
            at + "post_attention_layernorm.weight": (hidden,),
            at + "mlp.gate_proj.weight": (mlp, hidden),
            at + "mlp.up_proj.weight": (mlp, hidden),
            at + "mlp.down_proj.weight": (hidden, mlp),
        }
        if model.qk_norm:
            shapes |= {at + "self_attn.q_norm.weight": (size,), at + "self_attn.k_norm.weight": (size,)}
    if not model.tie_embeddings:
        shapes["lm_head.weight"] = (model.vocab_size, hidden)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "tie_embeddings": True}], ids=["llama", "qwen3"])
def test_every_weight_lands_in_its_place(changes: dict[str, object], tmp_path: Path) -> None:
    decoder = make_decoder(**changes)
    tensors = published(decoder)
    names = sorted(tensors)
    write(tmp_path / "model-1.safetensors", {name: tensors[name].bfloat16() for name in names[::2]})
    write(tmp_path / "model-2.safetensors", {name: tensors[name] for name in names[1::2]})
    Checkpoint(tmp_path).load_into(decoder)
    stored = {name: t.bfloat16().float() if name in names[::2] else t for name, t in tensors.items()}
    layer, at = decoder.layers[1], "model.layers.1."
    assert torch.equal(decoder.embedding, stored["model.embed_tokens.weight"])
    assert torch.equal(layer.qkv[:128], stored[at + "self_attn.q_proj.weight"])
    assert torch.equal(layer.qkv[128:192], stored[at + "self_attn.k_proj.weight"])
    assert torch.equal(layer.qkv[192:], stored[at + "self_attn.v_proj.weight"])
    assert torch.equal(layer.mlp.gate_up[:256], stored[at + "mlp.gate_proj.weight"])
    assert torch.equal(layer.mlp.gate_up[256:], stored[at + "mlp.up_proj.weight"])
    assert torch.equal(layer.mlp.down, stored[at + "mlp.down_proj.weight"])
    assert torch.equal(decoder.head.norm, stored["model.norm.weight"])
    if changes:
        assert decoder.head.weight is decoder.embedding
        assert layer.key_norm is not None
        assert torch.equal(layer.key_norm, stored[at + "self_attn.k_norm.weight"])
    else:
        assert torch.equal(decoder.head.weight, stored["lm_head.weight"])


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    decoder = make_decoder()
    before = decoder.embedding.clone()
    tensors = published(decoder)
    tensors["lm_head.wait"] = tensors.pop("lm_head.weight")
    tensors["model.norm.weight"] = torch.ones(64)
    write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ConfigError) as caught:
        Checkpoint(tmp_path).load_into(decoder)
    assert caught.value.problems == (
        f"{tmp_path}: model.norm.weight [64] doesn't fill the model's [128]",
        f"{tmp_path}: no tensor 'lm_head.weight'; did you mean 'lm_head.wait'?",
    )
    assert torch.equal(decoder.embedding, before)


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 40, struct.pack("<Q", 4) + b"nope"])
def test_files_that_are_something_else(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match="not a safetensors file"):
        Checkpoint(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \*\.safetensors files there"):
        Checkpoint(tmp_path)
