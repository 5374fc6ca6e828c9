"""Tiers of KV below the GPU: at both speeds, by laws over drawn cases, and by hand."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import pytest

import cbsim
from cbsim.base.binding import can_compile
from cbsim.base.errors import ConfigError
from cbsim.core.building import ChangeParts, TierParts
from cbsim.results.run_log import RunLog
from cbsim.studies.experiment import Experiment
from cbsim.studies.simulation import Setup, simulate_core
from cbsim.testing import Case, differences
from cbsim.workload.request import RequestState
from tests.core.drawn import Setting, chance, draw_requests, pick, request, with_turns

NUM_CASES = 80
SYNC = {"async_scheduling": False}


def setup_of(
    rows: tuple[dict[str, Any], ...],
    tiers: tuple[TierParts, ...],
    *,
    kind: str = "vllm",
    num_blocks: int = 8,
    count: int = 1,
    loads_ahead: bool = True,
    stores_through: bool = True,
    **case: Any,
) -> Setup:
    made = Case(rows, case.pop("settings", SYNC), num_blocks=num_blocks, num_replicas=count, **case)
    setup = Setting(kind, replace(made, prefix_caching=True)).make_setup(with_batches=True)
    cache = replace(setup.pool, has_identities=True)
    changes = ChangeParts() if any(tier.is_shared for tier in tiers) else None
    return replace(
        setup,
        pool=cache,
        tiers=tiers,
        loads_ahead=loads_ahead,
        stores_through=stores_through,
        changes=changes,
    )


def run(setup: Setup, engine: str = "interpreted") -> RunLog:
    log, world, speed = simulate_core(setup, engine)
    assert speed.is_compiled == (engine == "compiled"), speed.notes
    if setup.until_s == inf:
        assert (world.own["num_free"] == world.own["num_blocks"]).all()
    return log


def draw(seed: int, kind: str | None = None) -> Setup:
    random = np.random.default_rng([seed, 4])
    rows = draw_requests(random, 4)
    if chance(random, 0.5):
        rows = with_turns(random, rows)
    need = max(-(-(row["num_prompt_tokens"] + row["num_output_tokens"]) // 4) for row in rows) + 2
    tiers = tuple(
        TierParts(
            pick(random, [1, 5, 1000]),
            pick(random, [0.0, 0.125, 1.0]),
            pick(random, [0.0, 0.5]),
            chance(random, 0.3),
        )
        for _ in range(pick(random, [1, 1, 2]))
    )
    return setup_of(
        rows,
        tiers,
        kind=kind or ("vllm" if seed % 3 else "preemptive"),
        num_blocks=need + pick(random, [0, 2, 10]),
        count=pick(random, [1, 1, 2, 3]),
        loads_ahead=chance(random, 0.6),
        stores_through=chance(random, 0.5),
        settings={
            "max_num_seqs": pick(random, [2, 8]),
            "max_tokens_per_step": pick(random, [8, 64]),
            "async_scheduling": chance(random, 0.5),
        },
        step_s=0.125,
        token_s=pick(random, [0.0, 0.125]),
        concurrency=pick(random, [None, None, 3]),
    )


@pytest.mark.xdist_group("core-vllm")
@pytest.mark.skipif(not can_compile(), reason="numba is missing")
def test_compiled_equals_interpreted() -> None:
    """All as clusters that change, whose rules are compiled for other tests, too."""
    num_loaded = 0
    for seed in range(NUM_CASES):
        setup = replace(draw(seed, "vllm"), changes=ChangeParts())
        log = run(setup)
        assert differences(log, run(setup, "compiled")) == [], seed
        num_loaded += sum(log.num_tokens_from_tiers.values())
    assert num_loaded > 300


def test_laws() -> None:
    """All are served; what is computed and what is found, on the GPU or below, makes up each prompt."""
    for seed in range(NUM_CASES):
        log = run(draw(seed))
        requests = log.requests
        assert (requests["state"] == RequestState.FINISHED).all()
        assert (requests["num_generated_tokens"] == requests["num_output_tokens"]).all()
        computed = log.steps["num_prefill_tokens"].sum() + log.steps["num_decode_tokens"].sum()
        needed = (requests["num_prompt_tokens"] + requests["num_output_tokens"] - 1).sum()
        found = requests["num_cached_tokens"].sum()
        assert log.num_tokens_recomputed is not None
        assert computed == needed - found + log.num_tokens_recomputed


def shared(index: int, at_s: float, number: int) -> dict[str, Any]:
    """A request of 12 tokens, of which 8 are those of a document."""
    return request(index, at_s, 12, 1, prompt=[[f"document {number}", 8], [f"question {index}", 4]])


ROWS = (shared(0, 0.0, 1), shared(1, 5.0, 2), shared(2, 10.0, 3), shared(3, 15.0, 1))
"""Three documents of 2 blocks pass through a cache of 4; the first comes again."""


def test_by_hand() -> None:
    """Steps take 1/8 s, and as much for each token. The last request finds its 8 tokens below the GPU: two
    blocks of 1/4 s after a latency of 1/2 s, from 15 to 16, and computes 4, until 16.625; without a tier 12
    take as long. A load of 1/4 s within the step comes on top of it.
    """
    costs: dict[str, Any] = {"num_blocks": 4, "step_s": 0.125, "token_s": 0.125}
    slow = (TierParts(100, 0.25, 0.5),)
    assert run(setup_of(ROWS, (), **costs)).requests["finished_at_s"][3] == 16.625
    log = run(setup_of(ROWS, slow, **costs))
    assert log.requests["finished_at_s"].tolist()[3] == 16.625
    assert log.requests["num_cached_tokens"].tolist() == [0, 0, 0, 8]
    assert log.requests["first_scheduled_at_s"].tolist()[3] == 16.0
    fast = run(setup_of(ROWS, (TierParts(100, 0.125),), loads_ahead=False, **costs))
    assert fast.requests["finished_at_s"].tolist()[3] == 15.875
    assert fast.steps["transfer_s"].tolist()[3] == 0.25
    assert fast.requests["first_scheduled_at_s"].tolist()[3] == 15.0


@pytest.mark.parametrize("through", [True, False])
def test_a_full_tier_drops_what_was_used_least_recently(through: bool) -> None:
    """Room for 4 blocks: when document 1 comes again, those written since have driven it out; where the GPU's
    cache writes what it drops, later blocks first, its first block is left. With a second tier it lies there.
    """
    rows = (*ROWS, shared(4, 20.0, 3))
    small = TierParts(4, 0.0)
    log = run(setup_of(rows, (small,), num_blocks=3, stores_through=through))
    assert log.requests["num_cached_tokens"].tolist()[:4] == [0, 0, 0, 0 if through else 4]
    two = run(setup_of(rows, (small, TierParts(100, 0.0)), num_blocks=3, stores_through=through))
    assert two.requests["num_cached_tokens"].tolist() == [0, 0, 0, 8, 8]


def test_a_shared_store_serves_every_replica() -> None:
    """Document 1 is computed on one replica and found by the other, which loads it."""
    rows = (shared(0, 0.0, 1), shared(1, 5.0, 1))
    own = run(setup_of(rows, (TierParts(100, 0.0),), count=2))
    assert own.requests["num_cached_tokens"].tolist() == [0, 0]
    together = run(setup_of(rows, (TierParts(100, 0.0, 0.0, True),), count=2))
    assert together.requests["replica"].tolist() == [0, 1]
    assert together.requests["num_cached_tokens"].tolist() == [0, 8]


PLAIN: dict[str, Any] = {
    "model": {"name": "llama-3-8b", "max_model_len": 100_000},
    "gpu": "h200",
    "workload": {
        "type": "synthetic",
        "num_requests": 120,
        "prompt_tokens": {"type": "fixed", "value": 4000},
        "output_tokens": {"type": "fixed", "value": 100},
        "arrivals": {"type": "poisson", "rate_per_s": 0.5},
        "sessions": {"num_turns": {"type": "fixed", "value": 6}},
    },
    "scheduler": {"type": "vllm"},
}


def test_from_a_file() -> None:
    """A cache too small for the sessions under way finds more of them with a host's memory below it."""
    cache = {"prefix_caching": True, "num_blocks": 4000}
    host = {"name": "host", "size_gib": 64, "bandwidth_gb_s": 25}
    without = cbsim.run({**PLAIN, "kv_cache": cache})
    below = cbsim.run({**PLAIN, "kv_cache": {**cache, "tiers": [host]}})
    assert below.summary["num_tokens_from_tiers"]["host"] > 10_000
    assert below.summary["ttft_s"]["mean"] < 0.8 * without.summary["ttft_s"]["mean"]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"kv_cache": {"tiers": [{"size_gib": 1, "bandwidth_gb_s": 1}]}}, "prefix_caching: false"),
        (
            {
                "scheduler": "continuous",
                "kv_cache": {"prefix_caching": True, "tiers": [{"size_gib": 1, "bandwidth_gb_s": 1}]},
            },
            "shares no KV",
        ),
        ({"kv_cache": {"prefix_caching": True, "tiers": [{"size_gib": 0, "bandwidth_gb_s": 1}]}}, "size_gib"),
    ],
)
def test_mistakes(changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Experiment.from_mapping({**PLAIN, **changed})
    assert problem in str(caught.value)
