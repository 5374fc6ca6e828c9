"""cbsim against the oracle in drawn cases of speculation, connectors, windows, pipelines and further options.

A case has the form of vLLM's recordings, so that one that differs can be kept as a file.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest

import cbsim
from cbsim.base.binding import can_compile
from tests.oracle.oracle import NeverEndsError, replay_case
from tests.oracle.step import Row
from tests.vllm_cases import IN_TABLES, difference, experiment_of, stepwise_rows, table_rows, write_trace

NUM_CASES = int(os.environ.get("CBSIM_ORACLE_CASES", "240"))
FIRST_SEED = int(os.environ.get("CBSIM_ORACLE_SEED", "0"))
FEATURES = ("speculative", "connector", "kv_groups", "pipeline", "further")
ENGINES = ("compiled", "interpreted") if can_compile() else ("interpreted",)
FEWEST = {
    "drafts": 40,
    "accepted": 40,
    "padded": 5,
    "skip_drafts": 20,
    "preempted": 15,
    "load_started": 15,
    "received": 15,
    "failed": 3,
    "sent": 5,
    "read_sync": 5,
    "cached": 30,
}
"""How many of the first 240 cases must show each key in some row."""


pytestmark = pytest.mark.xdist_group("core-vllm")


@pytest.mark.parametrize("feature", FEATURES)
def test_cbsim_decides_what_the_oracle_decides(feature: str, tmp_path: Path) -> None:
    num_compared, trace = 0, tmp_path / "requests.jsonl"
    for seed in range(FIRST_SEED, FIRST_SEED + NUM_CASES // len(FEATURES)):
        case, wanted = drawn(seed, feature), replayed(seed, feature)
        if wanted is None:
            continue
        num_compared += 1
        write_trace(case, trace)
        begun = [row for row in wanted if row["start"] is not None]
        engine = ENGINES[seed % len(ENGINES)]
        result = cbsim.run(experiment_of(case, trace, engine))
        found = difference(table_rows(result), begun, IN_TABLES)
        assert found is None, (engine, found, case)
        found = difference(stepwise_rows(experiment_of(case, trace, "interpreted")), wanted)
        assert found is None, (found, case)
    assert num_compared > NUM_CASES // len(FEATURES) // 2


def test_the_cases_show_what_they_are_about() -> None:
    seen: Counter[str] = Counter()
    for feature in FEATURES:
        for seed in range(240 // len(FEATURES)):
            rows = replayed(seed, feature) or []
            seen.update({key for row in rows for key in FEWEST if row.get(key)})
    assert {key: seen[key] for key in FEWEST if seen[key] < FEWEST[key]} == {}


@cache
def replayed(seed: int, feature: str) -> list[Row] | None:
    """The oracle's rows of a case; `None` if it never ends."""
    try:
        return replay_case(drawn(seed, feature))
    except NeverEndsError:
        return None


