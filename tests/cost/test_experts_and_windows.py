"""Experts, windows, latent attention: counted naively, and rooflines by hand from the data sheet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cbsim
from cbsim.cost.cost_model import StepShape
from cbsim.cost.experts import chances, num_touched, tokens_of_busiest_gpu
from cbsim.cost.roofline import RooflineConfig, RooflineCost
from cbsim.cost.step_columns import StepColumns, window_pairs
from cbsim.results.step_work import StepWork
from cbsim.specs import ModelSpec, ParallelSpec
from cbsim.specs.model import ExpertsSpec, MlaSpec
from tests.specs.test_specs import load_gpu

PEAK = {"memory_efficiency": 1.0, "compute_efficiency": 1.0}
SMALL = {
    "num_layers": 4,
    "hidden_size": 1024,
    "num_heads": 16,
    "num_kv_heads": 4,
    "head_size": 64,
    "intermediate_size": 4096,
    "vocab_size": 32_000,
    "max_model_len": 65_536,
}
EXPERTS = ExpertsSpec(num_experts=64, num_experts_per_token=4, intermediate_size=512)


def make(parallel: ParallelSpec | int = 1, **model: object) -> RooflineCost:
    spec = ModelSpec.model_validate({"name": "small", **SMALL, **model})
    return RooflineCost(RooflineConfig(type="roofline", **PEAK), spec, load_gpu("h200"), parallel)


@given(
    tile=st.sampled_from([1, 2, 16]),
    tokens=st.integers(1, 80),
    before=st.integers(0, 120),
    window=st.integers(1, 100),
)
def test_pairs_in_a_window_as_counted_one_by_one(tile: int, tokens: int, before: int, window: int) -> None:
    """A tile of queries at places p .. p + tile - 1 computes, for each, all keys that any of them sees."""
    counted = 0
    for first in range(0, tokens, tile):
        places = range(before + first, before + first + tile)
        seen = {key for place in places for key in range(max(0, place - window + 1), place + 1)}
        counted += tile * len(seen)
    assert window_pairs(tile, tokens, before, window) == counted
    columns = StepColumns.from_shapes([StepShape(((tokens, before),), 0, 0, 0, 0)])
    assert cbsim_window(columns, window).pairs(tile).tolist() == [counted]


def cbsim_window(columns: StepColumns, window: int) -> StepColumns:
    return StepColumns(
        columns.chunks,
        columns.num_finishing_chunks,
        columns.num_decodes,
        columns.decode_context,
        columns.max_decode_context,
        window=window,
    )


def test_experts_touched_when_routing_is_even() -> None:
    """64 experts, 4 a token: 64 (1 - (60/64)^T) of them; on one of 8 GPUs an eighth."""
    tokens = np.array([0, 1, 7, 1000])
    expected = 64 * (1.0 - (60 / 64) ** tokens)
    assert num_touched(EXPERTS, 0.0, 1, tokens) == pytest.approx(expected)
    assert num_touched(EXPERTS, 0.0, 8, tokens) == pytest.approx(expected / 8)
    assert tokens_of_busiest_gpu(EXPERTS, 0.0, 8) == pytest.approx(4 / 8)


def test_skewed_routing_keeps_the_number_of_experts_a_token() -> None:
    found = chances(EXPERTS, 1.2)
    assert found.sum() == pytest.approx(4.0)
    assert found.max() <= 1.0
    assert (np.diff(found) <= 0).all()
    assert num_touched(EXPERTS, 1.2, 1, np.array([16]))[0] < num_touched(EXPERTS, 0.0, 1, np.array([16]))[0]
    assert tokens_of_busiest_gpu(EXPERTS, 1.2, 8) > 4 / 8


def test_a_decode_reads_its_experts_alone() -> None:
    """One token: 4 of 64 experts a layer, 3 x 1,024 x 512 weights each, in bf16 at 4.8 TB/s; then in FP8."""
    none = make(experts=EXPERTS.model_copy(update={"num_experts": 4, "intermediate_size": 1}))
    some, shape = make(experts=EXPERTS), StepShape((), 0, 1, 100, 100)
    seconds = some.step_s(shape) - none.step_s(shape)
    assert seconds == pytest.approx(4 * 4 * 3 * 1024 * 512 * 2 / 4.8e12, rel=0.05)
    quantised = make(experts=EXPERTS, weight_dtypes={"experts": "fp8"})
    assert some.step_s(shape) - quantised.step_s(shape) == pytest.approx(seconds / 2, rel=0.05)


def test_many_tokens_compute_the_experts_they_use() -> None:
    """8,192 tokens: 2 FLOP for each weight of 4 experts, 989.4 TFLOP/s; 8 GPUs by experts an eighth."""
    tokens = np.array([8192])
    whole_s = make(experts=EXPERTS).experts_s(tokens)[0]
    assert whole_s == pytest.approx(4 * 8192 * 4 * 2 * 3 * 1024 * 512 / 989.4e12, rel=1e-6)
    dealt = make(ParallelSpec(tensor=8, expert=8), experts=EXPERTS)
    assert dealt.experts_s(tokens)[0] == pytest.approx(whole_s / 8, rel=1e-6)


def test_a_sliding_layer_reads_its_window() -> None:
    """Two of four layers reach back 1,024 tokens: a decode after 50,000 reads 1,024 x 2 + 50,000 x 2 entries
    of 2 x 4 x 64 elements of 2 bytes.
    """
    sliding = make(sliding_window=1024, num_sliding_layers=2)
    base = sliding.step_s(StepShape((), 0, 1, 1, 1, 1))
    grown_s = sliding.step_s(StepShape((), 0, 1, 50_000, 50_000, 1024)) - base
    assert grown_s == pytest.approx((2 * 1023 + 2 * 49_999) * 2 * 4 * 64 * 2 / 4.8e12, rel=1e-6)
    unknown = sliding.step_s(StepShape((), 0, 1, 50_000, 50_000))
    assert unknown == sliding.step_s(StepShape((), 0, 1, 50_000, 50_000, 1024))


def test_latent_attention_reads_one_vector_a_token() -> None:
    """(512 + 64) elements a token and layer, on every GPU the same."""
    mla = MlaSpec(kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128)
    for gpus in (1, 4):
        cost = make(gpus, mla=mla)
        grown_s = cost.decode_s(1, 50_000, 50_000) - cost.decode_s(1, 1, 1)
        assert grown_s == pytest.approx(49_999 * 4 * 576 * 2 / 4.8e12, rel=1e-6)


def test_ranks_share_experts_and_not_attention() -> None:
    """Tokens of other ranks cost experts and their exchange, nothing else."""
    ranks = make(ParallelSpec(tensor=1, data=4, expert=4), experts=EXPERTS)
    alone, among = StepShape((), 0, 8, 800, 100), StepShape((), 0, 8, 800, 100, 0, 24)
    more_s = ranks.step_s(among) - ranks.step_s(alone)
    experts_s = np.diff(ranks.experts_s(np.array([8, 32])))[0]
    exchange_s = 24 * 4 * 2 * 1024 * 2 * (4 / 4) * (3 / 4) / load_gpu("h200").link_bytes_per_s
    assert more_s == pytest.approx(experts_s + exchange_s, rel=1e-9)


def test_steps_of_a_model_with_windows_tell_what_windows_hold() -> None:
    """Of every step: pairs and keys of its slices, counted naively."""
    window = 48
    config = {
        "name": "windows",
        "seed": 3,
        "model": {"name": "small", **SMALL, "sliding_window": window, "num_sliding_layers": 2},
        "gpu": "h200",
        "workload": {
            "type": "synthetic",
            "num_requests": 12,
            "arrivals": {"type": "poisson", "rate_per_s": 500.0},
            "prompt_tokens": {"type": "uniform", "min": 10, "max": 200},
            "output_tokens": {"type": "uniform", "min": 1, "max": 60},
        },
        "scheduler": {"type": "vllm", "max_tokens_per_step": 64, "max_num_seqs": 8},
        "cost_model": {"type": "roofline"},
        "kv_cache": {"num_blocks": 400},
        "output": {"batches": True},
    }
    result = cbsim.run(config)
    steps, batches = result.steps, result.batches
    pairs, keys = np.zeros(len(steps), int), np.zeros(len(steps), int)
    for step, tokens, before in zip(
        batches["step"], batches["num_tokens"], batches["num_computed_tokens"], strict=True
    ):
        pairs[step] += sum(min(place + 1, window) for place in range(before, before + tokens))
        keys[step] += min(before, window - 1) + tokens
    assert steps["num_window_pairs"].tolist() == pairs.tolist()
    assert steps["num_window_keys"].tolist() == keys.tolist()
    model = ModelSpec.model_validate(result.config["model"])
    work = StepWork.of(steps, model)
    layer_flop, tokens = 4 * 16 * 64, steps["num_prefill_tokens"] + steps["num_decode_tokens"]
    attention = 2 * layer_flop * (steps["num_attention_pairs"] + steps["num_window_pairs"])
    expected = tokens * model.dense_flop_per_token + steps["num_logits"] * model.logits_flop + attention
    assert work.flop(model).tolist() == expected.tolist()
