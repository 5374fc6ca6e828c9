"""How layers share KV blocks, by hand and against what vLLM's own planning gave for public models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cbsim.base.units import GIB
from cbsim.specs.kv_plan import KvPlan, LayerGroup, LayerKind, plan_kv_cache

RECORDED = Path(__file__).parents[3] / "shared" / "vllm-oracle" / "further" / "memory.json"
PLANS = json.loads(RECORDED.read_text()) if RECORDED.exists() else []
LAYERS = {"gpt-oss-20b": ((12, 128), (12, 0)), "gemma-3-27b": ((52, 1024), (10, 0))}
"""Layers of the models that have windows: `(how many, window)`."""


def plan_of(row: dict[str, Any]) -> KvPlan:
    group = row["groups"][0]
    token_bytes = group["page_bytes_per_layer"] // group["block_size"]
    layers = LAYERS.get(row["model"], ((row["num_layers"], 0),))
    kinds = [LayerKind(num_layers, token_bytes, window) for num_layers, window in layers]
    return plan_kv_cache(kinds, group["block_size"], is_hybrid=not row["disable_hybrid_kv_cache_manager"])


@pytest.mark.skipif(not PLANS, reason="what vLLM plans is not at hand")
@pytest.mark.parametrize("place", range(len(PLANS) or 1))
def test_memory_is_planned_as_vllm_does(place: int) -> None:
    row = PLANS[place]
    plan = plan_of(row)
    num_blocks = plan.num_blocks(row["available_gib"] * GIB)
    under_way = row["max_num_batched_tokens"] * (2 if row["async_scheduling"] else 1)
    assert sorted((group.window > 0, group.num_layers) for group in plan.groups) == sorted(
        (group["kind"] == "sliding", group["layers"]) for group in row["groups"]
    )
    assert plan.block_bytes == row["bytes_per_block"]
    assert num_blocks == row["num_blocks"]
    assert plan.num_tokens(num_blocks, row["max_model_len"], under_way) == row["kv_cache_size_tokens"]
    concurrency = num_blocks / plan.num_blocks_of(row["max_model_len"], under_way)
    assert concurrency == pytest.approx(row["max_concurrency"], abs=1e-6)


def test_kinds_that_are_nearly_as_large_make_a_group_each() -> None:
    plan = plan_kv_cache([LayerKind(10, 8, 64), LayerKind(14, 8)], 16)
    assert plan.groups == (LayerGroup(64, 10), LayerGroup(0, 14))  # 14 < 1.5 x 10
    assert plan.block_bytes == 14 * 16 * 8


def test_the_larger_kind_is_dealt_into_groups_of_the_smaller_ones_size() -> None:
    plan = plan_kv_cache([LayerKind(7, 8, 64), LayerKind(3, 8)], 16)
    assert plan.groups == (LayerGroup(64, 3), LayerGroup(64, 2), LayerGroup(64, 2), LayerGroup(0, 3))
    # A request of 1,000 tokens: 63 of them full blocks; each window holds 63 + 32 tokens and one block more.
    assert plan.num_blocks_of(1000, 32) == 63 + 3 * (6 + 1)


def test_one_group_keeps_every_token_where_groups_are_not_wanted() -> None:
    plan = plan_kv_cache([LayerKind(7, 8, 64), LayerKind(3, 8)], 16, is_hybrid=False)
    assert plan.groups == (LayerGroup(0, 10),)
    assert plan.num_blocks_of(1000, 32) == 63
