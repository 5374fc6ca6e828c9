"""`cbsim play --script`, and mistakes on its command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cbsim.cli import main


def play(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["play", *arguments])


def test_a_script_prints_the_screen_after_its_last_key() -> None:
    ran = play("--script", "sss2s", "--size", "100x30")
    lines = ran.output.splitlines()
    assert ran.exit_code == 0
    assert len(lines) == 30
    assert max(map(len, lines)) <= 100
    assert "2 continuous  4 steps" in lines[0]
    assert "\x1b" not in ran.output


def test_the_bundled_game_shows_queueing_chunks_and_preemption_within_a_minute() -> None:
    ran = play("--script", "f", "--size", "80x24")
    assert "12/12 finished" in ran.output
    num_steps = int(ran.output.split(" steps")[0].split()[-1])
    assert num_steps < 60 * 5  # at the pace it begins with
    assert "preempted" in play("--script", "s" * 20, "--size", "80x60").output
    assert "chunk" in play("--script", "s").output
    assert "no KV blocks" in play("--script", "s" * 8).output


def test_any_experiment_can_be_played_and_of_a_sweep_the_first_point() -> None:
    ran = play("quickstart", "--script", "s", "--size", "120x30", "--set", "workload.limit=20")
    assert "1 static  1 steps" in ran.output
    ran = play("quickstart", "--script", "", "--size", "120x30")
    assert "quickstart has a sweep: this is the first of its 4 points" in ran.output


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--script", "s", "--size", "80"], "--size: got '80'; allowed: COLUMNSxLINES, 60x18 or more"),
        (["--script", "s", "--size", "20x10"], "--size: got '20x10'; allowed: COLUMNSxLINES, 60x18 or more"),
        (["--script", "<entr>"], "--script: unknown key '<entr>'; did you mean 'enter'?"),
        (["plya"], "plya: no such file, and no experiment of that name; did you mean 'play'?"),
        (
            ["--set", "replicas.count=9", "--set", "workload.concurrency=3"],
            "replicas.count: got 9; cbsim play has 1 to 8 replicas\n"
            "workload.concurrency: got 3; in cbsim play requests arrive at their own times: null",
        ),
        (
            ["--set", "kv_cache={prefix_caching: true, tiers: [{size_gib: 1, bandwidth_gb_s: 20}]}"],
            "kv_cache.tiers: got 1; cbsim play has KV on GPUs alone: []",
        ),
        (["--set", "scheduler.max_num_seq=2"], "--set: scheduler.max_num_seq: unknown key"),
    ],
)
def test_mistakes_are_told_in_lines(
    arguments: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = play(*arguments)
    assert ran.exit_code == 2
    assert problem in ran.output
