"""Three ways to lay a ragged batch out for attention, and one answer.

Queries, keys and values are those of the first layer of the live engine's tiny model, for three prompts.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cbsim.lab.live import generate
from cbsim.lab.live.runner import ModelRunner
from cbsim.studies.experiment import Experiment

LENGTHS = (3, 17, 8)
NUM_OUTPUT_TOKENS = 6


class Layout(NamedTuple):
    """What a way to compute attention returns: `(28, heads, head_size)`, and what it took."""

    out: Tensor
    num_rows: int
    """Queries computed."""
    num_places: int
    """Tokens that the keys and values had room for."""
    num_scores: int
    """Products of a query with a key, for each head."""


def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q k / sqrt(d)) v for `(..., n, heads, size)`, each token seeing itself and those before it."""
    group = query.shape[-2] // keys.shape[-2]
    keys, values = keys.repeat_interleave(group, -2), values.repeat_interleave(group, -2)
    scores = torch.einsum("...qhd,...khd->...hqk", query, keys) / math.sqrt(query.shape[-1])
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    return torch.einsum("...hqk,...khd->...qhd", weights, values)


def dense(query: Tensor, keys: Tensor, values: Tensor) -> Layout:
    """A rectangle, every prompt padded to the longest; what comes out of the padding is thrown away."""
    count, longest = len(LENGTHS), max(LENGTHS)
    rectangles = [pad_sequence(packed.split(LENGTHS), batch_first=True) for packed in (query, keys, values)]
    rows = attend(*rectangles)
    out = torch.cat([row[:n] for row, n in zip(rows, LENGTHS, strict=True)])
    return Layout(out, count * longest, count * longest, count * longest**2)


def ragged(query: Tensor, keys: Tensor, values: Tensor) -> Layout:
    """One prompt after the other in a single row; only where each begins is known."""
    parts = zip(*(packed.split(LENGTHS) for packed in (query, keys, values)), strict=True)
    out = torch.cat([attend(*part) for part in parts])
    return Layout(out, sum(LENGTHS), sum(LENGTHS), sum(n * n for n in LENGTHS))


def paged(query: Tensor, keys: Tensor, values: Tensor, block_size: int) -> Layout:
    """Keys and values in blocks that lie anywhere in a cache; a block table says where."""
    num_blocks = [-(-n // block_size) for n in LENGTHS]
    scattered = torch.randperm(sum(num_blocks), generator=torch.Generator().manual_seed(1))
    cache_keys, cache_values = (torch.zeros(sum(num_blocks) * block_size, *keys.shape[1:]) for _ in range(2))
    rows = []
    for table, *own in zip(
        scattered.split(num_blocks), *(x.split(LENGTHS) for x in (query, keys, values)), strict=True
    ):
        position = torch.arange(own[0].shape[0])
        place = table[position // block_size] * block_size + position % block_size
        cache_keys[place], cache_values[place] = own[1], own[2]
        rows.append(attend(own[0], cache_keys[place], cache_values[place]))
    return Layout(torch.cat(rows), sum(LENGTHS), len(cache_keys), sum(n * n for n in LENGTHS))


def compare_paths(runner: ModelRunner, prompts: list[list[int]], block_size: int) -> None:
    """Print a line for each path."""
    decoder = runner.decoder
    tokens = torch.tensor([token for prompt in prompts for token in prompt])
    positions = torch.cat([torch.arange(n) for n in LENGTHS])
    hidden = decoder.embedding[tokens]
    _, *projected = decoder.layers[0].project(hidden, None, positions, decoder.rotary)
    paths = {
        "dense": dense(*projected),
        "ragged": ragged(*projected),
        "paged": paged(*projected, block_size),
    }
    print(f"{'':6}  {'queries':>7}  {'places for keys':>15}  {'scores':>6}  same numbers as dense")
    for name, path in paths.items():
        difference = (path.out - paths["dense"].out).abs().max().item()
        verdict = "yes, to 1e-6" if difference < 1e-6 else f"no: {difference:g} off"
        print(f"{name:6}  {path.num_rows:>7}  {path.num_places:>15}  {path.num_scores:>6}  {verdict}")


def compare_answers(runner: ModelRunner, prompts: list[list[int]]) -> None:
    """Print the answers that the engine gives under three schedulers."""
    ways: dict[str, dict[str, Any]] = {
        "one at a time": {"type": "vllm", "max_num_seqs": 1},
        "all at once": {"type": "continuous"},
        "in chunks of 4": {"type": "chunked_prefill", "chunk_size": 4, "max_tokens_per_step": 6},
    }
    for name, scheduler in ways.items():
        answers = generate(prompts, NUM_OUTPUT_TOKENS, runner=runner, num_blocks=64, scheduler=scheduler)
        print(f"{name:14}  {'  '.join(str(answer.token_ids) for answer in answers)}")


def main() -> None:
    """Draw three prompts and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--block-size", type=int, default=4)
    block_size = parser.parse_args().block_size
    torch.set_num_threads(1)
    model = Experiment.load(Path(__file__).with_name("run.yaml")).model
    runner = ModelRunner(model, torch.device("cpu"), num_blocks=64, block_size=block_size)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, model.vocab_size, n).tolist() for n in LENGTHS]
    with torch.inference_mode():
        compare_paths(runner, prompts, block_size)
    print()
    compare_answers(runner, prompts)


if __name__ == "__main__":
    main()
