"""Steps as they are shown: tables worked by hand, the same from every source, and the Gantt of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cbsim.base.errors import CbsimError
from cbsim.show.explain_text import RunningTable, gantt_lines, step_table
from cbsim.studies.explain.batch_step import BatchStep, Gantt, Limits
from cbsim.studies.explain.source import Source, Window
from cbsim.studies.run import run_experiment
from tests.run_logs import forget_hashes
from tests.studies.explain.cases import PREEMPTED, Row, experiment, source

VLLM = {"type": "vllm", "async_scheduling": False, "max_tokens_per_step": 8}


def steps_of(run: Source, first: int = 0, last: int | None = None, replica: int = 0) -> list[BatchStep]:
    shown: list[BatchStep] = []
    run.batch_steps(Window(replica, first, last), shown.append)
    return shown


def text(run: Source) -> list[str]:
    return step_table(steps_of(run)).to_text().splitlines()


def gantt(run: Source) -> list[str]:
    return gantt_lines(Gantt.of(0, steps_of(run), run.result.events))


def test_a_preemption(tmp_path: Path) -> None:
    run = source(tmp_path, PREEMPTED)
    assert text(run) == [
        "step  start (s)   takes  decodes  tokens  left  run  wait   for  KV used  free  chunks         "
        "changes",
        "----  ---------  ------  -------  ------  ----  ---  ----  ----  -------  ----  -------------  "
        "--------------",
        "0        0.0000  1.00 s        0       6     2    3     0     -        3     1  a 2; b 2; c 2  "
        "admitted a b c",
        "1        1.0000  1.00 s        2       2     6    2     1  turn        4     0                 "
        "preempted c",
        "2        2.0000  1.00 s        2       2     6    2     1    KV        4     0                 "
        "finished a b",
        "3        3.0000  1.00 s        0       3     5    1     0     -        2     2  c 3            "
        "resumed c",
        "4        4.0000  1.00 s        1       1     7    1     0     -        2     2                 "
        "finished c",
        "- for KV: too few KV blocks are free",
        "- for turn: nobody is admitted: the step preempted, a batch is under way, or a whole prompt must "
        "fit",
    ]
    assert gantt(run) == [
        "step  0",
        "a     #--",
        "b     #--",
        "c     #xx#-",
        "# prefill  - decode  x preempted",
    ]


def test_a_prompt_in_chunks_and_why_others_wait(tmp_path: Path) -> None:
    """a's 20 tokens take budgets of 8, 8 and 4; b comes at 0.5 s and finds room beside the third chunk."""
    run = source(
        tmp_path, {"a": (0.0, 20, 2), "b": (0.5, 2, 1)}, kv_cache={"num_blocks": 40, "block_size": 2}
    )
    steps = steps_of(run)
    assert [RunningTable().line(step).split()[3:] for step in steps] == [
        ["s", "0", "8", "0", "1", "0", "-", "4", "36", "a", "8", "of", "20", "admitted", "a"],
        ["s", "0", "8", "0", "1", "1", "budget", "8", "32", "a", "8", "of", "12"],
        [
            "s",
            "0",
            "6",
            "2",
            "2",
            "0",
            "-",
            "11",
            "29",
            "a",
            "4;",
            "b",
            "2",
            "admitted",
            "b;",
            "finished",
            "b",
        ],
        ["s", "1", "1", "7", "1", "0", "-", "11", "29", "finished", "a"],
    ]
    assert [line.find("step") for line in (RunningTable().header(), RunningTable().line(steps[0]))] == [2, -1]
    assert gantt(run)[1:3] == ["a     ###-", "b      .#"]


