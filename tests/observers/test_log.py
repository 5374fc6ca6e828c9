"""The observer `log`: its lines, worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

import cbsim
from cbsim.observers import log_observer
from cbsim.observers.log_observer import LogObserver
from tests.observers.watched import row, setting, watch

ROWS = [row("a", 0.0, 7, 4), row("b", 0.5, 7, 4), row("c", 0.75, 500, 9)]
EVENTS = """\
      0.000000 s  replica 0  arrived      a: 7 prompt tokens, 4 to generate
      0.000000 s  replica 0  admitted     a: waited 0 s, 0 cached
      0.500000 s  replica 0  arrived      b: 7 prompt tokens, 4 to generate
      0.750000 s  replica 0  rejected     c: 500 prompt tokens, 9 to generate
      1.000000 s  replica 0  first token  a: TTFT 1.00 s
      1.000000 s  replica 0  admitted     b: waited 500 ms, 0 cached
      2.000000 s  replica 0  first token  b: TTFT 1.50 s
      2.000000 s  replica 0  preempted    b: 7 computed tokens lost, preemption 1
      4.000000 s  replica 0  finished     a: E2E 4.00 s, 4 tokens
      4.000000 s  replica 0  resumed      b: waited 2.00 s, 1 made
      7.000000 s  replica 0  finished     b: E2E 6.50 s, 4 tokens
"""
STEP = "      {0}.000000 s  replica 0  step {1}       1.00 s; {2} decode tokens; 1 running, {3}\n"
STEPS = "".join(
    (
        STEP.format(1, 0, "7 prefill + 0", "0 waiting; KV 50.0%"),
        STEP.format(3, 2, "0 prefill + 1", "1 waiting; KV 75.0%; 1 preempted"),
        STEP.format(5, 4, "8 prefill + 0", "0 waiting; KV 50.0%"),
        STEP.format(7, 6, "0 prefill + 1", "0 waiting; KV 75.0%; 1 finished"),
    )
)


def test_events_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    watch(setting(num_blocks=4), ROWS, LogObserver())
    captured = capsys.readouterr()
    assert captured.err == EVENTS
    assert captured.out == ""


def test_every_second_step_without_events_into_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log = LogObserver(events=False, steps=True, every=2, file="steps.log")
    watch(setting(num_blocks=4), ROWS, log)
    assert log.text() == STEPS
    (write,) = log.files().values()
    write(tmp_path / "steps.log")
    assert (tmp_path / "steps.log").read_text() == STEPS
    assert capsys.readouterr().err == ""


def test_the_file_lies_in_the_run_folder(tmp_path: Path) -> None:
    settings = {
        "workload": {"type": "trace", "path": "azure-like.csv", "limit": 3},
        "scheduler": "vllm",
        "cost_model": {"type": "constant", "step_s": 0.1},
        "observers": [{"type": "log", "file": "log.txt"}, {"type": "log", "steps": True, "file": "more.txt"}],
    }
    result = cbsim.run(settings, out=tmp_path / "run")
    text = (tmp_path / "run" / "log.txt").read_text()
    assert text.count(" finished ") == 3
    first, second = result.observers
    assert isinstance(first, LogObserver)
    assert isinstance(second, LogObserver)
    assert first.text() == text
    assert [line for line in second.text().splitlines() if "  step " not in line] == text.splitlines()


def test_replicas_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(f"r{i}", float(i), 4, 1) for i in range(11)]
    watch(setting(replicas={"count": 11}), rows, LogObserver())
    lines = capsys.readouterr().err.splitlines()
    assert {line.index("arrived") for line in lines if "arrived" in line} == {30}


def test_text_may_lie_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_observer, "MAX_IN_MEMORY", 10)
    observer = LogObserver(file="log.txt")
    watch(setting(), [row("é", 0.0, 4, 1)], observer)
    expected = observer.text()
    assert expected.count("é") == 4
    observer.files()["log.txt"](tmp_path / "log.txt")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == expected
