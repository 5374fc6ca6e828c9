"""The diagnosis of a request: a sentence and a timeline for each way of being held up, worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.base.errors import CbsimError
from cbsim.show.explain_text import MAX_CHUNKS, request_table
from cbsim.studies.explain.request_diagnosis import Entry, RequestDiagnosis, diagnose_request
from cbsim.studies.explain.source import Source
from cbsim.studies.run import run_experiment
from tests.studies.explain.cases import PREEMPTED, Row, experiment, source

VLLM = {"type": "vllm", "async_scheduling": False, "max_tokens_per_step": 8}
ROOMY = {"num_blocks": 40, "block_size": 2}


def told(diagnosis: RequestDiagnosis) -> list[str]:
    """The sentence, and the table without its header, runs of blanks made one."""
    lines = request_table(diagnosis).to_text().splitlines()[2:]
    return [diagnosis.sentence(), *(" ".join(line.split()) for line in lines)]


def test_waiting_for_kv_blocks(tmp_path: Path) -> None:
    """Of 4 blocks a holds 2, then 3, then 4; b needs 2 and waits from 1 s, when step 0 ends, to 4 s."""
    run = source(tmp_path, {"a": (0.0, 4, 4), "b": (0.5, 4, 2)})
    assert told(diagnose_request(run, "b")) == [
        "b took 5.50 s, 55% of which is waiting for KV blocks, 18% computing its prompt, 18% decoding, 9% "
        "waiting for its turn; its first token came after 4.50 s, 67% of which is waiting for KV blocks, 22% "
        "computing its prompt, 11% waiting for its turn.",
        "0.5000 arrived",
        "0.5000 3.50 s waited for KV blocks (86%), the step under way (14%); a held 100% of the used blocks",
        "4.0000 4 admitted",
        "4.0000 1.00 s 4 prompt: 4 tokens",
        "5.0000 4 first token",
        "5.0000 1.00 s 5 1 token, 1.00 s each",
        "6.0000 5 finished",
    ]


def test_waiting_for_a_slot(tmp_path: Path) -> None:
    """One slot, which a has until 3 s."""
    run = source(
        tmp_path,
        {"a": (0.0, 2, 3), "b": (0.5, 2, 2)},
        scheduler=VLLM | {"max_num_seqs": 1},
        kv_cache=ROOMY,
    )
    sentence, _, waited, *_ = told(diagnose_request(run, "b"))
    assert sentence.startswith(
        "b took 4.50 s, 44% of which is waiting for a slot, 22% computing its prompt, 22% decoding, 11% "
        "waiting for its turn; its first token came after 3.50 s, 57% of which is waiting for a slot"
    )
    assert waited == "0.5000 2.50 s waited for a slot (80%), the step under way (20%)"


def test_waiting_for_token_budget(tmp_path: Path) -> None:
    """a's prompt takes the budgets of steps 0 and 1."""
    run = source(tmp_path, {"a": (0.0, 20, 2), "b": (0.5, 2, 1)}, kv_cache=ROOMY)
    sentence, _, waited, _, prompt, *_, beside = told(diagnose_request(run, "b"))
    assert "60% of which is waiting for its turn, 40% computing its prompt" in sentence
    assert waited == (
        "0.5000 1.50 s waited for token budget (67%), the step under way (33%); it went to a (8 tokens)"
    )
    assert prompt == "2.0000 1.00 s 2 prompt: 2 tokens, beside a (4 tokens)"
    assert beside == "- others' prompts computed beside it: a (4 tokens)"


def test_preempted(tmp_path: Path) -> None:
    run = source(tmp_path, PREEMPTED)
    assert told(diagnose_request(run, "c")) == [
        "c took 5.00 s, 40% of which is preempted and waiting, 20% computing its prompt, 20% computing again "
        "what a preemption lost, 20% decoding; its first token came after 1.00 s, 100% of which is computing "
        "its prompt; it was preempted once.",
        "0.0000 arrived",
        "0.0000 0 admitted",
        "0.0000 1.00 s 0 prompt: 2 tokens, beside a (2 tokens), b (2)",
        "1.0000 0 first token",
        "1.0000 1 preempted",
        "1.0000 2.00 s waited for its turn (50%), KV blocks (50%)",
        "3.0000 3 resumed",
        "3.0000 1.00 s 3 computed again: 3 tokens",
        "4.0000 1.00 s 4 1 token, 1.00 s each",
        "5.0000 4 finished",
        "- others' prompts computed beside it: a (2 tokens), b (2)",
    ]


