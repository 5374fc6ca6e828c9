"""A batch of prompts through the live engine: `generate`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import numpy as np

from cbsim.base.errors import ConfigError
from cbsim.base.records import packed
from cbsim.core.building import KvGroup, KvPool, PoolParts
from cbsim.core.driver import Parts
from cbsim.core.layout import REQUEST
from cbsim.core.stepping import StepwiseWorld
from cbsim.lab.kernels.sampling import SamplingParams
from cbsim.lab.live.live_engine import LiveEngine, any_step_s, live_engine
from cbsim.lab.live.runner import ModelRunner
from cbsim.lab.live.tokens import TokenBook
from cbsim.observers.audience import Audience
from cbsim.schedulers import SCHEDULERS
from cbsim.schedulers.scheduler import Means
from cbsim.workload.request import Request, Segments


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to one prompt."""

    token_ids: list[int]
    num_cached_tokens: int
    """Tokens of the prompt that the prefix cache had at the first admission."""
    num_preemptions: int


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
    requests, params = _requests(prompts, num_output_tokens, sampling, streams, runner.block_size)
    config_values = {"type": "vllm", **(scheduler or {})}
    rung = SCHEDULERS.get(config_values["type"])
    config = rung.Config.model_validate(config_values)
    model = runner.decoder.shard.model
    means = Means(
        num_blocks=num_blocks,
        block_size=runner.block_size,
        block_bytes=1,
        host_link_bytes_per_s=inf,  # Moving KV costs nothing, so `preemption: cheaper` always swaps.
        max_model_len=model.max_model_len,
        seed=seed,
    )
    windows = runner.windows if any(runner.windows) else ()
    if windows and rung.reserves_ahead:
        raise ConfigError(f"scheduler {config.type}: keeps every token; allowed: a runner without windows")
    numbers = rung.numbers(config, means)
    unknown_first = config.reuses_unknown_blocks_first
    book = TokenBook(model.vocab_size, seed, params)
    pool = KvPool(
        num_blocks,
        runner.block_size,
        prefix_caching,
        unknown_first,
        has_identities=True,
        groups=tuple(KvGroup(window, runner.block_size) for window in windows),
        max_model_len=model.max_model_len,
    )
    world = StepwiseWorld(
        Parts(rung.rules(), any_step_s),
        [PoolParts(None, pool, numbers, num_in_flight=2 if config.async_scheduling else 1)],
        prefill_s=[float],
        job_length=rung.job_length(config, seed),
        make_replica=partial(LiveEngine, runner=runner, book=book, audience=Audience(())),
    )
    engine = live_engine(world)
    _submit(engine, requests, prompts, lambda request: rung.rejection(request, numbers, means))
    engine.call(0.0)
    while engine.under_way:
        end_s = engine.compute()
        engine.end_step()
        engine.call(end_s)
    if engine.num_outstanding:
        raise RuntimeError(f"the scheduler left {engine.num_outstanding} requests unserved")
    return [
        Generation(book.answer(request.request_id), request.num_cached_tokens, request.num_preemptions)
        for request in requests
    ]


def _requests(
    prompts: Sequence[Sequence[int]],
    num_output_tokens: int | Sequence[int],
    sampling: SamplingParams | Sequence[SamplingParams],
    streams: Sequence[str] | None,
    block_size: int,
) -> tuple[list[Request], dict[str, SamplingParams]]:
    """The prompts as requests, named by their streams, and how each is sampled."""
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
    requests = [
        Request(name, 0.0, len(prompt), count, prompt=_segments(prompt, block_size))
        for name, prompt, count in zip(names, prompts, outputs, strict=True)
    ]
    return requests, dict(zip(names, params, strict=True))


def _submit(
    engine: LiveEngine,
    requests: Sequence[Request],
    prompts: Sequence[Sequence[int]],
    rejection: Callable[[Any], str],
) -> None:
    problems = []
    longest = engine.runner.max_positions
    for place, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
        length = request.num_prompt_tokens + request.num_output_tokens
        if length > longest:
            problems.append(
                f"prompt {place}: {length} tokens with its answer, the model has {longest} positions"
            )
            continue
        engine.book.add_prompt(request, prompt)
        if not engine.submit(request):
            problems.append(f"prompt {place}: {rejection(packed([request], REQUEST)[0])}")
    if problems:
        raise ConfigError(*problems)


def _segments(prompt: Sequence[int], block_size: int) -> Segments:
    """A segment a block, named by its content: prompts share the blocks of equal prefixes."""
    tokens = np.asarray(prompt, dtype=np.int64)
    blocks = [tokens[start : start + block_size] for start in range(0, len(tokens), block_size)]
    return tuple((hashlib.sha256(block.tobytes()).hexdigest(), len(block)) for block in blocks)
