"""Ranks of data parallelism: steps begin and end together, and take as long as the slowest."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import cbsim
from cbsim.base.errors import ConfigError
from cbsim.results.run_log import RunLog
from cbsim.studies.setup import Setup
from cbsim.testing import Case
from tests.core.drawn import Setting, draw, request
from tests.core.runs import assert_same, raw_differences, run, unread
from tests.core.test_both_speeds import ENGINES, INTERPRETED
from tests.cost.test_experts_and_windows import EXPERTS, SMALL

NUM_CASES = int(os.environ.get("CBSIM_NUM_DRAWN_CASES", "150"))
KINDS = [
    pytest.param(kind, marks=pytest.mark.xdist_group(f"core-{kind}"))
    for kind in ("vllm", "preemptive", "static")
]


def in_step(setup: Setup, num_ranks: int, num_groups: int = 1) -> Setup:
    return replace(setup, num_replicas=num_ranks * num_groups, num_ranks=num_ranks)


@pytest.mark.parametrize("kind", KINDS)
def test_on_drawn_settings(kind: str) -> None:
    engines = ENGINES if kind == "vllm" else INTERPRETED
    with unread():
        for seed in range(NUM_CASES):
            setting = draw(seed, kind)
            setup = in_step(setting.make_setup(), 2 + seed % 2, 1 + seed % 3 // 2)
            if setup.num_stages > 1 or setting.cost == "irregular" or setup.scheduler.has_connector:
                continue
            ended: Any = run(setup, engines[0])
            for engine in engines[1:]:
                assert raw_differences(ended, run(setup, engine)) == [], (engine, repr(setting))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_a_group_are_one_or_apart(kind: str) -> None:
    """Of two steps of ranks in step: the same start and end, or one after the other."""
    num_shared = 0
    for seed in range(0, NUM_CASES, 10):
        setup = in_step(draw(seed, kind).make_setup(), 3)
        if setup.num_stages > 1 or setup.scheduler.has_connector:
            continue
        log = assert_same(setup, INTERPRETED)
        order = np.argsort(log.steps["start_s"], kind="stable")
        start_s = log.steps["start_s"][order]
        end_s = start_s + log.steps["duration_s"][order]
        is_same = (np.diff(start_s) == 0.0) & (np.diff(end_s) == 0.0)
        assert (is_same | (start_s[1:] >= end_s[:-1] - 1e-9)).all()
        num_shared += int(is_same.sum())
    assert num_shared > 40


def test_by_hand() -> None:
    """Two ranks, half a second a step and one a token. Steps last as long as the longer prompt; r2 comes to
    rank 0, idle, during a step of rank 1 alone, and waits for its end.
    """
    rows = (request(0, 0.0, 2, 1), request(1, 0.0, 5, 3), request(2, 6.0, 4, 1))
    case = Case(rows, {"async_scheduling": False}, num_blocks=64, step_s=0.5, token_s=1.0)
    log: RunLog = assert_same(in_step(Setting("vllm", case).make_setup(), 2), INTERPRETED)
    assert log.requests["replica"].tolist() == [0, 1, 0]
    table = zip(*(log.steps[name].tolist() for name in ("replica", "start_s", "duration_s")), strict=True)
    assert list(table) == [(0, 0.0, 5.5), (1, 0.0, 5.5), (1, 5.5, 1.5), (0, 7.0, 4.5), (1, 7.0, 4.5)]
    assert log.requests["finished_at_s"].tolist() == [5.5, 11.5, 11.5]


MODEL = {"name": "small", **SMALL, "experts": EXPERTS.model_dump()}


def config(**changes: Any) -> dict[str, Any]:
    return {
        "name": "ranks",
        "seed": 3,
        "model": MODEL,
        "gpu": "h200",
        "workload": {
            "type": "synthetic",
            "num_requests": 100,
            "arrivals": {"type": "poisson", "rate_per_s": 2000.0},
            "prompt_tokens": {"type": "uniform", "min": 10, "max": 900},
            "output_tokens": {"type": "uniform", "min": 1, "max": 60},
        },
        "scheduler": {"type": "vllm", "max_num_seqs": 16},
        "cost_model": {"type": "roofline"},
        "parallel": {"data": 4, "expert": 4},
        **changes,
    }


def test_a_step_costs_what_its_slowest_rank_takes_with_the_tokens_of_all() -> None:
    """Priced again from the tables: each rank's own part, and experts by all ranks' tokens."""
    from cbsim.cost.step_columns import StepShape
    from cbsim.studies.experiment import Experiment
    from cbsim.studies.run import make_cost_model

    result = cbsim.run(config(output={"batches": True}))
    assert any("data-parallel ranks" in note for note in result.summary["notes"])
    cost = make_cost_model(Experiment.from_mapping(config()))
    steps = result.steps.set_index(["replica", "step"])
    batches = dict(iter(result.batches.groupby(["replica", "step"])))
    num_tokens = steps["num_prefill_tokens"] + steps["num_decode_tokens"]
    priced: dict[float, float] = {}
    for key, row in steps.iterrows():
        total = int(num_tokens[steps["start_s"] == row["start_s"]].sum())
        rows = batches[key]
        is_chunk = rows["kind"] == "prefill"
        chunks = rows[is_chunk][["num_tokens", "num_computed_tokens"]].to_numpy().tolist()
        context = (rows["num_tokens"] + rows["num_computed_tokens"])[~is_chunk]
        num_finishing = int(row["num_logits"]) - len(context)
        shape = StepShape(
            tuple(map(tuple, chunks)),
            num_finishing,
            len(context),
            int(context.sum()),
            int(context.max()) if len(context) else 0,
            num_other_tokens=total - int(num_tokens[key]),
        )
        priced[row["start_s"]] = max(priced.get(row["start_s"], 0.0), cost.step_s(shape))
    expected = [priced[start_s] for start_s in steps["start_s"]]
    assert steps["duration_s"].tolist() == pytest.approx(expected, rel=1e-12)
    assert len({replica for replica, _ in steps.index}) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {**MODEL, "experts": None}, "parallel": {"data": 4}}, "a model without experts"),
        ({"parallel": {"data": 2, "pipeline": 2}}, "2 pipeline stages"),
    ],
)
def test_what_cannot_be_in_step(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cbsim.run(config(**changes))
