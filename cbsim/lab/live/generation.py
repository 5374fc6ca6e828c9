"""A batch of prompts through the live engine: `generate`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cbsim.base.errors import ConfigError
from cbsim.cluster.engine.recorder import Recorder
from cbsim.lab.kernels.sampling import SamplingParams
from cbsim.lab.live.live_engine import LiveEngine, wall_clock
from cbsim.lab.live.numbered_blocks import LivePool
from cbsim.lab.live.runner import ModelRunner
from cbsim.lab.live.tokens import TokenBook
from cbsim.schedulers import SCHEDULERS, Prices, Resources
from cbsim.workload.request import Request, Segments

NO_PRICES = Prices(
    recompute_s=lambda num_tokens: num_tokens * 1.0, move_s=lambda num_blocks: 0.0, block_bytes=1
)
"""For `preemption: cheaper`: moving costs nothing, so it always swaps."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to one prompt."""

    token_ids: list[int]
    num_cached_tokens: int
    """Tokens of the prompt that the prefix cache had at the first admission."""
    num_preemptions: int


@dataclass(frozen=True, slots=True)
class _Batch:
    requests: list[Request] = field(default_factory=list)
    sampling: dict[str, SamplingParams] = field(default_factory=dict)


def generate(
    prompts: Sequence[Sequence[int]],
    num_output_tokens: int | Sequence[int],
    *,
    runner: ModelRunner,
    num_blocks: int,
    sampling: SamplingParams | Sequence[SamplingParams] = SamplingParams(),  # noqa: B008
    scheduler: dict[str, Any] | None = None,
    prefix_caching: bool = False,
    seed: int = 0,
    streams: Sequence[str] | None = None,
) -> list[Generation]:
    """Answer prompts, given as token ids, all present from the start, through a scheduler.

    It is `vllm` unless `scheduler` says otherwise, and has `num_blocks` blocks of the runner's KV cache.
    Answers are as long as asked: there is no end token. A prompt's random numbers depend on `seed` and its
    stream, by default its place. Raises `ConfigError` with a line for each prompt that can't be served.
    """
    batch = _make_batch(prompts, num_output_tokens, sampling, streams, runner.block_size)
    config_values = {"type": "vllm", **(scheduler or {})}
    scheduler_class = SCHEDULERS.get(config_values["type"])
    config = scheduler_class.Config.model_validate(config_values)
    pool = LivePool(
        num_blocks,
        runner.block_size,
        prefix_caching=prefix_caching,
        unknown_first=config.reuses_unknown_blocks_first,
    )
    model = runner.decoder.shard.model
    made = scheduler_class(config, Resources(pool, NO_PRICES, model.max_model_len, seed))
    book = TokenBook(model.vocab_size, seed, batch.sampling)
    engine = LiveEngine(made, Recorder(), 2 if config.async_scheduling else 1, runner, book, wall_clock())
    _submit(engine, batch, prompts)
    engine.call(0.0)
    while engine.under_way:
        end_s = engine.compute()
        engine.end_step()
        engine.call(end_s)
    if engine.num_outstanding:
        raise RuntimeError(f"the scheduler left {engine.num_outstanding} requests unserved")
    return [
        Generation(book.answer(request.request_id), request.num_cached_tokens, request.num_preemptions)
        for request in batch.requests
    ]


def _make_batch(
    prompts: Sequence[Sequence[int]],
    num_output_tokens: int | Sequence[int],
    sampling: SamplingParams | Sequence[SamplingParams],
    streams: Sequence[str] | None,
    block_size: int,
) -> _Batch:
    batch = _Batch()
    outputs = [num_output_tokens] * len(prompts) if isinstance(num_output_tokens, int) else num_output_tokens
    params = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else sampling
    names = [str(place) for place in range(len(prompts))] if streams is None else streams
    problems = [
        f"{name}: got {len(given)} of them for {len(prompts)} prompts"
        for name, given in (("num_output_tokens", outputs), ("sampling", params), ("streams", names))
        if len(given) != len(prompts)
    ]
    problems += [f"prompt {i}: empty; expected at least one token" for i, p in enumerate(prompts) if not p]
    if problems:
        raise ConfigError(*problems)
    for place, (prompt, count, name, one) in enumerate(zip(prompts, outputs, names, params, strict=True)):
        request = Request(name, 0.0, len(prompt), count, prompt=_segments(prompt, block_size))
        request.index = place
        batch.requests.append(request)
        batch.sampling[name] = one
    return batch


def _submit(engine: LiveEngine, batch: _Batch, prompts: Sequence[Sequence[int]]) -> None:
    problems = []
    for place, (request, prompt) in enumerate(zip(batch.requests, prompts, strict=True)):
        length = request.num_prompt_tokens + request.num_output_tokens
        longest = engine.runner.max_positions
        too_long = f"{length} tokens with its answer, the model has {longest} positions"
        reason = too_long if length > longest else engine.scheduler.rejection(request)
        if reason is not None:
            problems.append(f"prompt {place}: {reason}")
            continue
        engine.book.add_prompt(request, prompt)
        engine.submit(request)
    if problems:
        raise ConfigError(*problems)


def _segments(prompt: Sequence[int], block_size: int) -> Segments:
    """A segment a block, named by its content: prompts share the blocks of equal prefixes."""
    tokens = np.asarray(prompt, dtype=np.int64)
    blocks = [tokens[start : start + block_size] for start in range(0, len(tokens), block_size)]
    return tuple((hashlib.sha256(block.tobytes()).hexdigest(), len(block)) for block in blocks)
