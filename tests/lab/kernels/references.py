"""Attention and a whole decoder written out in float64, and random steps to hold kernels against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from cbsim.lab.kernels.attention_backends import ChunkBatch, DecodeBatch, LayerCache
from cbsim.lab.kernels.decoder import Decoder
from cbsim.lab.kernels.feed_forward import Experts
from cbsim.lab.kernels.quantised import Matrix
from cbsim.lab.kernels.shard import Shard
from cbsim.specs import ModelSpec

CONFIGS = Path(__file__).parents[3] / "configs"
BLOCK_SIZE = 16

# Threads that wait for each other are slow where tests share their cores, and gain nothing at these sizes.
torch.set_num_threads(1)


def load_model(name: str, **changes: Any) -> ModelSpec:
    values = yaml.safe_load((CONFIGS / "models" / f"{name}.yaml").read_text())
    return ModelSpec.model_validate({**values, **changes})


def attention_shard(
    num_heads: int, num_kv_heads: int, head_size: int, dtype: str, kv_dtype: str | None = None
) -> Shard:
    changes = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_size": head_size}
    return Shard(load_model("tiny", **changes, dtype=dtype, kv_dtype=kv_dtype))


def naive_attention(query: Tensor, keys: Tensor, values: Tensor, window: int = 0) -> Tensor:
    """`(q, heads, size)` against `(k, kv_heads, size)`; the last query sees all keys, or `window` of them."""
    num_queries, num_heads, head_size = query.shape
    group = num_heads // keys.shape[1]
    query, keys, values = query.double(), keys.double(), values.double()
    out = torch.empty_like(query)
    for i in range(num_queries):
        num_seen = keys.shape[0] - num_queries + i + 1
        seen = slice(max(0, num_seen - window) if window else 0, num_seen)
        for head in range(num_heads):
            scores = keys[seen, head // group] @ query[i, head] / head_size**0.5
            weights = (scores - scores.max()).exp()
            out[i, head] = weights @ values[seen, head // group] / weights.sum()
    return out


@dataclass
class Paged:
    """Sequences scattered over a cache, what they hold in order, and queries for their last tokens."""

    cache: LayerCache
    tables: list[list[int]]
    keys: list[Tensor]
    values: list[Tensor]
    queries: list[Tensor]

    def expected(self, window: int = 0) -> Tensor:
        """What attention gives for the packed queries."""
        rows = zip(self.queries, self.keys, self.values, strict=True)
        return torch.cat([naive_attention(*row, window) for row in rows])

    def decode_batch(self) -> DecodeBatch:
        longest = max(map(len, self.tables))
        tables = [table + [0] * (longest - len(table)) for table in self.tables]
        lengths = [keys.shape[0] for keys in self.keys]
        return DecodeBatch(torch.tensor(tables).int(), torch.tensor(lengths).int(), max(lengths))

    def chunk_batch(self) -> ChunkBatch:
        num_tokens = [query.shape[0] for query in self.queries]
        contexts = [keys.shape[0] - n for keys, n in zip(self.keys, num_tokens, strict=True)]
        return ChunkBatch.build(
            num_tokens, contexts, list(map(torch.tensor, self.tables)), torch.device("cpu")
        )

    def own(self, packed: Sequence[Tensor]) -> Tensor:
        """The keys or values of the queries' own tokens, packed."""
        return torch.cat([all_of[-len(q) :] for all_of, q in zip(packed, self.queries, strict=True)])


