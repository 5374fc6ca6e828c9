"""Clusters as an experiment's file has them: pools by name in keys, routers and autoscalers of one's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import cbsim
from cbsim.base.binding import can_compile
from cbsim.base.errors import ConfigError
from cbsim.show.reader_tables import run_tables
from cbsim.studies.cluster_config import ClusterConfig
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import too_long_notes

TWO = [{"name": "prompts", "role": "prefill"}, {"name": "answers", "role": "decode"}]
PLAIN: dict[str, Any] = {
    "model": "llama-3-8b",
    "gpu": "h200",
    "workload": {"type": "trace", "path": "azure-like.csv", "limit": 60, "rate_scale": 3.0},
    "scheduler": {"type": "vllm"},
}


def test_a_pool_is_named_in_keys() -> None:
    given = {**PLAIN, "cluster": {"pools": TWO}}
    experiment = Experiment.from_mapping(given, ["cluster.pools.answers.count=3", "cluster.pools.0.count=2"])
    assert experiment.cluster is not None
    assert [pool.count for pool in experiment.cluster.pools] == [2, 3]
    sweep = {
        "cluster.pools.prompts.count": [1, 2, 3],
        "cluster.pools.answers.count": [1, 2, 3],
        "where": "cluster.pools.prompts.count + cluster.pools.answers.count == 4",
    }
    points = Experiment.from_mapping({**given, "sweep": sweep}).points()
    counts = [tuple(values.values()) for values, _ in points]
    assert counts == [(1, 3), (2, 2), (3, 1)]
    with pytest.raises(ConfigError, match=r"cluster\.pools\.answer"):
        Experiment.from_mapping(given, ["cluster.pools.answer.count=3"])


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"router": "kv_awar"}, "did you mean 'kv_aware'?"),
        ({"router": {"type": "kv_aware", "weigth": 1}}, "weigth"),
        ({"router": {"type": "least_kv", "refresh_s": -1}}, "refresh_s"),
        ({"router": "prefix_affinity", "decode_router": "session_affinity"}, "allowed: one of them"),
        ({"faults": [{"pool": "prompt", "at_s": 1}]}, "got pool 'prompt'; allowed: prompts, answers"),
        ({"faults": [{"pool": "prompts", "replica": 1, "at_s": 1}]}, "got replica 1 of pool 'prompts'"),
        ({"faults": [{"at_s": 1}]}, "expected a pool, or link: true"),
        ({"faults": [{"link": True, "at_s": 1}]}, "repair_s: is missing"),
        ({"faults": {"mtbf_s": 0, "repair_s": 1}}, "mtbf_s"),
        ({"autoscale": {"type": "queue", "max": 4, "min": 5}}, "min: got 5 with max: 4"),
        ({"autoscale": {"type": "queue", "min": 2, "max": 4}}, "got count 1 in pool 'prompts'"),
        (
            {"autoscale": {"type": "schedule", "max": 4, "schedule": [[5, 1], [2, 2]]}},
            "times that don't rise",
        ),
        ({"clients": {"timeout_s": 0}}, "timeout_s"),
        ({"max_queue": -1}, "max_queue"),
        ({"pools": [{"name": "../x"}]}, "got '../x'; expected 1 to 40 letters, digits, _ and -"),
    ],
)
def test_mistakes(changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Experiment.from_mapping({**PLAIN, "cluster": {"pools": TWO, **changed}})
    assert problem in str(caught.value)


PLUGIN = '''
from cbsim.cluster.autoscaler import Autoscaler
from cbsim.cluster.router import Router


class Last(Router):
    """The last replica."""

    def score(self, request):
        return -1.0 * self.own.replica


class Two(Autoscaler):
    """Two from 10 s on."""

    def desired(scaler):
        return 2 if scaler.now >= 10.0 else 1
'''


@pytest.mark.xdist_group("core-vllm")
@pytest.mark.parametrize(
    "engine",
    ["interpreted", pytest.param("compiled", marks=pytest.mark.skipif(not can_compile(), reason="-"))],
)
def test_routers_and_autoscalers_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    (tmp_path / "own_parts.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_parts", None)
    scaling = {"type": "own_parts:Two", "max": 3, "provision_s": 1.0, "load_gb_s": 1e9, "interval_s": 5.0}
    cluster = {"pools": [{"name": "all"}], "router": "own_parts:Last", "autoscale": scaling}
    slower = PLAIN["workload"] | {"rate_scale": 0.5}
    result = cbsim.run({**PLAIN, "workload": slower, "engine": engine, "cluster": cluster})
    changes = result.make_table("replicas").to_pandas()
    assert changes["event"].tolist() == ["ready", "started", "ready"]
    assert changes["time_s"].round(3).tolist() == [0.0, 10.0, 11.0]
    later = result.requests["arrival_s"] > 11.0
    assert later.any()
    assert (result.requests["replica"][later] == 1).all()
    assert result.summary["mean_replicas"]["all"] == pytest.approx(
        2 - 10.0 / result.summary["makespan_s"], abs=0.05
    )


def test_stale_knowledge_sends_all_to_one() -> None:
    """What a router saw at first, nobody anywhere, it sees for 1,000 s: all go to the first of equals."""
    stale = {"type": "least_outstanding", "refresh_s": 1000.0}
    cluster = {"pools": [{"name": "all", "count": 3}], "router": stale}
    assert set(cbsim.run({**PLAIN, "cluster": cluster}).requests["replica"]) == {0}
    cluster["router"] = "least_outstanding"
    assert set(cbsim.run({**PLAIN, "cluster": cluster}).requests["replica"]) == {0, 1, 2}


def test_a_router_that_knows_of_kv_keeps_sessions_together() -> None:
    """Turns of sessions share their prefixes: whoever routes by prefix hits finds more of them."""
    workload = {
        **{"type": "synthetic", "num_requests": 60, "prompt_tokens": {"type": "fixed", "value": 64}},
        "output_tokens": {"type": "fixed", "value": 4},
        "arrivals": {"type": "poisson", "rate_per_s": 2.0},
        "sessions": {"num_turns": {"type": "fixed", "value": 5}},
    }
    given = {**PLAIN, "workload": workload, "kv_cache": {"prefix_caching": True}}
    hits = {}
    for router in ("round_robin", "kv_aware", "least_expected_ttft", "session_affinity"):
        pools = [{"name": "all", "count": 4}]
        result = cbsim.run({**given, "cluster": {"pools": pools, "router": router}})
        hits[router] = result.summary["prefix_hit_rate"]
    assert hits["kv_aware"] > 1.5 * hits["round_robin"]
    assert hits["session_affinity"] > 1.5 * hits["round_robin"]
    assert hits["least_expected_ttft"] > hits["round_robin"]


def test_session_affinity_heeds_sessions_alone() -> None:
    """One system prompt for all: `prefix_affinity` sends everybody to one replica, `session_affinity` not."""
    tokens = {"type": "fixed", "value": 50}
    workload = {
        **{"type": "synthetic", "num_requests": 40, "prompt_tokens": tokens, "output_tokens": tokens},
        "arrivals": {"type": "poisson", "rate_per_s": 50.0},
        "shared_prefix": {"num_tokens": 100, "num_groups": 1},
    }
    used = {}
    for router in ("prefix_affinity", "session_affinity"):
        cluster = {"pools": [{"name": "all", "count": 3}], "router": router}
        used[router] = set(cbsim.run({**PLAIN, "workload": workload, "cluster": cluster}).requests["replica"])
    assert used == {"prefix_affinity": {0}, "session_affinity": {0, 1, 2}}


def test_what_all_pools_cost_alike_is_told_once() -> None:
    pools = [TWO[0], {**TWO[1], "cost_model": {"type": "constant", "step_s": 0.01}}]
    kinds = [
        {**PLAIN, "cost_model": {"type": "roofline"}, "cluster": {"pools": each}} for each in (TWO, pools)
    ]
    (alike,), (own,) = (
        [note for note in cbsim.run(kind).summary["notes"] if "by a roofline" in note] for kind in kinds
    )
    assert alike.startswith("costs are estimated by a roofline")
    assert own == f"pool {TWO[0]['name']}: {alike}"


def test_check_tells_of_requests_that_fit_nowhere() -> None:
    """The longest request does not fit where it is to decode; where its prompt is computed all fit."""
    small = {**TWO[1], "kv_cache": {"num_blocks": 100}}
    told = too_long_notes(Experiment.from_mapping({**PLAIN, "cluster": {"pools": [TWO[0], small]}}))
    assert len(told) == 1
    assert "pool answers: " in told[0]
    assert "the cache of a replica holds 1,600" in told[0]
    result = cbsim.run({**PLAIN, "cluster": {"pools": [TWO[0], small]}})
    assert told[0].startswith(f"pool answers: {result.summary['num_rejected']} of 60 requests")
    (line,) = (note for note in run_tables(result)[-1].notes if note.startswith("rejected: "))
    assert line.startswith(f"rejected: {result.summary['num_rejected']} x needs 1")
    assert line.endswith("KV blocks, the cache has 100")


def test_a_key_below_a_name_in_a_pool() -> None:
    """As in the experiment's own sections, the mapping that the name stands for takes its place."""
    pools = [{"name": "a", "gpu": "l40s", "scheduler": "vllm"}, {"name": "b"}]
    given = {**PLAIN, "cluster": {"pools": pools}}
    keys = {"a.gpu.price_per_hour": 1.5, "a.scheduler.max_num_seqs": 7, "b.scheduler.max_num_seqs": 9}
    overrides = [f"cluster.pools.{key}={value}" for key, value in keys.items()]
    given["cluster"]["router"] = "kv_aware"
    experiment = Experiment.from_mapping(given, [*overrides, "cluster.router.weight=3"])
    assert experiment.cluster is not None
    assert experiment.cluster.router.weight == 3
    (_, a), (_, b) = experiment.pools()
    assert (a.gpu.name, a.gpu.price_per_hour) == ("l40s", 1.5)
    assert (a.scheduler.max_num_seqs, b.scheduler.max_num_seqs) == (7, 9)


