"""`cbsim explain` as a user meets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cbsim.cli import main
from cbsim.cli.commands import explain_command as explain_steps
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import run_experiment
from tests.run_logs import forget_hashes
from tests.studies.explain.cases import PREEMPTED, experiment

EXPERIMENT = """\
name: small
workload: {type: trace, path: trace.jsonl}
scheduler: {type: vllm, async_scheduling: false, max_tokens_per_step: 8}
kv_cache: {num_blocks: 4, block_size: 2}
cost_model: {type: constant, step_s: 1.0}
"""
SUMMARY = """\
Mean TTFT is 1.00 s: 100% of it is computing its prompt.
p99 TTFT is 1.00 s: in the slowest request, 100% of it is computing its prompt.
Mean E2E is 3.67 s: 45% of it is decoding, 27% computing its prompt, 18% preempted and waiting, 9%
  computing again what a preemption lost.
p99 E2E is 4.96 s: in the slowest request, 40% of it is preempted and waiting, 20% computing its
  prompt, 20% computing again what a preemption lost, 20% decoding; it was preempted.
Of 3 requests 1 was preempted.

slowest  arrival (s)  TTFT (s)  E2E (s)  prompt  output  preemptions  E2E is mostly
-------  -----------  --------  -------  ------  ------  -----------  \
---------------------------------------------------
c              0.000      1.00     5.00       2       3            1  \
preempted and waiting 40%, computing its prompt 20%
a              0.000      1.00     3.00       2       3            0  decoding 67%, computing its prompt 33%
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in `run`, and its experiment in `e.yaml`."""
    folder = tmp_path_factory.mktemp("template")
    run_experiment(experiment(folder, PREEMPTED)).save(folder / "run")
    (folder / "e.yaml").write_text(EXPERIMENT)
    return folder


@pytest.fixture(autouse=True)
def working_folder(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def explain(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["explain", *arguments], catch_exceptions=False)


def test_where_the_time_of_a_run_went() -> None:
    ran = explain("run", "--by", "e2e", "--slowest", "2")
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout == SUMMARY
    assert explain("e.yaml", "--by", "e2e", "--slowest", "2").stdout == SUMMARY


def test_the_readmes_python_runs(repo_root: Path) -> None:
    run_experiment(experiment(Path(), {"r8": (0.0, 2, 2)})).save("runs/chat")
    text = (repo_root / "cbsim/studies/explain/README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    assert [step.step for step in names["steps"]] == [0, 1]


def test_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbsim.cli.commands.explain_command.terminal_width", lambda: 70)
    lines = explain("run", "--by", "e2e", "--slowest", "1").stdout.splitlines()
    assert max(map(len, lines)) <= 70
    assert lines[-1].split() == ["c", "0.000", "1.00", "5.00", "2", "3", "preempted", "40%"]


def test_as_json() -> None:
    summary = json.loads(explain("run", "--json").stdout)
    assert summary["e2e"]["slowest"]["shares"]["preempted"] == pytest.approx(0.4)
    assert summary["e2e"]["num_slowest_preempted"] == summary["num_preempted"] == 1
    assert [request["request_id"] for request in summary["slowest"]] == ["a", "b", "c"]
    request = json.loads(explain("run", "--request", "c", "--json").stdout)
    assert [entry["what"] for entry in request["timeline"]][4:7] == ["preempted", "waited", "resumed"]
    assert request["timeline"][5]["reasons_s"] == {"turn": 1.0, "KV": 1.0}
    steps = json.loads(explain("run", "--steps", "0:2", "--json").stdout)
    assert [step["preempted"] for step in steps] == [[], ["c"]]
    assert steps[0]["chunks"][0] == {"request_id": "a", "num_tokens": 2, "num_left": 2}
    gantt = json.loads(explain("run", "--gantt", "--json").stdout)
    assert [bar["kind"] for bar in gantt["requests"][2]["bars"]] == [
        "prefill", "preempted", "prefill", "decode",
    ]  # fmt: skip


@pytest.mark.parametrize("run", ["run", "e.yaml"])
def test_one_request(run: str) -> None:
    ran = explain(run, "--request", "c")
    assert ran.exit_code == 0
    assert ran.stdout.startswith("c took 5.00 s, 40% of which is preempted and waiting,")
    assert "3.0000  1.00 s  3      computed again: 3 tokens\n" in ran.stdout


@pytest.mark.parametrize("run", ["run", "e.yaml"])
@pytest.mark.parametrize(
    ("window", "shown"), [("1:3", "12"), ("3:", "34"), (":2", "01"), ("4", "4"), ("2:99", "234")]
)
def test_a_window_of_steps(run: str, window: str, shown: str) -> None:
    lines = explain(run, "--steps", window).stdout.splitlines()[2:]
    assert "".join(line[0] for line in lines if not line.startswith("-")) == shown


def test_following_shows_steps_in_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    clock = 100.0

    def sleep(seconds: float) -> None:
        nonlocal clock
        slept.append(seconds)
        clock += seconds

    monkeypatch.setattr(explain_steps.time, "sleep", sleep)
    monkeypatch.setattr(explain_steps.time, "monotonic", lambda: clock)
    lines = explain("run", "--follow", "--speed", "4").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["step", "0", "1", "2", "3", "4"]
    assert slept == [0.25] * 5
    slept.clear()
    told = explain("run", "--follow", "--speed", "0", "--steps", "1:3", "--json").stdout.splitlines()
    assert [json.loads(line)["step"] for line in told] == [1, 2]
    assert not slept


def test_ctrl_c_ends_following_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        if seconds > 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(explain_steps.time, "sleep", interrupt)
    ran = explain("e.yaml", "--follow")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (130, "", "\nstopped after 0 steps\n")


def test_a_gantt_here_and_in_a_file() -> None:
    assert explain("run", "--gantt").stdout.splitlines()[3] == "c     #xx#-"
    ran = explain("run", "--steps", "0:4", "--gantt", "pictures/g.svg")
    assert ran.stdout == "written to pictures/g.png and pictures/g.svg\n"
    svg = Path("pictures/g.svg").read_text()
    for text in ("small: steps 0 to 3", ">c<", ">preempted<", ">3<"):
        assert text in svg
    assert Path("pictures/g.png").read_bytes().startswith(b"\x89PNG")
    assert explain("run", "--request", "c", "--gantt").stdout.splitlines()[3] == "c     #xx#-"


def test_steps_are_of_one_replica_and_a_request_of_its_own() -> None:
    arguments = ("e.yaml", "--set", "replicas.count=2")
    ran = explain(*arguments, "--steps", "0", "--replica", "1")
    assert ran.stderr == "replica 1 of 2, counted from 0\n"
    assert "admitted b" in ran.stdout
    assert " 0       admitted\n" in explain(*arguments, "--request", "b").stdout
    assert explain(*arguments, "--request", "b", "--gantt").stdout.splitlines()[1] == "b     #--"
    assert (
        "no step 9 of replica 1; allowed: 0 to 2"
        in explain(*arguments, "--steps", "9", "--replica", "1").stderr
    )


def test_runs_in_which_nothing_came_out() -> None:
    stopped = explain("e.yaml", "--set", "stop_at_s=0.5")
    assert stopped.stdout == "None of 3 requests got a token.\nOf 3 requests 3 were left unfinished.\n"
    assert explain("e.yaml", "--set", "stop_at_s=0.5", "--steps", "0:").exit_code == 2
    told = explain("e.yaml", "--set", "stop_at_s=0.5", "--request", "a").stdout
    assert told.startswith("a was not finished when the run ended.\n")
    rejected = explain("e.yaml", "--set", "kv_cache.num_blocks=1")
    assert rejected.stdout == "None of 3 requests got a token.\nOf 3 requests 3 were rejected.\n"
    assert explain("e.yaml", "--set", "kv_cache.num_blocks=1", "--request", "a", "--gantt").exit_code == 2


def test_a_gantt_of_more_steps_than_fit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_steps, "_MAX_TEXT_STEPS", 3)
    ran = explain("run", "--gantt")
    assert ran.stderr == "steps 0 to 2; --steps 3: shows others\n"
    assert ran.stdout.splitlines()[3] == "c     #xx"


def test_a_table_of_too_many_steps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_steps, "_MAX_STEPS", 3)
    ran = explain("run", "--steps", "0:")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("--steps: more than 3 steps; allowed: fewer, or --follow --speed 0")
    assert explain("run", "--steps", "0:3").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--request", "cc"), "--request: run has no request 'cc'; did you mean 'c'?"),
        (("run", "--steps", "5:9"), "--steps: run has no step 5; allowed: 0 to 4"),
        (("run", "--steps", "5:9", "--follow"), "--steps: run has no step 5; allowed: 0 to 4"),
        (
            ("run", "--follow", "--gantt"),
            "--gantt: is drawn of steps that have ended; allowed without --follow",
        ),
        (("run", "--follow", "--speed", "nan"), "--speed: got nan; expected a number >= 0"),
        (("run", "--steps", "3:1"), "--steps: got '3:1'; expected A:B with 0 <= A < B, as 0:40"),
        (("run", "--steps", "all"), "--steps: got 'all'; expected A:B with 0 <= A < B, as 0:40"),
        (("run", "--steps", ":", "--replica", "2"), "--replica: got 2; allowed: 0 to 0"),
        (("run", "--gantt", "g.jpg"), "--gantt: got 'g.jpg'; expected a file that ends in .png or .svg"),
        (("run", "--set", "seed=1"), "--set: run is a run that has ended; allowed with an experiment"),
        (
            ("run", "--request", "c", "--steps", "0:2"),
            "--request: is of all steps of a request; allowed without --steps and --follow",
        ),
        ((".",), ".: is not a run folder (it has no manifest.json)"),
        (("rnu",), "rnu: no such file, and no experiment of that name"),
        (
            ("e.yaml", "--set", "sweep.seed=[1, 2]"),
            "e.yaml: has a sweep over seed; allowed: one run, as with --set seed=1",
        ),
    ],
)
def test_mistakes(arguments: tuple[str, ...], message: str) -> None:
    ran = explain(*arguments)
    assert ran.exit_code == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith(message)
    assert ran.stderr.count("\n") == 1


def test_a_sweep_is_asked_for_one_of_its_runs() -> None:
    CliRunner().invoke(main, ["sweep", "e.yaml", "--set", "sweep.seed=[0, 1]", "--out", "s", "--no-plots"])
    ran = explain("s")
    assert ran.exit_code == 2
    first, *points = ran.stderr.splitlines()
    assert first == "s: holds a sweep; allowed: one of its runs:"
    assert [line.split()[-1] for line in points] == ["0", "1"]
    assert explain(points[0].split()[0]).exit_code == 0


def test_a_folder_of_a_former_version_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    path = Path("run/requests.parquet")
    table: Any = pq.read_table(path)
    pq.write_table(table.select([name for name in table.column_names if "part_" not in name]), path)
    forget_hashes("run")
    assert explain("run").stderr == (
        "run: its requests have no part_*_s columns, as those of live runs, former versions and requests "
        "that come again; allowed: "
        "--request ID and --steps A:B, which need none\n"
    )
    assert explain("run", "--request", "c").stdout.startswith("c took 5.00 s; its first token came after")


def test_batches_of_another_run_are_told() -> None:
    import pyarrow.parquet as pq

    run_experiment(Experiment.load("e.yaml", {"output.batches": True})).save("other")
    table: Any = pq.read_table("run/requests.parquet")
    names = [f"x{name}" for name in table["request_id"].to_pylist()]
    pq.write_table(table.set_column(0, "request_id", [names]), "other/requests.parquet")
    forget_hashes("other")
    ran = explain("other", "--steps", "0:2")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr == "batches.parquet has a request 'a' that requests.parquet has not\n"


def test_a_trace_that_has_changed_since_is_told_beside_the_steps() -> None:
    run_experiment(Experiment.load("e.yaml")).save("mine")
    ran = explain("mine", "--steps", "0:2")
    assert ran.stderr == ""
    with Path("trace.jsonl").open("a") as trace:
        trace.write(
            '{"request_id": "z", "arrival_s": 99.0, "num_prompt_tokens": 1, "num_output_tokens": 1}\n'
        )
    again = explain("mine", "--steps", "0:2")
    assert again.stdout == ran.stdout
    assert again.stderr.startswith(f"mine: its input {Path('trace.jsonl').resolve()} has changed since; ")
    assert explain("mine", "--request", "c").stderr == again.stderr
    assert explain("mine").stderr == ""