def scatter(
    shard: Shard,
    lengths: Sequence[int],
    num_queries: Sequence[int],
    seed: int,
    device: str = "cpu",
    block_size: int = BLOCK_SIZE,
) -> Paged:
    """Random sequences in a cache whose other entries are huge, so that reading a wrong one shows.

    What they hold is rounded as the cache keeps it.
    """
    rng = np.random.default_rng(seed)
    counts = [-(-length // block_size) for length in lengths]
    blocks = rng.permutation(sum(counts) + 3).tolist()
    cache = LayerCache.allocate(shard, len(blocks), block_size, torch.device(device))
    huge = min(1e4, torch.finfo(shard.kv_dtype).max)
    cache.keys.fill_(huge)
    cache.values.fill_(huge)
    paged = Paged(cache, [], [], [], [])
    for length, count, queries in zip(lengths, counts, num_queries, strict=True):
        table, blocks = blocks[:count], blocks[count:]
        drawn = (_random(rng, length, shard.num_kv_heads, shard) for _ in range(2))
        keys, values = (part.to(shard.kv_dtype).to(shard.dtype) for part in drawn)
        slots = torch.tensor([table[i // block_size] * block_size + i % block_size for i in range(length)])
        cache.write(keys.to(device), values.to(device), slots.to(device))
        paged.tables.append(table)
        paged.keys.append(keys)
        paged.values.append(values)
        paged.queries.append(_random(rng, queries, shard.num_heads, shard))
    return paged


def exact(matrix: Matrix) -> Tensor:
    """The numbers of a matrix in float64."""
    return (matrix if isinstance(matrix, Tensor) else matrix.weight.float() * matrix.scale).double()


def naive_logits(decoder: Decoder, token_ids: Sequence[int]) -> Tensor:
    """Logits of every position of one sequence by the decoder's own weights, dense and in float64.

    Written from the Llama paper (arXiv:2302.13971, sec. 2.2) with rotary positions as complex numbers, and
    for experts from Mixtral's (arXiv:2401.04088, sec. 2.1), token by token.
    """
    shard, model = decoder.shard, decoder.shard.model
    size = shard.head_size
    position = torch.arange(len(token_ids), dtype=torch.float64)
    frequency = model.rope_theta ** (-torch.arange(size // 2, dtype=torch.float64) * 2 / size)
    turn = torch.polar(torch.ones(()).double(), position[:, None] * frequency)[:, None]

    def norm(x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return x
        return x * (x.square().mean(-1, keepdim=True) + model.norm_eps).rsqrt() * weight.double()

    def rotate(x: Tensor) -> Tensor:
        turned = torch.complex(x[..., : size // 2], x[..., size // 2 :]) * turn
        return torch.cat((turned.real, turned.imag), -1)

    def swiglu(x: Tensor, gate_up: Matrix, down: Matrix) -> Tensor:
        gate, up = (x @ exact(gate_up).T).chunk(2, -1)
        return (gate * torch.sigmoid(gate) * up) @ exact(down).T

    def routed(experts: Experts, x: Tensor) -> Tensor:
        logits = experts.router.double() @ x
        chosen = sorted(range(len(logits)), key=lambda i: -float(logits[i]))[: experts.num_chosen]
        shares = logits[chosen].exp() / logits[chosen].exp().sum()
        outputs = [swiglu(x, experts.gate_up[i], experts.down[i]) for i in chosen]
        return sum((share * out for share, out in zip(shares, outputs, strict=True)), torch.zeros_like(x))

    hidden = decoder.embedding[torch.tensor(token_ids)].double()
    for number, layer in enumerate(decoder.layers):
        heads = (norm(hidden, layer.input_norm) @ exact(layer.qkv).T).unflatten(-1, (-1, size))
        query, keys, values = heads.split([shard.num_heads, shard.num_kv_heads, shard.num_kv_heads], 1)
        query, keys = rotate(norm(query, layer.query_norm)), rotate(norm(keys, layer.key_norm))
        attended = naive_attention(query, keys, values, shard.window_of(number)).flatten(1)
        hidden = hidden + attended @ exact(layer.o).T
        normed = norm(hidden, layer.mlp_norm)
        if layer.mlp is not None:
            hidden = hidden + swiglu(normed, layer.mlp.gate_up, layer.mlp.down)
        if layer.experts is not None:
            hidden = hidden + torch.stack([routed(layer.experts, row) for row in normed])
    return norm(hidden, decoder.head.norm) @ decoder.head.weight.double().T


def _random(rng: np.random.Generator, tokens: int, heads: int, shard: Shard) -> Tensor:
    return torch.from_numpy(rng.standard_normal((tokens, heads, shard.head_size))).to(shard.dtype)