@pytest.mark.parametrize(
    ("requests", "scheduler", "kv_cache", "reasons"),
    [
        # a decodes into the third of 4 blocks; b's prompt needs 2.
        ({"a": (0, 4, 4), "b": (0.5, 4, 2)}, VLLM, (4, 2), [None, "KV", "KV", "KV", None, None]),
        (
            {"a": (0, 2, 3), "b": (0.5, 2, 1)},
            VLLM | {"max_num_seqs": 1},
            (9, 2),
            [None, "slot", "slot", None],
        ),
        # The batch of one goes on until a is done.
        (
            {"a": (0, 2, 3), "b": (0.5, 2, 1)},
            {"type": "static", "max_num_seqs": 4, "max_model_len": 8},
            (16, 2),
            [None, "turn", "turn", None],
        ),
        # Both slots' blocks are reserved by a and b: c's are not there.
        (
            {"a": (0, 2, 3), "b": (0, 2, 3), "c": (0, 2, 1)},
            {"type": "chunked_prefill", "max_tokens_per_step": 8},
            (6, 2),
            ["KV", "KV", "KV", None],
        ),
    ],
)
def test_why_the_head_of_the_queue_waits(
    requests: Any, scheduler: Any, kv_cache: tuple[int, int], reasons: Any, tmp_path: Path
) -> None:
    sizes = dict(zip(("num_blocks", "block_size"), kv_cache, strict=True))
    run = source(tmp_path, requests, scheduler=scheduler, kv_cache=sizes)
    assert [step.waits_for for step in steps_of(run)] == reasons


def test_without_the_column_the_reason_follows_from_the_step() -> None:
    def reason(
        code: int | None = None,
        static: bool = False,
        num_tokens: int = 5,
        has_preempted: bool = False,
        **changed: Any,
    ) -> str | None:
        step = {"num_waiting": 1, "num_running": 2, "num_preempted": int(has_preempted)} | changed
        return Limits(4, 8, static).reason(step | {"waiting_for": code}, num_tokens)

    assert reason() == "KV"
    assert reason(num_waiting=0) is None
    assert reason(num_running=4) == "slot"
    assert reason(num_tokens=8) == "budget"
    assert reason(has_preempted=True) == reason(static=True) == "turn"
    assert [reason(code) for code in range(4)] == [None, "turn", "slot", "KV"]


@pytest.mark.parametrize("type", ["static", "continuous", "chunked_prefill", "preemptive", "vllm"])
def test_a_record_a_folder_without_one_and_the_experiment_tell_the_same(type: str, tmp_path: Path) -> None:
    """Three runs on four blocks: with batches, without, and none; two replicas, steps decided ahead."""
    rows: list[Row] = [(0.0, 4, 3), (0.0, 2, 4), (0.5, 3, 3), (0.5, 1, 2), (2.0, 4, 2), (2.0, 2, 4)]
    limits = {"max_model_len": 8} if type == "static" else {"max_tokens_per_step": 5}
    scheduler = {"type": type, "max_num_seqs": 3, "async_scheduling": True} | limits
    given = experiment(
        tmp_path, {f"r{place}": row for place, row in enumerate(rows)}, scheduler=scheduler,
        kv_cache={"num_blocks": 4, "block_size": 2}, replicas={"count": 2},
    )  # fmt: skip
    output = given.output.model_copy(update={"batches": True})
    run_experiment(given).save(tmp_path / "without")
    run_experiment(given.model_copy(update={"output": output})).save(tmp_path / "with")
    for replica in range(2):
        told = steps_of(Source("small", given=given), replica=replica)
        assert sum(share.num_tokens for step in told for share in step.shares) >= sum(
            num_prompt + num_output - 1 for _, num_prompt, num_output in rows[replica::2]
        )
        for name in ("with", "without"):
            assert steps_of(Source(name, folder=tmp_path / name), replica=replica) == told


def test_a_preemption_by_a_call_that_made_no_step_is_told_with_the_next_step(tmp_path: Path) -> None:
    """Two in flight: at 1 s b finds no block and a has nothing left to compute, so that no step is made."""
    given_run = experiment(
        tmp_path,
        {"a": (0.0, 1, 2), "b": (0.0, 3, 3)},
        scheduler=VLLM | {"async_scheduling": True},
        kv_cache={"num_blocks": 3, "block_size": 2},
        output={"batches": True},
    )
    run_experiment(given_run).save(tmp_path / "run")
    for run in (Source("small", given=given_run), Source("run", folder=tmp_path / "run")):
        assert [step.preempted for step in steps_of(run)] == [(), (), ("b",)]
        assert [step.resumed for step in steps_of(run)] == [(), (), (("b", 0),)]