def test_swapped(tmp_path: Path) -> None:
    """c's blocks wait in host memory, and nothing of it is computed again."""
    scheduler = {"type": "preemptive", "max_tokens_per_step": 8, "preemption": "swap"}
    lines = told(diagnose_request(source(tmp_path, PREEMPTED, scheduler=scheduler), "c"))
    assert next(line for line in lines if "resumed" in line).endswith(
        "resumed, its KV blocks back from host memory"
    )
    assert not any("computed again" in line for line in lines)


def test_slowed_by_the_prompt_of_another(tmp_path: Path) -> None:
    """b's 14 tokens at half a second each go 7 and 7 beside a's tokens, which take 4.5 s instead of 1 s."""
    run = source(
        tmp_path,
        {"a": (0.0, 2, 5), "b": (0.5, 14, 1)},
        kv_cache=ROOMY,
        cost_model={"type": "constant", "step_s": 1.0, "per_prefill_token_s": 0.5},
    )
    sentence, *lines = told(diagnose_request(run, "a"))
    assert sentence.startswith(
        "a took 13.0 s, 54% of which is slowed by others' prompts, 31% decoding, 15% computing its prompt;"
    )
    assert (
        "2.0000 11.0 s 1 to 4 4 tokens, 2.75 s each; 2 beside prompts of b (14 tokens): 4.50 s each, the "
        "others 1.00 s" in lines
    )


def test_found_in_the_prefix_cache(tmp_path: Path) -> None:
    run = source(
        tmp_path,
        {"a": (0.0, 6, 1), "b": (1.5, 6, 1)},
        kv_cache=ROOMY | {"prefix_caching": True},
        prompts={"a": [["s", 4], ["a", 2]], "b": [["s", 4], ["b", 2]]},
    )
    assert told(diagnose_request(run, "b"))[2:4] == [
        "1.5000 1 admitted, 4 tokens found in the prefix cache",
        "1.5000 1.00 s 1 prompt: 2 tokens",
    ]


def test_passed_over(tmp_path: Path) -> None:
    """Orca's opposite: prompts run alone, and a's second token waits for b's prompt."""
    run = source(
        tmp_path,
        {"a": (0.0, 2, 3), "b": (0.5, 2, 1)},
        scheduler={"type": "continuous", "prefill_first": True, "max_tokens_per_step": 8},
        kv_cache=ROOMY,
    )
    diagnosis = diagnose_request(run, "a")
    assert "25% slowed by others' prompts" in diagnosis.sentence()
    assert "1.0000 1.00 s 1 running, but not in the batch" in told(diagnosis)


def test_waiting_for_a_static_batch_to_fill(tmp_path: Path) -> None:
    run = source(
        tmp_path,
        {"a": (0.0, 2, 1)},
        scheduler={"type": "static", "max_num_seqs": 2, "batch_timeout_s": 3.0, "max_model_len": 8},
        kv_cache=ROOMY,
    )
    assert told(diagnose_request(run, "a"))[2] == "0.0000 3.00 s waited for its turn"


def test_a_request_that_can_never_be_served(tmp_path: Path) -> None:
    run = source(tmp_path, {"a": (0.0, 99, 1), "b": (0.0, 1, 1)})
    diagnosis = diagnose_request(run, "a")
    assert diagnosis.sentence() == "a was rejected: needs 50 KV blocks, the cache has 4."
    assert diagnosis.entries == []


def test_a_run_that_was_stopped(tmp_path: Path) -> None:
    run = source(tmp_path, {"a": (0.0, 4, 4), "b": (0.5, 4, 2)}, stop_at_s=3.0)
    diagnosis = diagnose_request(run, "b")
    assert diagnosis.sentence() == "b was not finished when the run ended."
    assert [entry.what for entry in diagnosis.entries] == ["arrived", "waited", "unfinished"]


def test_many_chunks_become_one_line_between_the_first_and_the_last(tmp_path: Path) -> None:
    run = source(
        tmp_path,
        {"a": (0.0, 2 * MAX_CHUNKS + 2, 1)},
        scheduler=VLLM | {"max_tokens_per_step": 2},
        kv_cache=ROOMY,
    )
    assert told(diagnose_request(run, "a"))[3:6] == [
        "0.0000 1.00 s 0 prompt: 2 tokens of 18 left",
        "1.0000 7.00 s 1 to 7 prompt: 14 tokens of 16 left in 7 steps",
        "8.0000 1.00 s 8 prompt: 2 tokens",
    ]


