"""One small timeline for each part, worked by hand: steps of 1 s, mostly, on one replica."""

from __future__ import annotations

from typing import Any

import pytest

from cbsim.results.latency import PARTS, TTFT_PARTS
from cbsim.results.run_log import RunLog
from cbsim.testing import Case
from cbsim.testing.case import MOVE_S_PER_BLOCK, TokenCost
from tests.results.latency.runs import HostedCost, run


def requests(**rows: tuple[float, int, int]) -> tuple[dict[str, Any], ...]:
    """`name=(arrival_s, prompt tokens, output tokens)`, in order of arrival."""
    names = ("arrival_s", "num_prompt_tokens", "num_output_tokens")
    return tuple({"request_id": name, **dict(zip(names, row, strict=True))} for name, row in rows.items())


def told(log: RunLog, request: str, names: dict[str, str] = PARTS) -> dict[str, float]:
    """The parts of a request that are not 0."""
    assert log.parts is not None
    row = log.requests["request_id"].tolist().index(request)
    found = {part: float(log.parts[column][row]) for part, column in names.items()}
    return {part: seconds for part, seconds in found.items() if seconds}


def simulate(kind: str, case: Case) -> RunLog:
    return run(kind, case, TokenCost(case.step_s, case.token_s))


def test_steps_of_one_length() -> None:
    """0-1 a's prompt; 1-2 a decodes, b's prompt; 2-3 a decodes. A chunk that costs nothing slows nobody."""
    log = simulate("chunked_prefill", Case(requests(a=(0, 4, 3), b=(0.5, 4, 1))))
    assert told(log, "a") == {"prefill": 1, "decode": 2}
    assert told(log, "b") == told(log, "b", TTFT_PARTS) == {"queue": 0.5, "prefill": 1}
    assert told(log, "a", TTFT_PARTS) == {"prefill": 1}


def test_chunks_that_slow_decodes() -> None:
    """1 s and 1/8 s a token: a's prompt 0-1.5; then 5 tokens, 1.625 s, which without b's 4 were 1.125."""
    log = simulate("chunked_prefill", Case(requests(a=(0, 4, 3), b=(0.5, 4, 1)), token_s=0.125))
    assert told(log, "a") == {"prefill": 1.5, "others_prefill": 0.5, "decode": 2 * 1.125}
    assert told(log, "b") == {"queue": 1.0, "prefill": 1.625}


def test_prompts_that_slow_each_other() -> None:
    """Both prompts in a step of 6 tokens, 1.75 s: alone a's were 1.5, b's 1.25. Then b decodes in 1.125."""
    log = simulate("chunked_prefill", Case(requests(a=(0, 4, 1), b=(0, 2, 2)), token_s=0.125))
    assert told(log, "a") == {"prefill": 1.5, "others_prefill": 0.25}
    assert told(log, "b") == {"prefill": 1.25, "others_prefill": 0.5, "decode": 1.125}


def test_padding_is_the_longest_prompts() -> None:
    """Of a static batch of 4 and 2 tokens, 2 x 4 are computed, 2 s: b's alone were 1.25 s."""
    log = simulate("static", Case(requests(a=(0, 4, 1), b=(0, 2, 1)), {"max_model_len": 8}, token_s=0.125))
    assert told(log, "a") == {"prefill": 1.5, "others_prefill": 0.5}
    assert told(log, "b") == {"prefill": 1.25, "others_prefill": 0.75}


def test_prompts_that_stall_decodes_and_decodes_that_the_budget_passes_over() -> None:
    """Budget 2, prompts first and alone: a's 0-1, b's 1-2, c's 2-3; 3-4 and 4-5 a and b decode, 5-6 c."""
    case = Case(
        requests(a=(0, 2, 3), b=(0, 2, 3), c=(0, 2, 2)), {"max_tokens_per_step": 2, "prefill_first": True}
    )
    log = simulate("continuous", case)
    assert told(log, "a") == {"prefill": 1, "others_prefill": 2, "decode": 2}
    assert told(log, "b") == {"queue": 1, "prefill": 1, "others_prefill": 1, "decode": 2}
    assert told(log, "c") == {"queue": 2, "prefill": 1, "skipped": 2, "decode": 1}


def test_no_slot() -> None:
    """One slot: b comes into a's first step, 0-1, and then waits for the slot until 3."""
    log = simulate("chunked_prefill", Case(requests(a=(0, 4, 3), b=(0.5, 4, 1)), {"max_num_seqs": 1}))
    assert told(log, "b") == {"queue": 0.5, "no_slot": 2, "prefill": 1}


def test_an_arrival_at_the_instant_of_a_decision_is_seen_by_it() -> None:
    """b comes at 1, where 1-2 is decided: it waits for the slot in that step already, c only from 2 on."""
    case = Case(requests(a=(0, 4, 3), b=(1, 4, 1), c=(1.25, 4, 1)), {"max_num_seqs": 1})
    log = simulate("chunked_prefill", case)
    assert told(log, "b") == {"no_slot": 2, "prefill": 1}
    assert told(log, "c") == {"queue": 0.75, "no_slot": 2, "prefill": 1}


