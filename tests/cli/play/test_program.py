"""What keys do, without a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbsim.cli.play.program import PACES, Program
from cbsim.cli.play.session import Session
from cbsim.cli.play.terminal import read_script
from tests.cli.play.games import SCHEDULERS, experiment


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.chdir(tmp_path)
    return Program(Session(experiment(tmp_path, SCHEDULERS["preemptive"])))


def message(program: Program) -> str:
    return program.frame(120, 24)[-2].plain.rstrip()


def test_steps_forth_and_back(program: Program) -> None:
    program.run_script([" ", "s", "right", "down"])
    assert program.session.num_steps == 4
    program.run_script(["u", "left", "up", "backspace"])
    assert program.session.num_steps == 0
    program.press("u")
    assert message(program) == "this is the beginning"


def test_running_steps_with_the_clock_and_pauses_where_something_is_asked(program: Program) -> None:
    assert program.seconds_a_step is None
    program.press("r")
    assert program.seconds_a_step == 0.2
    program.tick()
    program.tick()
    assert program.session.num_steps == 2
    program.press("+")
    assert program.seconds_a_step == 0.1
    for _ in PACES:
        program.press("-")
    assert program.seconds_a_step == 1.0
    program.press("t")
    assert program.seconds_a_step is None
    program.tick()
    assert program.session.num_steps == 2


def test_a_run_stops_at_the_end_and_says_so(program: Program) -> None:
    program.press("r")
    while program.seconds_a_step is not None:
        program.tick()
    assert program.session.fleet.is_over
    assert message(program).startswith("all requests have ended")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("t40<enter>", "scheduler.max_tokens_per_step 24 -> 40"),
        ("c8<enter>", "scheduler.chunk_size 16 -> 8"),
        ("n9<enter>", "scheduler.max_num_seqs 4 -> 9"),
        ("k50<enter>", "kv_cache.num_blocks 32 -> 50"),
        ("k50<backspace><backspace>40<enter>", "kv_cache.num_blocks 32 -> 40"),
        ("k50<ctrl-u>41<enter>", "kv_cache.num_blocks 32 -> 41"),
        ("t24<enter>", "that is so already"),
        ("t<enter>", ""),
        ("t9<esc>", ""),
        (":policy=priority<enter>", "scheduler.policy fcfs -> priority"),
        (":kv_cache.num_blocks=33<enter>", "kv_cache.num_blocks 32 -> 33"),
        ("3", "scheduler preemptive -> chunked_prefill"),
        (":type = vllm<enter>", "scheduler preemptive -> vllm"),
        ("fa<enter>", "added-1 arrives with 32 + 12 tokens"),
        ("4", "the scheduler is preemptive already"),
        ("a<enter>", "added-1 arrives with 32 + 12 tokens"),
        ("a7,3<enter>", "added-1 arrives with 7 + 3 tokens"),
        ("a7 3 -2<enter>", "added-1 arrives with 7 + 3 tokens"),
        ("R", "from the start, with settings and requests as they are"),
        ("w<enter>", "written to experiment-played.yaml"),
        ("sawed.yml<esc>wmine.yml<enter>", "written to mine.yml"),
        ("a<enter>w<enter>", "written to experiment-played.yaml and experiment-played.jsonl"),
        ("x", "'x' means nothing here; ? tells what does"),
        ("<left>", "this is the beginning"),
    ],
)
def test_what_is_said(script: str, said: str, program: Program) -> None:
    program.run_script(read_script(script))
    assert message(program) == said


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("t0<enter>", "scheduler.max_tokens_per_step: got 0; expected an integer >= 1"),
        ("tfour<enter>", "scheduler.max_tokens_per_step: got 'four' (str); expected an integer >= 1"),
        ("2c", "continuous has no chunk_size"),
        ("a7<enter>", "got '7'; expected two or three whole numbers, as in 32 12 0"),
        ("a7 x<enter>", "got '7 x'; expected two or three whole numbers, as in 32 12 0"),
        ("a0 4<enter>", "prompt tokens: got 0; allowed: 1 to 100,000,000"),
        (":polic=fcfs<enter>", "scheduler.polic: unknown key; did you mean 'policy'?"),
        (
            ":policy=fast<enter>",
            "scheduler.policy: got 'fast' (str); expected one of 'fcfs', 'priority', 'sjf', 'edf', 'fair'",
        ),
        (":type=vlm<enter>", "unknown scheduler 'vlm'; did you mean 'vllm'?"),
        ("sssssk20<enter>", "kv_cache.num_blocks: got 20, but 31 blocks are in use; only free ones can go"),
        ("wgame<enter>", "game: expected a name that ends in .yaml or .yml"),
        ("sk7<enter>", "r0 could never be served: needs 13 KV blocks, the cache has 7 (and 3 more)"),
    ],
)
def test_mistakes_are_told_in_their_place(script: str, problem: str, program: Program) -> None:
    program.run_script(read_script(script))
    assert message(program) == problem
    program.press("s")
    assert message(program) == ""


def test_help_covers_the_screen_until_the_next_key(program: Program) -> None:
    program.press("?")
    assert "max_num_seqs" in "".join(line.plain for line in program.frame(80, 24))
    program.press("s")
    assert program.session.num_steps == 0
    program.press("s")
    assert program.session.num_steps == 1


@pytest.mark.parametrize("key", ["q", "ctrl-c", "ctrl-d"])
def test_quit(key: str, program: Program) -> None:
    program.press("t")
    program.press(key)
    assert not program.is_done or key == "q"
    program.press("esc")
    program.press(key)
    assert program.is_done
