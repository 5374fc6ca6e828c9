"""Experiments: what is filled in, what is swept, and every mistake with its exact line."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

from cbsim.base.errors import ConfigError
from cbsim.config.section import ComponentConfig
from cbsim.cost import CostModel, StepShape
from cbsim.schedulers import Scheduler, SchedulerConfig
from cbsim.studies.experiment import Experiment

WORKLOAD = {"type": "trace", "path": "azure-like.csv"}
HEAD = "workload: {type: trace, path: azure-like.csv}\n"


class SlowCost(CostModel):
    """A third party's cost model."""

    class Config(ComponentConfig):
        """Its settings."""

        delay_s: float = Field(gt=0)

    def step_s(self, shape: StepShape) -> float:
        raise NotImplementedError


class NoConfig(Scheduler):
    """A third party's scheduler that forgot its settings."""

    Config: ClassVar[type[SchedulerConfig]] = None  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("broken_plugin", None)


def write(text: str, name: str = "e.yaml") -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def problems(text: str, overrides: Any = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Experiment.load(write(text), overrides)
    return list(caught.value.problems)


def test_defaults() -> None:
    experiment = Experiment.load(write(HEAD + "scheduler: {type: continuous}\n", "my trace.yaml"))
    assert experiment.name == "my-trace"
    assert (experiment.model.name, experiment.gpu.name) == ("llama-3-8b", "h200")
    assert (experiment.engine, experiment.cost_model.type) == ("auto", "roofline")
    assert (experiment.replicas.count, experiment.replicas.router.type) == (1, "round_robin")
    assert experiment.slo.limits() == {}
    assert experiment.points() == [({}, experiment)]


def test_empty_sections_mean_their_defaults() -> None:
    text = HEAD + "scheduler: continuous\nkv_cache:\nslo:\nmodel:\nsweep:\n"
    experiment = Experiment.load(write(text))
    assert experiment.kv_cache.block_size == 16
    assert experiment.model.name == "llama-3-8b"


def test_names_are_files_types_or_paths() -> None:
    write("ttft_s: 3\n", "mine.yaml")
    text = HEAD + "scheduler: orca\nslo: mine.yaml\nmodel: tiny\ncost_model: {type: constant, step_s: 1}\n"
    experiment = Experiment.load(write(text))
    assert experiment.scheduler.type == "continuous"
    assert experiment.slo.limits() == {"ttft_s": 3}
    assert experiment.model.num_layers == 2


def test_an_override_below_a_name_changes_one_figure_of_it() -> None:
    experiment = Experiment.load(
        write(HEAD + "scheduler: orca\n"), ["gpu.memory_gib=70", "scheduler.max_num_seqs=1e2", "name=x"]
    )
    assert (experiment.gpu.name, experiment.gpu.memory_gib) == ("h200", 70)
    assert experiment.scheduler.model_dump()["max_num_seqs"] == 100
    assert experiment.scheduler.model_dump()["prefill_first"] is False
    assert experiment.name == "x"


def test_overrides_in_python_are_values() -> None:
    mapping = {"workload": WORKLOAD, "scheduler": "continuous"}
    experiment = Experiment.from_mapping(mapping, {"replicas.count": 3, "slo": {"ttft_s": 1.5}})
    assert (experiment.replicas.count, experiment.slo.ttft_s) == (3, 1.5)
    assert mapping == {"workload": WORKLOAD, "scheduler": "continuous"}


@pytest.mark.parametrize("scheduler", ["static", "continuous", "chunked_prefill", "preemptive", "vllm"])
def test_what_is_resolved_makes_the_same_experiment_again(scheduler: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,1,1\n")
    text = f"workload: {{type: trace, path: t.csv}}\nscheduler: {scheduler}\nslo: chat\nseed: 4\n"
    resolved = Experiment.load(write(text)).resolved()
    again = Experiment.from_mapping(resolved, folder="/")
    assert again.resolved() == resolved
    assert resolved["workload"]["path"] == (tmp_path / "t.csv").resolve().as_posix()
    assert again.model == Experiment.load("e.yaml").model


def test_paths_deeper_in_a_workload_are_resolved_too(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,1,1\n")
    mixture = "{type: mixture, weights: [1], parts: [{type: empirical, path: t.csv}]}"
    lengths = f"prompt_tokens: {{type: empirical, path: t.csv}}, output_tokens: {mixture}"
    text = f"workload: {{type: synthetic, num_requests: 2, arrivals: {{type: all_at_once}}, {lengths}}}\n"
    workload = Experiment.load(write(text + "scheduler: orca\n")).resolved()["workload"]
    paths = [workload["prompt_tokens"]["path"], workload["output_tokens"]["parts"][0]["path"]]
    assert paths == [(tmp_path / "t.csv").resolve().as_posix()] * 2


def test_bundled_traces_stay_names() -> None:
    assert (
        Experiment.load(write(HEAD + "scheduler: orca\n")).resolved()["workload"]["path"] == "azure-like.csv"
    )


def test_experiments_travel_to_worker_processes() -> None:
    text = HEAD + "sweep: {scheduler: [orca, {type: static}], replicates: 2}\n"
    swept = Experiment.load(write(text))
    for experiment in (swept, swept.points()[3][1]):
        again = pickle.loads(pickle.dumps(experiment))
        assert again.resolved() == experiment.resolved()
        assert again.folder == experiment.folder
        assert len(again.points()) == len(experiment.points())


# Sweeps


def test_a_sweep_stands_for_its_first_point() -> None:
    text = HEAD + "scheduler: {type: static}\nsweep: {scheduler.max_num_seqs: [7, 8], seed: [5, 6]}\n"
    experiment = Experiment.load(write(text))
    points = experiment.points()
    assert [values for values, _ in points] == [
        {"scheduler.max_num_seqs": n, "seed": seed} for n in (7, 8) for seed in (5, 6)
    ]
    assert points[0][1].resolved() == {key: v for key, v in experiment.resolved().items() if key != "sweep"}
    assert [point.seed for _, point in points] == [5, 6, 5, 6]
    assert all(not point.sweep for _, point in points)


def test_whole_mappings_and_names_may_be_swept() -> None:
    text = HEAD + "gpu: l40s\nsweep:\n  scheduler: [{type: static}, orca]\n  gpu: [h100, {name: x}]\n"
    assert problems(text) == [
        f"e.yaml:5: gpu.{key}: missing; expected a number > 0"
        for key in (
            "memory_gib",
            "memory_bandwidth_gb_s",
            "bf16_tflops",
            "fp32_tflops",
            "link_gb_s",
            "host_link_gb_s",
        )
    ]
    text = HEAD + "sweep:\n  scheduler: [{type: static}, orca]\n  gpu: [h100, h200]\n"
    points = Experiment.load(write(text)).points()
    assert [(p.scheduler.type, p.gpu.name) for _, p in points] == [
        (scheduler, gpu) for scheduler in ("static", "continuous") for gpu in ("h100", "h200")
    ]


def test_an_override_pins_an_axis() -> None:
    text = HEAD + "scheduler: orca\nsweep: {scheduler.max_num_seqs: [7, 8], seed: [1, 2]}\n"
    experiment = Experiment.load(write(text), ["scheduler.max_num_seqs=99"])
    assert experiment.notes == ("sweep.scheduler.max_num_seqs: dropped, since scheduler.max_num_seqs is set",)
    assert [values for values, _ in experiment.points()] == [{"seed": 1}, {"seed": 2}]
    assert {p.scheduler.model_dump()["max_num_seqs"] for _, p in experiment.points()} == {99}
    both = Experiment.load("e.yaml", ["scheduler.max_num_seqs=99", "seed=3"])
    assert (both.sweep, len(both.points())) == ({}, 1)


def test_a_pool_is_pinned_by_its_name_and_by_its_place() -> None:
    for axis, key in (("0", "a"), ("a", "0")):
        swept = f"cluster.pools.{axis}.count"
        text = HEAD + f"scheduler: orca\ncluster: {{pools: [{{name: a}}]}}\nsweep: {{{swept}: [1, 2]}}\n"
        experiment = Experiment.load(write(text), [f"cluster.pools.{key}.count=3"])
        assert experiment.notes == (f"sweep.{swept}: dropped, since {swept} is set",)
        assert (experiment.sweep, len(experiment.points())) == ({}, 1)
        assert experiment.cluster is not None
        assert experiment.cluster.pools[0].count == 3
        with pytest.raises(ConfigError, match="is swept twice"):
            Experiment.load("e.yaml", [f"sweep.cluster.pools.{key}.count=[3]"])


def test_an_override_below_a_swept_mapping_goes_into_each_value() -> None:
    text = HEAD + "sweep: {scheduler: [{type: static}, orca]}\n"
    experiment = Experiment.load(write(text), ["scheduler.max_num_seqs=9"])
    assert [p.scheduler.model_dump()["max_num_seqs"] for _, p in experiment.points()] == [9, 9]
    again = Experiment.from_mapping(experiment.resolved())
    assert [p.resolved() for _, p in again.points()] == [p.resolved() for _, p in experiment.points()]


@pytest.mark.parametrize("order", [1, -1])
def test_an_override_lasts_when_another_ends_the_sweep(order: int) -> None:
    text = HEAD + "scheduler: static\nsweep: {scheduler: [{type: static}, orca]}\n"
    experiment = Experiment.load(write(text), ["scheduler.type=vllm", "sweep={}"][::order])
    assert experiment.scheduler.type == "vllm"


def test_where_keeps_the_points_for_which_it_holds() -> None:
    text = (
        HEAD + "scheduler: {type: chunked_prefill}\nsweep:\n"
        "  scheduler.max_tokens_per_step: [256, 512]\n  scheduler.chunk_size: [128, 512, -1]\n"
        "  where: 0 < scheduler.chunk_size <= scheduler.max_tokens_per_step\n"
    )
    points = Experiment.load(write(text)).points()
    assert [tuple(values.values()) for values, _ in points] == [(256, 128), (512, 128), (512, 512)]


def test_where_reads_defaults_and_spares_points_without_its_keys() -> None:
    sweep = "scheduler: [static, chunked_prefill], where: scheduler.chunk_size > 512"
    text = f"{HEAD}sweep: {{{sweep}}}\n"
    assert [p.scheduler.type for _, p in Experiment.load(write(text)).points()] == ["static"]


def test_a_large_grid_has_each_value_checked() -> None:
    text = HEAD + "scheduler: orca\nsweep: {seed: [%s], scheduler.max_num_seqs: [1, 2, 0]}\n"
    assert problems(text % ", ".join(map(str, range(999)))) == [
        "e.yaml:3: scheduler.max_num_seqs: got 0; expected an integer >= 1"
    ]


# Mistakes

TABLE: list[tuple[str, list[str]]] = [
    (
        "scheduler: {type: static, max_num_seq: 4}",
        ["scheduler.max_num_seq: unknown key; did you mean 'max_num_seqs'?"],
    ),
    (
        "scheduler: {type: static, zzz: 4}",
        [
            "scheduler.zzz: unknown key; allowed: type, async_scheduling, max_num_seqs, batch_timeout_s, "
            "max_model_len"
        ],
    ),
    (
        "scheduler: {type: static, max_num_seqs: abc}",
        ["scheduler.max_num_seqs: got 'abc' (str); expected an integer >= 1"],
    ),
    (
        "scheduler: {type: static, max_num_seqs: 1.5}",
        ["scheduler.max_num_seqs: got 1.5; expected an integer >= 1"],
    ),
    (
        "scheduler: {type: static, max_num_seqs: true}",
        ["scheduler.max_num_seqs: got true; expected an integer >= 1"],
    ),
    (
        "scheduler: {type: static, max_num_seqs: '4'}",
        ["scheduler.max_num_seqs: got '4' (str); expected an integer >= 1"],
    ),
    (
        "scheduler: {type: static, max_num_seqs: 0}",
        ["scheduler.max_num_seqs: got 0; expected an integer >= 1"],
    ),
    (
        "scheduler: {type: static, max_num_seqs: [4]}",
        ["scheduler.max_num_seqs: got a list; expected an integer >= 1"],
    ),
    (
        "scheduler: {type: static, max_model_len: x}",
        ["scheduler.max_model_len: got 'x' (str); expected an integer >= 1 or null"],
    ),
    (
        "scheduler: {type: static, max_num_seqs: 99999999999999999999}",
        ["scheduler.max_num_seqs: got 99999999999999999999; expected an integer below 2**63"],
    ),
    ("scheduler: {type: statc}", ["scheduler.type: unknown scheduler 'statc'; did you mean 'static'?"]),
    ("scheduler: statc", ["scheduler: unknown scheduler 'statc'; did you mean 'static'?"]),
    (
        "scheduler: {type: 3}",
        ["scheduler.type: got 3; expected the name of a scheduler"],
    ),
    (
        "scheduler: {max_num_seqs: 3}",
        [
            "scheduler: has no type; expected a name in configs/schedulers or a mapping with type: static, "
            "continuous, chunked_prefill, preemptive, vllm"
        ],
    ),
    (
        "scheduler: [static]",
        [
            "scheduler: got a list; expected a name in configs/schedulers or a mapping with type: static, "
            "continuous, chunked_prefill, preemptive, vllm"
        ],
    ),
    (
        "scheduler: orca\nengine: quick",
        ["engine: got 'quick' (str); expected one of 'auto', 'compiled', 'interpreted', 'fast', 'reference'"],
    ),
    (
        "scheduler: orca\nreplicas: {router: round_robbin}",
        ["replicas.router: unknown router 'round_robbin'; did you mean 'round_robin'?"],
    ),
    (
        "scheduler: orca\nslo: {ttft_s: .nan}",
        ["slo.ttft_s: got nan; expected a number > 0 or a mapping or null"],
    ),
    (
        "scheduler: orca\nslo: {ttft_s: .inf}",
        ["slo.ttft_s: got inf; expected a number > 0 or a mapping or null"],
    ),
    (
        "scheduler: orca\nslo: {ttft_s: 1e400}",
        ["slo.ttft_s: got inf; expected a number > 0 or a mapping or null"],
    ),
    (
        "scheduler: orca\nslo: fast",
        ["slo: unknown slo 'fast'; allowed: chat, mlperf-interactive, mlperf-server"],
    ),
    ("scheduler: orca\nslo: fast.yaml", ["slo: fast.yaml: no such file"]),
    (
        "scheduler: orca\nslo: {ttft_s: {p95: 0, p96: 1}, tpot_s: {}, itl_s: {p99: fast}, share: 1.5}",
        [
            "slo.ttft_s.p95: got 0; expected a number > 0 or null",
            "slo.ttft_s.p96: unknown key; did you mean 'p99'?",
            "slo.tpot_s: got no limit; expected any of each, mean, p50, p90, p95, p99, max",
            "slo.itl_s.p99: got 'fast' (str); expected a number > 0 or null",
            "slo.share: got 1.5; expected a number > 0 and <= 1",
        ],
    ),
    ("scheduler: orca\noutput: {batches: yes}", ["output.batches: got 'yes' (str); expected true or false"]),
    ("scheduler: orca\nkv_cache: 16", ["kv_cache: got 16; expected a mapping"]),
    ("scheduler: orca\nmodel: 7", ["model: got 7; expected a name in configs/models or a mapping"]),
    ("scheduler: orca\nmodel: llama-3-8", ["model: unknown model 'llama-3-8'; did you mean 'llama-3-8b'?"]),
    (
        "scheduler: orca\nname: a/b",
        ["name: got 'a/b'; expected a folder's name: up to 100 letters, digits, blanks and any of _.+=,-"],
    ),
    ("scheduler: orca\nseed: -1", ["seed: got -1; expected an integer >= 0"]),
    ("scheduler: orca\nmodl: tiny", ["modl: unknown key; did you mean 'model'?"]),
    (
        "scheduler: orca\nreplicas: {tensor_parallel: 5}",
        [
            "replicas.tensor_parallel: got 5; expected a divisor of the model's 32 query heads: "
            "1, 2, 4, 8, 16, 32"
        ],
    ),
    (
        "scheduler: nowhere:Thing",
        [
            "scheduler.type: scheduler 'nowhere:Thing': can't import module 'nowhere': "
            "No module named 'nowhere'; looked in HERE and among what is installed"
        ],
    ),
    (
        "scheduler: json:Thing",
        ["scheduler.type: scheduler 'json:Thing': module 'json' has no 'Thing'"],
    ),
    (
        "scheduler: json:JSONDecoder",
        [
            "scheduler.type: scheduler 'json:JSONDecoder': json:JSONDecoder is not a subclass of "
            "cbsim.schedulers.scheduler.Scheduler"
        ],
    ),
    (
        "scheduler: tests.studies.test_experiment:NoConfig",
        [
            "scheduler.type: scheduler 'tests.studies.test_experiment:NoConfig': NoConfig.Config is missing; "
            "expected a subclass of ComponentConfig"
        ],
    ),
    (
        "scheduler: orca\ncost_model: {type: tests.studies.test_experiment:SlowCost, delay: 3}",
        [
            "cost_model.delay_s: missing; expected a number > 0",
            "cost_model.delay: unknown key; did you mean 'delay_s'?",
        ],
    ),
]


@pytest.mark.parametrize(("text", "messages"), TABLE, ids=[text for text, _ in TABLE])
def test_mistakes_are_told_in_one_line_each(text: str, messages: list[str]) -> None:
    line = 2 + text.count("\n")
    assert problems(HEAD + text + "\n") == [
        f"e.yaml:{line}: {message.replace('HERE', str(Path.cwd()))}" for message in messages
    ]


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines() -> None:
    text = (
        "modl: tiny\n"
        "scheduler:\n  type: chunked_prefill\n  chunk_size: abc\n  max_token_per_step: 8\n"
        "gpu: h2000\n"
        "kv_cache:\n  block_size: 0\n  block_size: 16\n"
        "sweep: {seed: 3}\n"
    )
    assert problems(text, ["replicas.count=0", "replicas.cnt=1", "seed.x=1"]) == [
        "e.yaml:1: workload: missing; expected a mapping with type: trace, resampled, synthetic",
        "e.yaml:1: modl: unknown key; did you mean 'model'?",
        "e.yaml:4: scheduler.chunk_size: got 'abc' (str); expected an integer >= 0",
        "e.yaml:5: scheduler.max_token_per_step: unknown key; did you mean 'max_tokens_per_step'?",
        "e.yaml:6: gpu: unknown gpu 'h2000'; did you mean 'h200'?",
        "e.yaml:8: kv_cache.block_size: got 0; expected an integer >= 1",
        "e.yaml:9: kv_cache.block_size: given twice, first in line 8",
        "e.yaml:10: sweep.seed: got 3; expected a list of values",
        "--set: seed: got a mapping; expected an integer >= 0",
        "--set: replicas.count: got 0; expected an integer >= 1",
        "--set: replicas.cnt: unknown key; did you mean 'count'?",
    ]


def test_mistakes_in_a_named_file_are_told_there() -> None:
    write("type: static\nmax_num_seqs: none\n", "mine.yaml")
    assert problems(HEAD + "scheduler: mine.yaml\n") == [
        "mine.yaml:2: max_num_seqs: got 'none' (str); expected an integer >= 1"
    ]
    write("type: [", "mine.yaml")
    assert problems(HEAD + "scheduler: mine.yaml\n")[0].startswith("mine.yaml:1: not valid YAML: ")


def test_mistakes_in_alternatives_are_told_of_the_one_meant() -> None:
    lengths = "prompt_tokens: {type: fixed, value: 0}, output_tokens: {type: unifrm}"
    text = f"workload: {{type: synthetic, num_requests: 5, arrivals: {{type: poisson}}, {lengths}}}\n"
    assert problems(text + "scheduler: orca\n") == [
        "e.yaml:1: workload.arrivals.rate_per_s: missing; expected a number > 0",
        "e.yaml:1: workload.prompt_tokens.value: got 0; expected an integer >= 1 and <= 100,000,000",
        "e.yaml:1: workload.output_tokens.type: got 'unifrm'; did you mean 'uniform'?",
    ]


def test_mistakes_in_a_sweep_are_told_at_the_value() -> None:
    text = HEAD + "scheduler: orca\nsweep:\n  scheduler.max_num_seqs:\n    - 4\n    - many\n  gpuu: [h100]\n"
    assert problems(text) == [
        "e.yaml:6: scheduler.max_num_seqs: got 'many' (str); expected an integer >= 1",
        "e.yaml:7: gpuu: unknown key; did you mean 'gpu'?",
    ]


def test_conditions_that_cannot_be() -> None:
    text = HEAD + "scheduler: orca\nsweep:\n  seed: [1, 2]\n  where: %s\n"
    where = "e.yaml:5: sweep.where: "
    assert problems(text % "seed > 2") == [where + "leaves none of 2 points"]
    assert problems(text % "sede > 2") == [where + "'sede > 2': no setting 'sede'; did you mean 'seed'?"]
    assert problems(text % "name > 2") == [
        where + "'name > 2': '>' not supported between instances of 'str' and 'int'"
    ]


def test_a_trace_that_is_not_there_is_told_with_the_key() -> None:
    text = "scheduler: orca\nworkload:\n  type: trace\n  path: azure-lik.csv\n"
    (message,) = problems(text)
    assert message.startswith(
        "e.yaml:4: workload.path: azure-lik.csv: no such file; did you mean 'azure-like.csv'?"
    )


def test_a_trace_that_is_not_there_is_told_with_all_other_mistakes() -> None:
    text = (
        "scheduler: orca\nseed: -1\nworkload:\n  type: trace\n  path: lost.csv\n  limt: 3\n  rate_scale: 0\n"
    )
    told = problems(text)
    assert [line.partition(";")[0] for line in told] == [
        "e.yaml:2: seed: got -1",
        "e.yaml:5: workload.path: lost.csv: no such file",
        "e.yaml:6: workload.limt: unknown key",
        "e.yaml:7: workload.rate_scale: got 0",
    ]


def test_a_trace_of_lengths_that_is_not_there_is_told_at_its_own_line() -> None:
    text = (
        "scheduler: orca\nworkload:\n  type: synthetic\n  num_requests: 3\n"
        "  arrivals: {type: all_at_once}\n  output_tokens: {type: fixed, value: 3}\n  prompt_tokens:\n"
        "    type: mixture\n    weights: [1, 1]\n    parts:\n"
        "      - {type: fixed, value: 4}\n      - {type: empirical, path: lost.csv}\n"
    )
    (message,) = problems(text)
    assert message.startswith("e.yaml:12: workload.prompt_tokens.parts[1].path: lost.csv: no such file; ")
    message, wrong = problems(text + "replicas: {count: 0}\n")
    assert "workload.prompt_tokens.parts[1].path: lost.csv" in message
    assert wrong.startswith("e.yaml:13: replicas.count: got 0; ")


def test_a_model_that_does_not_fit() -> None:
    (message,) = problems(
        HEAD + "scheduler: orca\nmodel: llama-3-70b\ngpu: rtx4090\nkv_cache: {block_size: 8}\n"
    )
    assert message.startswith("e.yaml:5: kv_cache: no room for a KV block: llama-3-70b weighs 131 GiB")


def test_a_plug_in_that_breaks_while_it_is_imported(working_folder: Path) -> None:
    (working_folder / "broken_plugin.py").write_text("import nothing_of_that_name\n")
    assert problems(HEAD + "scheduler: broken_plugin:Mine\n") == [
        "e.yaml:2: scheduler.type: scheduler 'broken_plugin:Mine': can't import module 'broken_plugin': "
        "No module named 'nothing_of_that_name'"
    ]
    (working_folder / "broken_plugin.py").write_text("raise RuntimeError('not today')\n")
    assert problems(HEAD + "scheduler: broken_plugin:Mine\n") == [
        "e.yaml:2: scheduler.type: scheduler 'broken_plugin:Mine': can't import module 'broken_plugin': "
        "RuntimeError: not today (broken_plugin.py:1)"
    ]


def test_a_plug_in_that_works() -> None:
    text = HEAD + "scheduler: orca\ncost_model: {type: tests.studies.test_experiment:SlowCost, delay_s: 3}\n"
    assert Experiment.load(write(text)).cost_model == SlowCost.Config(
        type="tests.studies.test_experiment:SlowCost", delay_s=3
    )


def test_another_type_for_what_is_swept_as_a_whole_is_told_how() -> None:
    text = HEAD + "sweep: {scheduler: [{type: static}, {type: chunked_prefill, chunk_size: 9}]}\n"
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        Experiment.load(path, ["scheduler.type=static"])
    assert [problem.split(";")[0].split(": ", 1)[1] for problem in caught.value.problems] == [
        "scheduler.chunk_size: unknown key",
        "scheduler.type: the sweep sets the whole scheduler",
    ]
    hint = "the sweep sets the whole scheduler; --set 'scheduler={type: static}' replaces it"
    assert caught.value.problems[-1] == f"--set: scheduler.type: {hint}"
    assert not Experiment.load(path, ["scheduler={type: static}"]).sweep
    assert len(_problems(path, ["scheduler.max_num_seq=9"])) == 1


def _problems(path: str | Path, overrides: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        Experiment.load(path, overrides)
    return caught.value.problems
