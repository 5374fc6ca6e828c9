"""Where the time of requests goes that one replica computes the prompt of, and another one decodes."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from cbsim.core.building import LinkParts
from cbsim.results.latency import HAND_OVER_PARTS, PARTS
from cbsim.results.measured import gaps_of
from cbsim.results.run_log import RunLog, distinct_gaps
from tests.cluster.test_handed_over import BYTES_PER_TOKEN, SYNC, apart, draw, run
from tests.core.drawn import request
from tests.results.latency.runs import HostedCost
from tests.results.latency.test_parts import check


def told(log: RunLog, row: int) -> dict[str, float]:
    """The parts of a request that are not 0."""
    assert log.parts is not None
    found = {name: float(log.parts[column][row]) for name, column in (PARTS | HAND_OVER_PARTS).items()}
    return {name: seconds for name, seconds in found.items() if seconds}


def test_by_hand() -> None:
    """Steps of 1 s: a's prompt until 1, its 10,000 bytes at 4,000 a second and 0.25 s more until 3.75.

    b's prompt comes second, 1 to 2. Both share the link from 2 on, where 6,000 bytes of a are left: a is
    there at 5.25, when it decodes its 3 tokens one by one. b's last 4,000 bytes have the link for
    themselves from 5 on, and are there at 6.25. The step that a begins then finds it, its end at 7.25 tells
    it, and the one slot is free at 8.25.
    """
    link = LinkParts(4000.0, 0.25, BYTES_PER_TOKEN)
    settings = {**SYNC, "max_num_seqs": 1}
    rows = (request(0, 0.0, 10, 4), request(1, 0.5, 10, 2))
    log = run(apart(rows, settings=settings, link=link, step_s=1.0))
    assert told(log, 0) == {"prefill": 1.0, "kv_transfer": 4.25, "decode": 3.0}
    assert told(log, 1) == {
        "queue": 0.5, "prefill": 1.0, "kv_transfer": 5.25, "decode_queue": 1.0, "decode": 1.0
    }  # fmt: skip


def test_room_on_the_decode_side() -> None:
    """Six blocks of 4 tokens hold one request of 12 + 9: the second one's KV stays where it was computed."""
    rows = tuple(request(i, 0.0, 12, 9) for i in range(2))
    log = run(apart(rows, num_blocks=(8, 6), settings=SYNC, step_s=1.0))
    assert told(log, 0) == {"prefill": 1.0, "decode": 8.0}
    assert told(log, 1) == {"prefill": 1.0, "handed_over": 8.0, "decode": 8.0}


def test_parts_are_what_a_walk_from_step_to_step_finds() -> None:
    """They are at least 0, add up to the whole to a tick, and are those of the naive reference.

    And gaps by request, from which figures without a warm-up are made, reach over the hand-over.
    """
    num: dict[str, int] = {}
    for seed in range(0, 60, 3):
        setup, cost = draw(seed), HostedCost(0.125, 0.015625)
        log = run(replace(setup, cost=cost, others=tuple(replace(pool, cost=cost) for pool in setup.others)))
        check(log, cost)
        gaps = gaps_of(log.steps, log.slices, slice(0, len(log.requests["arrival_s"])))
        told, whole = (np.repeat(*distinct_gaps(each)) for each in (gaps, log.gaps))
        if setup.until_s == inf:
            assert told == pytest.approx(whole, abs=1e-9)
        assert log.parts is not None
        for name, column in (PARTS | HAND_OVER_PARTS).items():
            seconds = log.parts.get(column, np.zeros(1))
            num[name] = num.get(name, 0) + int((seconds > 0).sum())
    never = ("skipped", "swap")
    assert all(num[name] > 0 for name in num if name not in never), num