def test_of_others_the_largest_are_named(tmp_path: Path) -> None:
    requests = {name: (0.0, size, 1) for name, size in zip("abcde", (1, 5, 2, 4, 3), strict=True)}
    run = source(tmp_path, requests, kv_cache=ROOMY, scheduler=VLLM | {"max_tokens_per_step": 99})
    assert (
        "prompt: 1 token, beside b (5 tokens), d (4), e (3) and 1 more" in told(diagnose_request(run, "a"))[3]
    )


def test_a_name_that_is_not_there_is_told_with_the_nearest(tmp_path: Path) -> None:
    run = source(tmp_path, {"first": (0.0, 1, 1), "second": (0.0, 1, 1)})
    with pytest.raises(CbsimError, match="has no request 'frist'; did you mean 'first'"):
        diagnose_request(run, "frist")
    with pytest.raises(CbsimError, match="has no request 'x'; they are named like 'first'"):
        diagnose_request(run, "x")


def test_a_folder_without_parts_has_a_timeline_all_the_same(tmp_path: Path) -> None:
    given_run = experiment(tmp_path, PREEMPTED)
    result = run_experiment(given_run)
    result.requests = result.requests.drop(columns=[n for n in result.requests if "part_" in n])
    run = Source("small", given=given_run)
    run.__dict__["result"] = result
    assert diagnose_request(run, "c").sentence() == (
        "c took 5.00 s; its first token came after 1.00 s; it was preempted once."
    )
    assert len(diagnose_request(run, "c").entries) == 10


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_story_leaves_no_time_out(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each thing that goes on begins where the last one ended, from the arrival to the last token."""
    rows = data.draw(
        st.lists(
            st.tuples(st.sampled_from([0.0, 0.5, 2.0, 9.0]), st.integers(1, 9), st.integers(1, 6)),
            min_size=1,
            max_size=6,
        )
    )
    requests = {f"r{place}": row for place, row in enumerate(sorted(rows))}
    kind = data.draw(st.sampled_from(["static", "continuous", "chunked_prefill", "preemptive", "vllm"]))
    scheduler: dict[str, Any] = {"type": kind, "max_num_seqs": data.draw(st.integers(1, 4))}
    scheduler |= {"max_model_len": 16} if kind == "static" else {"max_tokens_per_step": 9}
    check_story(requests, scheduler, data.draw(st.integers(8, 20)), tmp_path_factory.mktemp("run"))


def test_a_token_that_was_under_way_comes_out_before_a_preemption_is_told(tmp_path: Path) -> None:
    """Two steps in flight: b is preempted when step 2 is decided at 1 s; its token of step 1 still comes."""
    scheduler = {"type": "vllm", "max_num_seqs": 2, "max_tokens_per_step": 9}
    check_story({"a": (0.0, 1, 5), "b": (0.0, 7, 5)}, scheduler, 6, tmp_path)


def check_story(requests: dict[str, Row], scheduler: dict[str, Any], num_blocks: int, folder: Path) -> None:
    run = source(folder, requests, scheduler=scheduler, kv_cache={"num_blocks": num_blocks, "block_size": 2})
    for name, (arrival_s, num_prompt_tokens, num_output_tokens) in requests.items():
        diagnosis = diagnose_request(run, name)
        if diagnosis.state == "rejected":
            continue
        assert diagnosis.entries[0].start_s == arrival_s
        for before, after in zip(diagnosis.entries, diagnosis.entries[1:], strict=False):
            assert after.start_s == before.end_s, (before, after)
        assert diagnosis.entries[-1].what == "finished"
        assert diagnosis.entries[-1].end_s - arrival_s == pytest.approx(diagnosis.e2e_s)
        waits = [entry for entry in diagnosis.entries if entry.what == "waited"]
        for wait in waits:
            if next(iter(wait.reasons_s)) == "KV":
                assert 0 < sum(wait.culprits.values()) <= 1 + 1e-9
            assert sum(wait.reasons_s.values()) == pytest.approx(wait.duration_s)
        check_parts(diagnosis, waits)
        if not diagnosis.num_preemptions:
            assert tokens(diagnosis, "chunk") == num_prompt_tokens
            assert tokens(diagnosis, "decoded") == num_output_tokens - 1


def tokens(diagnosis: RequestDiagnosis, what: str) -> int:
    return sum(entry.num_tokens for entry in diagnosis.entries if entry.what == what)


def check_parts(diagnosis: RequestDiagnosis, waits: list[Entry]) -> None:
    """The first wait's reasons, gathered step by step, are the parts that the run has written down."""
    assert diagnosis.ttft is not None
    parts = diagnosis.ttft.parts_s
    admission = waits[0].reasons_s if diagnosis.entries[1].what == "waited" else {}
    assert parts.get("no_kv", 0.0) == pytest.approx(admission.get("KV", 0.0))
    assert parts.get("no_slot", 0.0) == pytest.approx(admission.get("slot", 0.0))
    queue = sum(admission.get(reason, 0.0) for reason in ("budget", "turn", "step"))
    assert parts.get("queue", 0.0) == pytest.approx(queue)


APART = {
    "pools": [
        {"name": "prompts", "role": "prefill"},
        {"name": "answers", "role": "decode", "kv_cache": {"num_blocks": 4}},
    ],
    "link": {"latency_s": 1.25},
}


def test_handed_over_to_a_pool_without_room(tmp_path: Path) -> None:
    """Four blocks hold a's 4 tokens and 3 of its answers until 5.25; b's prompt is done at 2 and waits."""
    rows: dict[str, Row] = {"a": (0.0, 4, 4), "b": (0.5, 4, 2)}
    run = source(tmp_path, rows, scheduler=VLLM, kv_cache=ROOMY, cluster=APART, output={"batches": True})
    run.check_replica(1)
    assert told(diagnose_request(run, "b")) == [
        "b took 7.00 s, 46% of which is waiting for room where it decodes, 18% its KV cache on its way, 14% "
        "computing its prompt, 14% decoding; its first token came after 1.50 s, 67% of which is computing "
        "its prompt, 33% waiting for its turn.",
        "0.5000 arrived",
        "0.5000 500 ms waited for the step under way",
        "1.0000 1 admitted",
        "1.0000 1.00 s 1 prompt: 4 tokens",
        "2.0000 1 first token",
        "2.0000 handed over",
        "2.0000 3.25 s waited for its turn and KV blocks where it will decode",
        "5.2500 1.25 s KV transfer: 4 tokens",
        "6.5000 3 admitted",
        "6.5000 1.00 s 3 1 token, 1.00 s each",
        "7.5000 3 finished",
    ]


def lost(folder: Path, at_s: float) -> list[str]:
    """Of a request whose replica fails for a second where it decodes."""
    fault = {"pool": "answers", "at_s": at_s, "repair_s": 1.0}
    settings = {"scheduler": VLLM, "kv_cache": ROOMY, "output": {"batches": True}}
    run = source(folder, {"a": (0.0, 4, 4)}, cluster=APART | {"faults": [fault]}, **settings)
    return told(diagnose_request(run, "a"))


def test_lost_while_it_decodes(tmp_path: Path) -> None:
    """Three tokens are out. A prefill replica computes the prompt and these: the fourth is the last one."""
    assert lost(tmp_path, 4.5)[1:] == [
        "0.0000 arrived",
        "0.0000 0 admitted",
        "0.0000 1.00 s 0 prompt: 4 tokens",
        "1.0000 0 first token",
        "1.0000 handed over",
        "1.0000 1.25 s KV transfer: 4 tokens",
        "2.2500 0 admitted",
        "2.2500 2.00 s 0 to 1 2 tokens, 1.00 s each",
        "4.5000 lost with its KV cache",
        "4.5000 1 admitted",
        "4.5000 1.00 s 1 computed again: 7 tokens",
        "5.5000 1 finished",
    ]


def test_lost_before_its_kv_has_come(tmp_path: Path) -> None:
    assert lost(tmp_path, 1.5)[4:] == [
        "1.0000 0 first token",
        "1.0000 handed over",
        "1.0000 500 ms waited for its KV cache",
        "1.5000 lost with its KV cache",
        "1.5000 1 admitted",
        "1.5000 1.00 s 1 computed again: 5 tokens",
        "2.5000 handed over",
        "2.5000 1.25 s KV transfer: 5 tokens",
        "3.7500 0 admitted",
        "3.7500 2.00 s 0 to 1 2 tokens, 1.00 s each",
        "5.7500 1 finished",
    ]


def test_refused_then_given_up_by_its_client(tmp_path: Path) -> None:
    """a has the replica until 4. b is refused at 1, sends again at 5, and gives up in its second step."""
    rows: dict[str, Row] = {"a": (0.0, 4, 2), "b": (1.0, 12, 4)}
    clients = {"first_token_timeout_s": 2.5, "max_retries": 1, "backoff_s": 4.0}
    cluster = {"pools": [{"name": "all"}], "max_queue": 0, "clients": clients}
    settings = {"scheduler": VLLM | {"max_num_seqs": 1}, "cost_model": {"type": "constant", "step_s": 2.0}}
    run = source(tmp_path, rows, cluster=cluster, kv_cache=ROOMY, **settings)
    assert told(diagnose_request(run, "b")) == [
        "b failed: its client gave up.",
        "1.0000 arrived",
        "1.0000 refused: every queue was full",
        "5.0000 2 admitted",
        "5.0000 2.00 s 2 prompt: 8 tokens of 12 left",
        "7.0000 500 ms 3 prompt: 4 tokens",
        "7.5000 given up by its client",
    ]


TIERS = {
    "prefix_caching": True,
    "num_blocks": 6,
    "tiers": [{"name": "host", "size_gib": 1, "bandwidth_gb_s": 1000, "latency_s": 2.5}],
}


@pytest.mark.parametrize("tier_load", ["overlapped", "in_step"])
def test_what_tiers_bring(tier_load: str, tmp_path: Path) -> None:
    """The long b drops a's blocks from the GPU's cache; c has a's prompt, and waits 2.5 s for two blocks."""
    rows: dict[str, Row] = {"a": (0.0, 5, 1), "b": (2.0, 10, 2), "c": (6.0, 5, 1)}
    prompts = {"a": [["x", 5]], "b": [["y", 10]], "c": [["x", 5]]}
    kv_cache = {"block_size": 2, "tier_load": tier_load, **TIERS}
    run = source(tmp_path, rows, prompts=prompts, scheduler=VLLM, kv_cache=kv_cache)
    text = told(diagnose_request(run, "c"))[1:]
    found = "admitted, 4 tokens found in the prefix cache, 4 of them brought by tiers"
    if tier_load == "overlapped":
        assert text == [
            "6.0000 arrived",
            "6.0000 2.50 s waited for KV that tiers bring",
            f"8.5000 4 {found}",
            "8.5000 1.00 s 4 prompt: 1 token",
            "9.5000 4 first token",
            "9.5000 4 finished",
        ]
    else:
        assert text == [
            "6.0000 arrived",
            f"6.0000 4 {found}",
            "6.0000 3.50 s 4 prompt: 1 token",
            "9.5000 4 first token",
            "9.5000 4 finished",
        ]
    run_experiment(run.given).save(tmp_path / "run")
    assert told(diagnose_request(Source("it", folder=tmp_path / "run"), "c"))[1:] == text


def test_a_cluster_is_simulated_again_where_it_has_no_batches(tmp_path: Path) -> None:
    given = experiment(tmp_path, {"a": (0.0, 4, 4)}, scheduler=VLLM, kv_cache=ROOMY, cluster=APART)
    recorded = diagnose_request(Source("it", given=given), "a").entries
    assert [entry.what for entry in recorded].count("decoded") == 1
    run_experiment(given).save(tmp_path / "run")
    assert diagnose_request(Source("it", folder=tmp_path / "run"), "a").entries == recorded


@pytest.mark.parametrize("least", [None, 6])
def test_a_reservation_is_held_from_the_admission_on(least: int | None, tmp_path: Path) -> None:
    """Of 4 blocks a's 2 + 4 tokens, or 2 + 6 where answers may be as long; b needs 2 and waits."""
    scheduler = {"type": "continuous", "max_tokens_per_step": 8, "max_output_tokens": least}
    run = source(tmp_path, {"a": (0.0, 2, 4), "b": (0.5, 2, 2)}, scheduler=scheduler)
    wait = diagnose_request(run, "b").entries[1]
    assert wait.culprits == {"a": pytest.approx(1.0)}
