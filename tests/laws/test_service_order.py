"""Who may overtake whom, who may be stalled, and how much of a prompt one step may take."""

from __future__ import annotations

from hypothesis import given, settings

from cbsim.schedulers import SCHEDULERS
from cbsim.testing import Call, Case, Observation, Standing, observe
from tests.strategies import cases


def run(kind: str, case: Case) -> Observation:
    return observe(SCHEDULERS.get(kind), case)


def is_decoding(seen: Observation, name: str, before: Standing) -> bool:
    return before.num_computed_tokens >= seen.requests[name]["num_prompt_tokens"]


def wants_a_token(seen: Observation, name: str, before: Standing) -> bool:
    """Not while its last token is in flight: computed tokens are all but that one."""
    row = seen.requests[name]
    return before.num_computed_tokens < row["num_prompt_tokens"] + row["num_output_tokens"] - 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(drawn=cases(policies=["fcfs"]))
def test_under_fcfs_nobody_is_admitted_before_who_came_first(drawn: tuple[str, Case]) -> None:
    seen = run(*drawn)
    for replica in seen.replicas:
        admitted = [name for call in replica.calls for name in call.decided("admitted")]
        assert admitted == sorted(admitted, key=lambda name: int(name[1:]))
        for call in replica.calls:
            # Who waits came after everyone that this call let in, returning or new.
            newest = max((int(name[1:]) for name in call.decided("admitted")), default=-1)
            assert all(int(name[1:]) > newest for name in call.waiting)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(drawn=cases(["chunked_prefill"]))
def test_chunked_prefill_leaves_no_decode_out_while_the_budget_lasts(drawn: tuple[str, Case]) -> None:
    """Sarathi-Serve's promise: decodes are never stalled by prompts."""
    kind, case = drawn
    seen = run(kind, case)
    budget = case.settings["max_tokens_per_step"]
    for replica in seen.replicas:
        for call in replica.calls:
            decoding = [
                name
                for name in call.running
                if is_decoding(seen, name, call.before[name]) and wants_a_token(seen, name, call.before[name])
            ]
            scheduled = [part.request_id for part in call.parts]
            num_due = min(len(decoding), budget)
            assert scheduled[:num_due] == decoding[:num_due]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(drawn=cases(["continuous"]))
def test_continuous_batching_never_splits_a_prompt(drawn: tuple[str, Case]) -> None:
    kind, case = drawn
    seen = run(kind, case)
    for replica in seen.replicas:
        for call in replica.calls:
            prompts = [part for part in call.parts if part.num_computed_tokens == 0]
            others = [part for part in call.parts if part.num_computed_tokens]
            assert all(p.num_tokens == seen.requests[p.request_id]["num_prompt_tokens"] for p in prompts)
            assert all(part.num_tokens == 1 for part in others)
            if case.settings["prefill_first"]:
                assert not (prompts and others)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(drawn=cases(["chunked_prefill", "preemptive", "vllm"]))
def test_no_chunk_exceeds_the_cap(drawn: tuple[str, Case]) -> None:
    """Only vLLM's lone request is spared."""
    kind, case = drawn
    cap = case.settings["chunk_size"]
    for replica in run(kind, case).replicas:
        for call in replica.calls:
            is_spared = kind == "vllm" and len(call.before) == 1
            if cap and not is_spared:
                assert all(part.num_tokens <= cap for part in call.parts)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(drawn=cases(["static"]))
def test_a_static_batch_starts_and_ends_together(drawn: tuple[str, Case]) -> None:
    kind, case = drawn
    for replica in run(kind, case).replicas:
        members: set[str] = set()
        for call in replica.calls:
            started = set(call.decided("admitted"))
            if started:
                assert not still_running(call, members), "a batch started before the last one had ended"
                members = started
            assert set(call.running) <= members


def still_running(call: Call, members: set[str]) -> set[str]:
    return members & call.before.keys()
