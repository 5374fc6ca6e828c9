"""Experts and windows: tokens are the same alone, batched, chunked and preempted, as with the plain model."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from cbsim.base.errors import ConfigError
from cbsim.lab.kernels.shard import Shard
from cbsim.lab.live import generate
from cbsim.lab.live.runner import ModelRunner, deal_layers
from cbsim.specs.kv_plan import plan_kv_cache
from tests.lab.kernels.references import load_model, naive_logits
from tests.lab.live.test_generate import BLOCK_SIZE, NUM_OUTPUT, SCHEDULERS, params, prompts, serve, tokens

MODELS: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, int]]] = {
    "experts": ({"name": "tiny-experts"}, (0,), (12, 20)),
    "windows, every token kept": ({"name": "tiny-sliding", "sliding_window": 9}, (0,), (12, 20)),
    "windows, four groups": ({"name": "tiny-sliding", "sliding_window": 9}, (9, 9, 9, 0), (8, 34)),
    "a window in all layers": (
        {"name": "tiny", "sliding_window": 6, "num_sliding_layers": 2},
        (6,),
        (64, 16),
    ),
}
"""Models, the windows of their groups of layers, and a budget and blocks that make requests give way."""


def make_runner(name: str, **settings: Any) -> ModelRunner:
    changes, windows, _ = MODELS[name]
    model = load_model(max_model_len=256, **changes)
    sizes = {"num_blocks": 130, "block_size": BLOCK_SIZE, "seed": 5, "windows": windows}
    return ModelRunner(model, torch.device("cpu"), **sizes, **settings)


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def runner(name: str) -> ModelRunner:
    return make_runner(name)


@pytest.fixture(scope="module")
def alone(runner: ModelRunner) -> list[list[int]]:
    """Each prompt served on its own."""
    served = []
    for place, (prompt, one) in enumerate(zip(prompts(), params(), strict=True)):
        settings = {"sampling": one, "streams": [str(place)]}
        (answer,) = generate([prompt], NUM_OUTPUT, runner=runner, num_blocks=130, **settings)
        served.append(answer.token_ids)
    return served


def test_greedy_tokens_are_those_of_the_papers_in_float64(
    runner: ModelRunner, alone: list[list[int]]
) -> None:
    for place in (0, 3):
        logits = naive_logits(runner.decoder, prompts()[place] + alone[place])
        first = len(prompts()[place]) - 1
        assert alone[place] == logits[first:-1].argmax(-1).tolist()


@pytest.mark.parametrize("way", ["all at once", "asynchronous", "chunks of 3", "a budget of 10"])
@pytest.mark.parametrize("prefix_caching", [False, True], ids=["", "cached"])
def test_batched_and_chunked(
    runner: ModelRunner, alone: list[list[int]], way: str, prefix_caching: bool
) -> None:
    answers = serve(runner, 130, scheduler=SCHEDULERS[way], prefix_caching=prefix_caching)
    assert tokens(answers) == alone


@pytest.mark.parametrize("async_scheduling", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("prefix_caching", [False, True], ids=["", "cached"])
def test_after_preemption(
    name: str, runner: ModelRunner, alone: list[list[int]], async_scheduling: bool, prefix_caching: bool
) -> None:
    budget, num_blocks = MODELS[name][2]
    scheduler = {"type": "vllm", "async_scheduling": async_scheduling, "max_tokens_per_step": budget}
    answers = serve(runner, num_blocks, scheduler=scheduler, prefix_caching=prefix_caching)
    assert sum(answer.num_preemptions for answer in answers) > 0
    assert tokens(answers) == alone


def test_decodes_padded_to_the_size_of_a_graph(name: str, alone: list[list[int]]) -> None:
    runner = make_runner(name, graph_decodes=40)
    runner.warm_up()
    assert runner.graphs is not None
    assert tokens(serve(runner, 130)) == alone


def test_layers_are_dealt_out_as_vllm_does() -> None:
    model = load_model("gemma-3-27b")
    plan = plan_kv_cache(model.layer_kinds(), 16)
    groups, places = deal_layers(Shard(model), [group.window for group in plan.groups])
    dealt = [groups.count(number) for number in range(len(plan.groups))]
    assert dealt == [group.num_layers for group in plan.groups]
    assert len(set(zip(groups, places, strict=True))) == model.num_layers


def test_schedulers_that_keep_every_token_have_no_groups() -> None:
    with pytest.raises(ConfigError, match="scheduler static: keeps every token; allowed: a runner without"):
        serve(make_runner("windows, four groups"), 130, scheduler=SCHEDULERS["static"])