@pytest.mark.parametrize("is_recorded", [False, True])
def test_a_window_is_cut_from_the_whole(is_recorded: bool, tmp_path: Path) -> None:
    given_run = experiment(tmp_path, PREEMPTED, output={"batches": is_recorded})
    run_experiment(given_run).save(tmp_path / "run")
    whole = steps_of(Source("small", given=given_run))
    for run in (Source("run", folder=tmp_path / "run"), Source("small", given=given_run)):
        assert steps_of(run) == whole
        assert steps_of(run, 1, 3) == whole[1:4]
        assert steps_of(run, 3, 99) == whole[3:]
        assert steps_of(run, 99) == []


def test_a_live_run_is_not_simulated_again(tmp_path: Path) -> None:
    result = run_experiment(experiment(tmp_path, PREEMPTED))
    result.summary["notes"].insert(0, "live on this machine's cpu, not simulated")
    result.save(tmp_path / "run")
    with pytest.raises(CbsimError, match=r"a live run without batches\.parquet"):
        steps_of(Source("run", folder=tmp_path / "run"))


def test_a_request_that_ended_in_flight_is_not_drawn_on(tmp_path: Path) -> None:
    """With two steps in flight the next one is decided before a's last token is out."""
    scheduler = VLLM | {"async_scheduling": True}
    run = source(tmp_path, {"a": (0.0, 2, 2), "b": (0.0, 2, 4)}, scheduler=scheduler)
    assert gantt(run)[1:3] == ["a     #-", "b     #---"]


def test_a_gantt_within_a_run_knows_what_was_before(tmp_path: Path) -> None:
    run = source(tmp_path, PREEMPTED)
    cut = Gantt.of(0, steps_of(run, 2, 3), run.result.events)
    assert gantt_lines(cut)[:4] == ["step  2", "a     -", "b     -", "c     x#"]


def test_settings_that_can_not_be_read_any_more_are_told_with_their_line(tmp_path: Path) -> None:
    run_experiment(experiment(tmp_path, PREEMPTED)).save(tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("max_num_seqs", "max_num_sqs"))
    forget_hashes(tmp_path / "run")
    with pytest.raises(CbsimError, match=r"config.yaml:\d+: scheduler.max_num_sqs: unknown key"):
        steps_of(Source("run", folder=tmp_path / "run"))


@pytest.mark.parametrize(
    ("width", "below"),
    [
        (None, []),
        (120, [" " * 91 + "admitted a b c d +1 more;", " " * 91 + "finished a b c d +1 more"]),
        (95, [" " * 9 + "a 2; b 2; c 2; d 2; +1 more; admitted a b c d +1 more; finished a b c d +1 more"]),
        (
            80,
            [
                " " * 9 + "a 2; b 2; c 2; d 2; +1 more; admitted a b c d +1 more; finished a b c d",
                " " * 9 + "+1 more",
            ],
        ),
    ],
)
def test_words_that_are_too_long_for_the_terminal_go_on_below(
    width: int | None, below: list[str], tmp_path: Path
) -> None:
    run = source(
        tmp_path,
        dict.fromkeys("abcde", (0.0, 2, 1)),
        kv_cache={"num_blocks": 9, "block_size": 2},
        scheduler=VLLM | {"max_tokens_per_step": 10},
    )
    table = RunningTable(width)
    lines = table.line(steps_of(run)[0]).splitlines()
    assert lines[1:] == below
    assert lines[0].index(" 10 ") + 3 == table.header().index("tokens") + len("tokens")
    assert max(map(len, lines)) <= (width or 999)