def test_no_kv_blocks() -> None:
    """3 blocks of 4: a reserves 2 for 4 + 3 tokens, b needs 2 and waits for a's from 1 to 3."""
    log = simulate("chunked_prefill", Case(requests(a=(0, 4, 3), b=(0.5, 4, 1)), num_blocks=3))
    assert told(log, "b") == {"queue": 0.5, "no_kv": 2, "prefill": 1}


def test_a_batch_that_waits_to_fill() -> None:
    """Nothing runs until a has waited 3 s for company."""
    case = Case(requests(a=(0, 4, 2)), {"batch_timeout_s": 3.0, "max_model_len": 8})
    assert told(simulate("static", case), "a") == {"queue": 3, "prefill": 1, "decode": 1}


PREEMPTED = {"num_blocks": 3, "block_size": 2}
"""The golden `preemptive.yaml: recompute`: at 1 b is preempted, at 4 a is done and b comes back."""


def test_preempted_and_recomputed() -> None:
    """b's prompt 0-1, preempted 1-4, prompt and token again 4-5, which gives the second; decodes 5-6."""
    log = simulate("preemptive", Case(requests(a=(0, 2, 4), b=(0, 2, 3)), **PREEMPTED))
    assert told(log, "a") == {"prefill": 1, "decode": 3}
    assert told(log, "b") == {"prefill": 1, "preempted": 3, "recompute": 1, "decode": 1}
    assert told(log, "b", TTFT_PARTS) == {"prefill": 1}


def test_swapped() -> None:
    """The same, but b's block moves out before a's step at 1, and back before its own after a's last one."""
    settings = {"preemption": "swap", "swap_latency_s": 0.0}
    log = simulate("preemptive", Case(requests(a=(0, 2, 4), b=(0, 2, 3)), settings, **PREEMPTED))
    move = MOVE_S_PER_BLOCK
    assert told(log, "a") == {"prefill": 1, "decode": 3, "swap": move}
    assert told(log, "b") == {"prefill": 1, "preempted": 3 + move, "decode": 2, "swap": move}


def test_two_steps_in_flight() -> None:
    """b comes at 0.5, when a's step 1-2 is decided already (at 0): it is decided at 1 for 2-3."""
    case = Case(requests(a=(0, 4, 4), b=(0.5, 4, 2)), {"async_scheduling": True})
    log = simulate("vllm", case)
    assert told(log, "a") == {"prefill": 1, "decode": 3}
    assert told(log, "b") == {"queue": 1.5, "prefill": 1, "decode": 1}


def test_host_time() -> None:
    """Host time is 2 ms a step and 0.5 ms a request, and comes off everything else.

    Attention is 10 us a pair, a decode's context token, and token of the longest one's.
    """
    cost = HostedCost(step_s=1.0, token_s=0.0)
    log = run("chunked_prefill", Case(requests(a=(0, 4, 3), b=(0.5, 4, 1))), cost)
    hosts = [0.0025, 0.003, 0.0025]
    prices = [1 + 0.00016, 1 + 0.00001 * (16 + 5 + 5), 1 + 0.00001 * (6 + 6)]
    others = 0.00016
    assert told(log, "a") == pytest.approx(
        {
            "prefill": prices[0],
            "host": sum(hosts),
            "others_prefill": others,
            "decode": prices[1] + prices[2] - others,
        },
        abs=1e-9,
    )


def test_requests_without_an_end_have_no_parts() -> None:
    """Stopped at 2.5: a is done at 2, b has its first token at 2, c is still waiting."""
    case = Case(requests(a=(0, 4, 2), b=(0.5, 4, 9), c=(2.25, 4, 1)))
    log = run("chunked_prefill", case, TokenCost(case.step_s, case.token_s), stop_at_s=2.5)
    assert told(log, "a") == {"prefill": 1, "decode": 1}
    assert told(log, "b", TTFT_PARTS) == {"queue": 0.5, "prefill": 1}
    assert log.parts is not None
    assert [str(log.parts[name][1]) for name in PARTS.values()] == ["nan"] * len(PARTS)
    assert [str(log.parts[name][2]) for name in TTFT_PARTS.values()] == ["nan"] * len(TTFT_PARTS)


def test_a_run_to_which_nobody_came() -> None:
    case = Case(requests(a=(5, 4, 2)))
    log = run("chunked_prefill", case, TokenCost(case.step_s, case.token_s), stop_at_s=1.0)
    assert log.parts is not None
    assert {len(column) for column in log.parts.values()} == {0}
    late = run("chunked_prefill", case, TokenCost(case.step_s, case.token_s), stop_at_s=5.5)
    assert late.parts is not None
    assert {str(column[0]) for column in late.parts.values()} == {"nan"}


def test_instants_far_from_zero() -> None:
    """Seconds since 1970, where ticks would not fit in 64 bits, and floats are 2**-22 s apart."""
    epoch = 1_700_000_000.0
    log = simulate("chunked_prefill", Case(requests(a=(epoch, 4, 3), b=(epoch + 0.5, 4, 1))))
    assert told(log, "a") == {"prefill": 1, "decode": 2}
    assert told(log, "b") == {"queue": 0.5, "prefill": 1}