def drawn(seed: int, feature: str) -> dict[str, Any]:
    """A case in which one feature comes to bear, mostly with others beside it."""
    random = Random(f"further {feature} {seed}")
    block_size = random.choice([2, 4, 8])
    requests = drawn_requests(random)
    longest = max(each["prompt_tokens"] + each["output_tokens"] for each in requests)
    config: dict[str, Any] = {
        "max_num_seqs": random.choice([2, 3, 6, 16]),
        "max_num_batched_tokens": random.choice([12, 16, 24, 48]),
        "block_size": block_size,
        "enable_chunked_prefill": True,
        "long_prefill_token_threshold": random.choice([0, 0, 8]),
        "policy": random.choice(["fcfs", "fcfs", "priority"]),
        "enable_prefix_caching": random.random() < 0.6,
        "reserve_full_isl": random.random() < 0.6,
        "watermark": random.choice([0.0, 0.0, 0.1]),
        "async_scheduling": random.random() < 0.6,
    }
    num_groups = 1
    if feature == "kv_groups":
        windows = random.sample([3, 5, 8, 12], random.choice([1, 1, 2]))
        groups = [{"kind": "sliding", "window": window} for window in windows]
        if random.random() < 0.8:
            groups.insert(random.choice([0, len(groups)]), {"kind": "full"})
        num_groups = len(groups)
        config["kv_groups"] = groups
        config["prefix_cache_retention_interval"] = random.choice([0, 0, None, 2 * block_size])
    if feature == "pipeline":
        config["pipeline_parallel_size"] = random.choice([2, 3])
    is_drafted = feature == "speculative" or random.random() < 0.3
    if is_drafted and (feature != "pipeline" or config["async_scheduling"]):
        method = random.choice(["eagle", "eagle", "ngram", "draft_model"])
        config["speculative"] = {"method": method, "num_speculative_tokens": random.choice([1, 2, 3])}
        if method == "eagle" and feature == "speculative" and random.random() < 0.3:
            config["speculative"]["disable_lookahead_block_hashes"] = True
    if feature == "connector":
        add_connector(random, config, requests)
    if feature == "further":
        config["max_num_active_seqs"] = random.choice([1, 2, config["max_num_seqs"]])
        config["long_prefill_token_threshold_adaptive"] = random.random() < 0.5
        config["prefill_schedule_interval"] = random.choice([1, 2, 3])
    num_drafted = 8 if "speculative" in config else 0
    need = num_groups * (-(-(longest + num_drafted) // block_size) + 1)
    config["num_gpu_blocks"] = 1 + need + random.choice([0, 1, 2, 4, 8, 30])
    for each in requests:
        if "speculative" in config:
            each["accept"] = [random.randint(0, 3) for _ in range(random.randint(1, 4))]
            if config["speculative"]["method"] == "ngram" and not config["async_scheduling"]:
                each["propose"] = [random.randint(0, 3) for _ in range(random.randint(1, 3))]
    return {"name": f"{feature}_{seed}", "detail": True, "config": config, "requests": requests}


def add_connector(random: Random, config: dict[str, Any], requests: list[dict[str, Any]]) -> None:
    """KV that comes from elsewhere or goes there, sometimes in vain."""
    kind = random.choice(["pd", "pd", "tier_sync", "tier_async"])
    role = random.choice(
        ["kv_consumer", "kv_both"] if kind != "pd" else ["kv_consumer", "kv_producer", "kv_both"]
    )
    policy = "fail" if kind == "tier_async" else random.choice(["fail", "recompute"])
    config["connector"] = {"kind": kind, "role": role, "load_failure_policy": policy}
    for each in requests:
        if kind == "pd":
            if role != "kv_producer" and random.random() < 0.6:
                each |= {"remote_prefill": True, "load_s": random.choice([0.0, 0.5, 1.0, 2.5])}
            if role != "kv_consumer" and random.random() < 0.6:
                each |= {"remote_decode": True, "send_s": random.choice([0.0, 0.5, 2.0])}
        elif random.random() < 0.7:
            each |= {"tier_tokens": random.randint(1, each["prompt_tokens"] + 8)}
            if kind == "tier_async":
                each["load_s"] = random.choice([0.0, 0.5, 2.0])
        if random.random() < 0.2 and (each.get("remote_prefill") or each.get("tier_tokens")):
            each["fail_from_block"] = random.choice([0, 1, 2])


def drawn_requests(random: Random) -> list[dict[str, Any]]:
    """Requests that arrive in bursts and often begin alike."""
    rows: list[dict[str, Any]] = []
    arrival = 0.0
    longest_prompt, longest_answer = random.choice([(20, 16), (40, 8), (12, 30)])
    for number in range(random.randint(2, 10)):
        arrival += random.choice([0.0, 0.0, 0.125, 0.5, 1.0, 3.0, 9.0])
        own = [f"p:r{number}", random.randint(1, longest_prompt)]
        common = [random.choice("st"), random.randint(1, longest_prompt)]
        prompt = random.choice([[own], [common, own], [common, own], [common]])
        if rows and random.random() < 0.3:
            last = random.choice(rows)
            prompt = [*last["prompt"], [f"o:{last['id']}", random.randint(1, last["output_tokens"])], own]
        rows.append(
            {
                "id": f"r{number}",
                "arrival_s": arrival,
                "prompt_tokens": sum(length for _, length in prompt),
                "output_tokens": random.choice([1, random.randint(1, longest_answer)]),
                "priority": random.choice([0, 0, 1, 2]),
                "prompt": prompt,
            }
        )
    return rows