def test_a_wrong_fault_is_told_once() -> None:
    """Faults may be a mapping too, which a list of them is not told about."""
    with pytest.raises(ConfigError) as caught:
        Experiment.from_mapping({**PLAIN, "cluster": {"pools": TWO, "faults": [{"link": True, "at_s": 1}]}})
    (problem,) = caught.value.problems
    assert "cluster.faults[0]: repair_s: is missing" in problem


def test_the_manifest_has_a_hash_of_each_gpu() -> None:
    cluster = {"pools": [{"name": "a"}, {"name": "b", "gpu": "l40s"}]}
    hashes = {
        each["spec"]: each["sha256"]
        for each in cbsim.run({**PLAIN, "cluster": cluster}).manifest["inputs"]
        if "spec" in each
    }
    assert [*hashes] == ["gpu", "gpu of b", "model"]
    assert hashes["gpu"] != hashes["gpu of b"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"link": {"latency_s": 1.0}}, ["link changes nothing without pools for prefill and decode"]),
        ({"when_full": "hold"}, ["when_full changes nothing without max_queue"]),
        ({"when_full": "hold", "max_queue": 4, "clients": {"max_retries": 1}}, []),
        (
            {"clients": {"max_retries": 1}},
            ["clients.max_retries changes nothing without a time-out or max_queue"],
        ),
    ],
)
def test_settings_without_effect_are_noted(settings: dict[str, Any], told: list[str]) -> None:
    cluster = ClusterConfig.model_validate({"pools": [{"name": "all"}], **settings})
    assert cluster.without_effect == [f"cluster.{note}" for note in told]
