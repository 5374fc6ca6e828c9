"""A request's tokens are the same however it is served: alone, batched, chunked, preempted, swapped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from cbsim.base.errors import ConfigError
from cbsim.core.layout import RESUMED
from cbsim.core.verbs import preempt
from cbsim.lab.live import Generation, SamplingParams, generate
from cbsim.lab.live.runner import ModelRunner
from cbsim.schedulers.paged import decide as paged_decide
from cbsim.schedulers.preemptive import PreemptiveScheduler
from tests.lab.kernels.references import load_model, naive_logits

BLOCK_SIZE = 4
LENGTHS = (5, 23, 40, 9, 31, 16)
NUM_OUTPUT = 12
SAMPLED = SamplingParams(0.9, top_k=50, top_p=0.95)
KINDS = [SamplingParams(), SamplingParams(0.7), SAMPLED]


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    model = load_model("tiny", max_model_len=256)
    return ModelRunner(model, torch.device("cpu"), num_blocks=100, block_size=BLOCK_SIZE, seed=5)


def prompts() -> list[list[int]]:
    """Random prompts, of which three share a prefix."""
    rng = np.random.default_rng(7)
    drawn = [rng.integers(0, 512, length).tolist() for length in LENGTHS]
    return [
        drawn[0],
        drawn[1],
        drawn[1][:20] + drawn[2][20:],
        drawn[3],
        drawn[1][:17] + drawn[4][17:],
        drawn[5],
    ]


def params() -> list[SamplingParams]:
    return [KINDS[place % len(KINDS)] for place in range(len(LENGTHS))]


@pytest.fixture(scope="module")
def alone(runner: ModelRunner) -> list[list[int]]:
    """Each prompt served on its own."""
    answers = []
    for place, (prompt, one) in enumerate(zip(prompts(), params(), strict=True)):
        (answer,) = generate(
            [prompt], NUM_OUTPUT, runner=runner, num_blocks=100, sampling=one, streams=[str(place)]
        )
        answers.append(answer.token_ids)
    return answers


def serve(runner: ModelRunner, num_blocks: int = 100, **changes: Any) -> list[Generation]:
    settings = {"sampling": params(), **changes}
    return generate(prompts(), NUM_OUTPUT, runner=runner, num_blocks=num_blocks, **settings)


def tokens(answers: list[Generation]) -> list[list[int]]:
    return [answer.token_ids for answer in answers]


def test_greedy_tokens_are_those_of_dense_attention_in_float64(
    runner: ModelRunner, alone: list[list[int]]
) -> None:
    for place in (0, 3):
        sequence = prompts()[place] + alone[place]
        logits = naive_logits(runner.decoder, sequence)
        first = len(prompts()[place]) - 1
        assert alone[place] == logits[first:-1].argmax(-1).tolist()


def test_sampled_tokens_are_not_the_greedy_ones(runner: ModelRunner, alone: list[list[int]]) -> None:
    greedy = tokens(serve(runner, sampling=SamplingParams()))
    assert [greedy[place] == alone[place] for place in range(6)] == [True, False, False] * 2


SCHEDULERS: dict[str, dict[str, Any]] = {
    "all at once": {"type": "vllm", "async_scheduling": False},
    "asynchronous": {"type": "vllm", "async_scheduling": True},
    "chunks of 1": {"type": "vllm", "chunk_size": 1, "max_tokens_per_step": 6},
    "chunks of 3": {"type": "vllm", "chunk_size": 3, "max_tokens_per_step": 7},
    "chunks of 7": {"type": "chunked_prefill", "chunk_size": 7, "max_tokens_per_step": 16},
    "a budget of 10": {"type": "preemptive", "chunk_size": 64, "max_tokens_per_step": 10},
    "static": {"type": "static", "max_num_seqs": 4, "max_model_len": 60},
    "continuous": {"type": "continuous"},
    "prompts first": {"type": "continuous", "prefill_first": True},
    "two seats": {"type": "vllm", "max_num_seqs": 2},
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("prefix_caching", [False, True], ids=["", "cached"])
def test_batched_and_chunked(
    runner: ModelRunner, alone: list[list[int]], name: str, prefix_caching: bool
) -> None:
    answers = serve(runner, scheduler=SCHEDULERS[name], prefix_caching=prefix_caching)
    assert tokens(answers) == alone


@pytest.mark.parametrize("type", ["vllm", "preemptive"])
@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("prefix_caching", [False, True], ids=["", "cached"])
def test_after_preemption_by_recompute(
    runner: ModelRunner, alone: list[list[int]], type: str, async_scheduling: bool, prefix_caching: bool
) -> None:
    scheduler = {"type": type, "async_scheduling": async_scheduling}
    answers = serve(runner, 24, scheduler=scheduler, prefix_caching=prefix_caching)
    assert sum(answer.num_preemptions for answer in answers) > 0
    assert tokens(answers) == alone


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
def test_after_swap(runner: ModelRunner, alone: list[list[int]], async_scheduling: bool) -> None:
    scheduler = {"type": "preemptive", "preemption": "swap", "async_scheduling": async_scheduling}
    moved: list[int] = []
    move = runner.move
    runner.move = lambda moves: (moved.append(len(moves.out) + len(moves.back)), move(moves))  # type: ignore
    try:
        answers = serve(runner, 24, scheduler=scheduler)
    finally:
        del runner.move
    assert sum(moved) >= 2
    assert tokens(answers) == alone


def evict_who_came_back(self: Any, step: Any) -> None:
    """Decide as ever, then take who was resumed in this step out of it again, the first two times."""
    paged_decide(self, step)
    end = self.log.lengths.events
    for row in self.log.events[end - step.num_decisions : end]:
        request = self.requests[row.request]
        if row.event == RESUMED and request.num_preemptions < 3:
            preempt(self, step, request)


class Fickle(PreemptiveScheduler):
    """Evicts requests whose KV is about to come back."""

    decide = evict_who_came_back


def test_after_a_swap_that_is_undone_before_the_kv_has_come_back(
    runner: ModelRunner, alone: list[list[int]]
) -> None:
    answers = serve(runner, 24, scheduler={"type": f"{__name__}:Fickle", "preemption": "swap"})
    assert max(answer.num_preemptions for answer in answers) == 3
    assert tokens(answers) == alone


@pytest.mark.parametrize("graph_decodes", [1, 3, 40])
def test_steps_of_decodes_padded_to_the_size_of_a_graph(alone: list[list[int]], graph_decodes: int) -> None:
    model = load_model("tiny", max_model_len=256)
    settings = {"num_blocks": 100, "block_size": BLOCK_SIZE, "seed": 5, "graph_decodes": graph_decodes}
    runner = ModelRunner(model, torch.device("cpu"), **settings)
    runner.warm_up()
    assert runner.graphs is not None
    sizes: list[int] = []
    hidden = runner.graphs.hidden
    runner.graphs.hidden = lambda parts: (sizes.append(len(parts)), hidden(parts))[1]  # type: ignore
    assert tokens(serve(runner, 24)) == alone
    assert sizes
    assert max(sizes) <= graph_decodes


def test_prefixes_are_found(runner: ModelRunner, alone: list[list[int]]) -> None:
    scheduler = {"type": "vllm", "max_num_seqs": 1, "async_scheduling": False}
    answers = serve(runner, scheduler=scheduler, prefix_caching=True)
    assert [answer.num_cached_tokens for answer in answers] == [0, 0, 20, 0, 16, 0]
    assert tokens(answers) == alone


def test_another_seed_samples_other_tokens(runner: ModelRunner, alone: list[list[int]]) -> None:
    answers = tokens(serve(runner, seed=1))
    assert [answers[place] == alone[place] for place in range(6)] == [True, False, False] * 2


def test_mistakes_in_prompts(runner: ModelRunner) -> None:
    with pytest.raises(ConfigError) as caught:
        generate([[1], []], [3, 4, 5], runner=runner, num_blocks=9)
    assert caught.value.problems == (
        "num_output_tokens: got 3 of them for 2 prompts",
        "prompt 1: empty; expected at least one token",
    )
    with pytest.raises(ConfigError, match="prompt 1: needs 11 KV blocks, the cache has 9"):
        generate([[1], [1] * 40], 3, runner=runner, num_blocks=9)
    with pytest.raises(
        ConfigError, match="prompt 0: 257 tokens with its answer, the model has 256 positions"
    ):
        generate([[1] * 250], 7, runner=runner, num_blocks=100)
