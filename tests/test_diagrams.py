"""The READMEs' diagrams say what the code does: states, calls, commands and files."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cbsim
from cbsim.base.paths import data_folder
from cbsim.cli import main
from cbsim.cluster.simpy_world import World
from cbsim.core.driver import Parts
from cbsim.core.stepping import Stepper
from cbsim.cost.cost_model import CostModel
from cbsim.results.run_log import EVENTS, KINDS, RunLog
from cbsim.schedulers import SCHEDULERS
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_workload, simulate
from cbsim.studies.simulation import step_through, stepwise
from cbsim.workload.request import RequestState
from tests import mermaid, simulation
from tests.mermaid import Flowchart, Message, Transition
from tests.test_readmes import READMES, ROOT
from tests.vllm_cases import experiment_of, write_trace

DRAWN = {path: found for path in READMES if (found := mermaid.diagrams(path))}
"""The diagrams of each README that has any."""


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_diagram_is_made_of_statements_of_its_kind(path: Path) -> None:
    for lines in DRAWN[path]:
        assert mermaid.read(lines)


@pytest.mark.parametrize(
    "wrong",
    [
        "flowchart TD\na --> b",
        'flowchart TD\na["A"] -> b["B"]',
        'flowchart TD\na["A"]\na["B"]',
        'flowchart up\na["A"]',
        "stateDiagram-v2\nstate a {\n[*] --> b: c",
        "stateDiagram-v2\na -> b: c",
        "sequenceDiagram\nparticipant A\nA->>B: call()",
        "graph TD\na --> b",
    ],
)
def test_what_is_no_diagram_is_noticed(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"no|twice|never|without"):
        mermaid.read(wrong.splitlines())


# The life of a request


def life_of_a_request() -> list[Transition]:
    (lines,) = mermaid.diagrams(ROOT / "cbsim/schedulers/README.md", "stateDiagram")
    return mermaid.transitions(lines)


TIGHT = {
    "type": "synthetic",
    "num_requests": 24,
    "arrivals": {"type": "poisson", "rate_per_s": 1.0},
    "prompt_tokens": {"type": "uniform", "min": 2, "max": 30},
    "output_tokens": {"type": "uniform", "min": 1, "max": 24},
}
"""Requests of which some are longer than the KV cache, and few fit into it together."""


def tight_runs() -> Iterator[RunLog]:
    """Runs of every scheduler, synchronous and not, whole and cut short, with batches recorded."""
    for name in SCHEDULERS.builtin_names():
        config = SCHEDULERS.get(name).Config
        budget = {"max_tokens_per_step": 12} if "max_tokens_per_step" in config.model_fields else {}
        ways = [{"preemption": "swap"}, {}] if "preemption" in config.model_fields else [{}]
        for way in ways:
            for is_async in (False, True):
                for stop_at_s in (None, 9.0, 57.0):
                    yield tight_run({"type": name, "async_scheduling": is_async, **budget, **way}, stop_at_s)


def tight_run(scheduler: dict[str, Any], stop_at_s: float | None) -> RunLog:
    experiment = Experiment.from_mapping(
        {
            "workload": TIGHT,
            "scheduler": scheduler,
            "cost_model": {"type": "constant", "step_s": 1.0},
            "kv_cache": {"num_blocks": 12, "block_size": 4},
            "output": {"batches": True},
            "stop_at_s": stop_at_s,
        }
    )
    return simulate(experiment, make_workload(experiment))[0]


def failing_runs() -> Iterator[RunLog]:
    """Runs in which KV that should come from elsewhere does not: loaded ahead, and read within a step."""
    limits = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "block_size": 4, "num_gpu_blocks": 20}
    off = {"enable_prefix_caching": False, "policy": "fcfs"}
    for kind, given in (("pd", {"remote_prefill": True, "load_s": 1.0}), ("tier_sync", {"tier_tokens": 8})):
        row = {"id": "r0", "arrival_s": 0.0, "prompt_tokens": 12, "output_tokens": 3, "fail_from_block": 0}
        case = {
            "name": kind,
            "config": limits | off | {"connector": {"kind": kind}},
            "requests": [row | given],
        }
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "requests.jsonl"
            write_trace(case, trace)
            experiment = Experiment.from_mapping(experiment_of(case, trace, "interpreted"))
            yield simulate(experiment, make_workload(experiment))[0]


def run_in_two_pools() -> RunLog:
    """Prefill and decode apart."""
    pools = [{"name": role, "role": role} for role in ("prefill", "decode")]
    settings = {
        "model": "llama-3-8b",
        "workload": TIGHT,
        "scheduler": "vllm",
        "cost_model": {"type": "constant", "step_s": 1.0},
        "kv_cache": {"num_blocks": 40, "block_size": 4},
        "cluster": {"pools": pools},
    }
    return simulate(Experiment.from_mapping(settings), make_workload(Experiment.from_mapping(settings)))[0]


@cache
def logs() -> list[RunLog]:
    return [*tight_runs(), *failing_runs()]


def state_changes(log: RunLog) -> set[tuple[str, str, str]]:
    """Every change of state in a run: from, to, and the event that made it (`the run ends` is none)."""
    found = set()
    becomes = {
        "arrived": "waiting",
        "admitted": "running",
        "resumed": "running",
        "preempted": "preempted",
        "finished": "finished",
        "rejected": "rejected",
        "failed": "failed",
        "handed_over": "handed_over",
    }
    states: dict[int, str] = {}
    names = [EVENTS[code] for code in log.events["event"].tolist()]
    rejected = set(log.rejections)
    for event, request in zip(names, log.events["request"].tolist(), strict=True):
        if event not in becomes or (event == "arrived" and request in rejected):
            continue
        found.add((states.get(request, "[*]"), becomes[event], event))
        # Whoever was handed over waits elsewhere, on another visit.
        states[request] = "waiting" if event == "handed_over" else becomes[event]
    for request, code in enumerate(log.requests["state"].tolist()):
        state = RequestState(code).name.lower()
        if state == "unfinished":
            found.add((states[request], state, "the run ends"))
        else:
            assert states[request] == state
    return found


def kind_changes(log: RunLog) -> set[tuple[str, str]]:
    """What a request computes in a step after what it computed in the one before, since it was admitted."""
    assert log.batches is not None
    rows: dict[int, list[tuple[float, str]]] = {}
    kinds = (KINDS[code] for code in log.batches["kind"].tolist())
    for request, at_s, kind in zip(
        log.batches["request"].tolist(), log.batches["start_s"].tolist(), kinds, strict=True
    ):
        rows.setdefault(request, []).append((at_s, kind))
    for code, request, at_s in zip(
        log.events["event"].tolist(),
        log.events["request"].tolist(),
        log.events["time_s"].tolist(),
        strict=True,
    ):
        if EVENTS[code] in ("admitted", "resumed"):
            rows.setdefault(request, []).append((at_s - 0.5, "[*]"))
    found = set()
    for steps in rows.values():
        in_order = [kind for _, kind in sorted(steps)]
        found |= set(pairwise(in_order))
    return {(before, after) for before, after in found if after != "[*]"}


def test_the_states_of_the_diagram_are_those_of_requests() -> None:
    drawn = {state for each in life_of_a_request() if each.inside is None for state in each[:2]}
    assert drawn - {"[*]"} == {state.name.lower() for state in RequestState}


def test_requests_change_their_state_as_drawn_and_in_no_other_way() -> None:
    drawn = {
        (
            each.source,
            each.target,
            "the run ends" if each.label == "the run ends" else each.label.split()[0].strip(","),
        )
        for each in life_of_a_request()
        if each.inside is None
    }
    assert set().union(*map(state_changes, [*logs(), run_in_two_pools()])) == drawn


def test_running_requests_compute_as_drawn() -> None:
    drawn = {each[:2] for each in life_of_a_request() if each.inside == "running"}
    assert {state for each in drawn for state in each} == {"[*]", *KINDS}
    # An asynchronous step is decided before it starts: its rows are not in the order of decisions.
    assert set().union(*map(kind_changes, (log for log in logs() if not is_async(log)))) == drawn


def is_async(log: RunLog) -> bool:
    return bool((log.steps["scheduled_at_s"] < log.steps["start_s"]).any())


# The life of a step


class Tape:
    """Records who calls what, of some methods of some objects."""

    def __init__(self) -> None:
        self.calls: list[Message] = []
        self._callers = ["World"]

    def record(self, instance: Any, name: str, methods: tuple[str, ...]) -> None:
        for method in methods:
            setattr(instance, method, self.recorded(name, method, getattr(instance, method)))

    def recorded(self, name: str, method: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*arguments: Any) -> Any:
            self.calls.append(Message(self._callers[-1], name, method, True))
            self._callers.append(name)
            try:
                return call(*arguments)
            finally:
                self._callers.pop()

        return recorded


def calls_of_a_run(num_output_tokens: int, **settings: Any) -> list[Message]:
    """What World, Stepper, Scheduler and CostModel call of each other for one request."""
    tape = Tape()
    request = {"request_id": "a", "arrival_s": 0.0, "num_prompt_tokens": 5}
    scheduler = simulation.make_scheduler("vllm", **settings)
    setup = scheduler.setup(scheduler.case([{**request, "num_output_tokens": num_output_tokens}]))
    rules = setup.rung.rules()
    parts = Parts(rules, simulation.one_second)
    watches = {
        rule: tape.recorded("Scheduler", rule, parts.bound(rules[rule]).interpreted)
        for rule in ("rejects", "decide")
    }
    step_s = tape.recorded("CostModel", "step_s", simulation.one_second)
    world = stepwise(setup, step_s=step_s, watches=watches)
    tape.record(world.replicas[0], "Stepper", ("submit", "call", "end_step"))
    step_through(world, setup)
    return tape.calls


def drawn_calls(number: int) -> list[Message]:
    """The calls of one of the core README's diagrams, without their arguments."""
    lines = mermaid.diagrams(ROOT / "cbsim/core/README.md", "sequence")[number]
    return [
        each._replace(text=each.text.partition("(")[0]) for each in mermaid.messages(lines) if each.is_call
    ]


def test_a_step_is_called_as_drawn() -> None:
    assert calls_of_a_run(1, async_scheduling=False) == drawn_calls(0)


def test_two_steps_in_flight_are_called_as_drawn() -> None:
    drawn = drawn_calls(1)
    shown = {(each.target, each.text) for each in drawn}
    calls = [each for each in calls_of_a_run(3, async_scheduling=True) if (each.target, each.text) in shown]
    assert calls == drawn
    text = "\n".join(mermaid.diagrams(ROOT / "cbsim/core/README.md", "sequence")[1])
    assert re.findall(r"decide\((.*)\)", text) == ["step 0", "step 1", "step 2", "step 3"]


def test_the_participants_of_a_step_have_such_functions() -> None:
    vllm = SCHEDULERS.get("vllm").rules()
    classes = {"World": World, "Stepper": Stepper, "CostModel": CostModel}
    for number in (0, 1):
        for each in drawn_calls(number):
            assert each.source in {*classes, "Scheduler"}
            if each.target == "Scheduler":
                assert each.text in vllm
            else:
                assert callable(getattr(classes[each.target], each.text))


# From a trace to a report


@cache
def data_flow() -> Flowchart:
    (lines,) = mermaid.diagrams(ROOT / "README.md", "flowchart")
    return mermaid.flowchart(lines)


def labels(shape: str) -> dict[str, list[str]]:
    chart = data_flow()
    return {name: label for name, label in chart.labels.items() if chart.shapes[name] == shape}


COMMANDS = {name: label[0].removeprefix("cbsim ") for name, label in labels("([").items()}
EXPERIMENT = """\
workload: {type: trace, path: t.csv}
scheduler: continuous
cost_model: {type: constant, step_s: 0.05}
slo: {ttft_s: 0.3}
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands that write folders have run."""
    folder = tmp_path_factory.mktemp("flow")
    rows = "".join(f"{i / 4},20,{3 + i % 2}\n" for i in range(120))
    (folder / "t.csv").write_text(f"arrived_at,num_prefill_tokens,num_decode_tokens\n{rows}")
    (folder / "e.yaml").write_text(EXPERIMENT)
    experiment = str(folder / "e.yaml")
    call("run", experiment, "--out", str(folder / "run"))
    call(
        "sweep",
        experiment,
        "--set",
        "sweep.scheduler.max_num_seqs=[4, 8]",
        "--out",
        str(folder / "sweep"),
        "--no-plots",
    )
    search = ("--requests", "60", "--replicates", "2", "--tolerance", "0.5", "--no-plots")
    call("capacity", experiment, *search, "--out", str(folder / "capacity"))
    return folder


def call(*arguments: str) -> None:
    ran = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    assert ran.exit_code == 0, ran.output


def test_every_command_of_the_flow_is_one() -> None:
    assert len(COMMANDS) > 5
    for command in COMMANDS.values():
        assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0, command


def test_commands_write_the_folders_that_arrows_lead_to(written: Path) -> None:
    folders = labels("[(")
    assert {COMMANDS[a] for a, b in data_flow().arrows if b in folders} == {
        "run",
        "live",
        "sweep",
        "capacity",
    }
    for source, target in data_flow().arrows:
        if target in folders and COMMANDS[source] != "live":
            kind, *files = folders[target]
            assert kind == f"{COMMANDS[source]} folder"
            assert [name for name in files if not (written / COMMANDS[source] / name).exists()] == []


def test_commands_read_the_folders_that_arrows_come_from(written: Path) -> None:
    read = {(folder, COMMANDS[command]) for folder, command in data_flow().arrows if folder in labels("[(")}
    reported = {folder for folder, command in read if command == "report"}
    assert reported == set(labels("[("))
    names = [str(written / labels("[(")[folder][0].split()[0]) for folder in sorted(reported)]
    call("report", *names, "--out", str(written / "report.html"))
    assert {command for _, command in read} == {"report", "explain", "compare"}
    call("compare", names[-2], names[-2])
    call("explain", names[-2], "--steps", "0:3")


def test_files_of_the_flow_are_what_they_are_called(written: Path) -> None:
    files = {label[0].partition(": ")[0]: "<br/>".join(label) for label in labels("[/").values()}
    for suffix in files["trace"].partition(": ")[2].split(", "):
        call("workload", "convert", str(written / "t.csv"), str(written / f"trace{suffix}"))
        call("workload", "stats", str(written / f"trace{suffix}"))
    profile = files["profile"].partition(": ")[2]
    assert list((data_folder("calibration") / "profiles").rglob(profile))
    folders = {path.name.lower() for path in data_folder("configs").iterdir() if path.is_dir()}
    listed = files["configs"].partition(": ")[2].replace("<br/>", " ").lower().replace(",", "").split()
    assert set(listed) == folders
    assert "report.html" in files


def test_the_package_is_the_one_that_the_diagrams_are_of() -> None:
    assert Path(cbsim.__file__).resolve().parent == ROOT / "cbsim"
