import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cbsim.base.errors import CbsimError
from cbsim.results.result import hash_files, hash_spec, load_run, make_manifest
from cbsim.results.tables import NUM_ITL_QUANTILES
from tests.run_logs import GPU, MODEL, empty_log, make_result, paper_batches, paper_log, random_log

REQUESTS = [
    *("request_id", "replica", "arrival_s", "queue_s", "ttft_s", "tpot_s", "max_itl_s", "e2e_s"),
    *("finished_at_s", "num_prompt_tokens", "num_output_tokens", "num_cached_tokens", "num_preemptions"),
    *("priority", "state", "pool"),
]
STEPS = [
    *(
        "replica",
        "step",
        "scheduled_at_s",
        "start_s",
        "duration_s",
        "num_prefill_tokens",
        "num_decode_tokens",
    ),
    *("num_prefill_seqs", "num_decode_seqs", "num_running", "num_waiting", "num_preempted", "num_finished"),
    *("kv_blocks_used", "kv_blocks_total", "num_attention_pairs", "num_context_tokens", "num_logits"),
    "pool",
]
EVENTS = ["time_s", "replica", "step", "request_id", "event", "num_tokens", "reason"]
BATCHES = [
    *("replica", "step", "start_s", "position", "request_id", "num_tokens", "num_computed_tokens", "kind"),
]
FILES = {"config.yaml", "manifest.json", "summary.json"} | {
    f"{name}.parquet" for name in ("requests", "visits", "steps", "events", "itl")
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_frames_of_the_paper_log():
    result = make_result(paper_log(batches=paper_batches()))
    requests, events, batches = result.requests, result.events, result.batches
    assert list(requests) == REQUESTS
    assert list(result.steps) == STEPS
    assert list(events) == EVENTS
    assert list(batches) == BATCHES
    assert requests["request_id"].tolist() == ["a", "b", "c", "d"]
    assert requests["state"].tolist() == ["finished", "finished", "finished", "rejected"]
    assert requests["replica"].isna().tolist() == [False, False, False, True]
    assert requests["ttft_s"].tolist()[:3] == [1.0, 1.5, 2.0]
    assert requests["tpot_s"].tolist()[::2] == [1.0, 1.5]
    assert math.isnan(requests["tpot_s"][1])
    assert requests["queue_s"].tolist()[:3] == [0.0, 0.5, 1.0]
    assert requests["e2e_s"].tolist()[:3] == [3.0, 1.5, 3.5]
    assert requests.loc[3, ["queue_s", "ttft_s", "e2e_s", "finished_at_s"]].isna().all()
    assert events["step"].tolist() == [pd.NA, 0, pd.NA, pd.NA, pd.NA, 2]
    assert str(events["step"].dtype) == "Int64"
    assert events["request_id"].tolist() == ["a", "a", "b", "d", "d", "a"]
    assert events["event"].tolist()[-2:] == ["rejected", "finished"]
    assert events["reason"].dropna().to_dict() == {4: "too long"}
    assert batches["request_id"].tolist() == ["a", "b"]
    assert batches["kind"].tolist() == ["decode", "prefill"]
    assert result.itl["itl_s"].iloc[[0, NUM_ITL_QUANTILES // 2, -1]].tolist() == [1.0, 1.0, 1.5]


def test_states_under_way_are_unfinished():
    log = paper_log()
    state = np.array([0, 1, 2, 3], dtype=np.int8)
    result = make_result(dataclasses.replace(log, requests=log.requests | {"state": state}))
    assert set(result.requests["state"]) == {"unfinished"}


def test_what_is_saved_is_loaded(tmp_path):
    result = make_result(paper_log(batches=paper_batches()), notes=["mind the gap"])
    assert result.save(tmp_path / "deep" / "run") == tmp_path / "deep" / "run"
    loaded = load_run(tmp_path / "deep" / "run")
    assert loaded.summary == result.summary
    assert list(loaded.summary) == list(result.summary)
    assert loaded.config == result.config
    files = loaded.manifest.pop("files")
    assert files.keys() == FILES - {"manifest.json"} | {"batches.parquet"}
    assert loaded.manifest == result.manifest
    assert loaded.notes == ["mind the gap"]
    for name in ("requests", "visits", "steps", "events", "batches", "itl"):
        pd.testing.assert_frame_equal(getattr(loaded, name), getattr(result, name))
    assert set(contents(tmp_path / "deep" / "run")) == FILES | {"batches.parquet"}


def test_without_batches_there_is_no_such_table(tmp_path):
    folder = make_result(paper_log()).save(tmp_path / "run")
    assert set(contents(folder)) == FILES
    assert make_result(paper_log()).batches is None
    assert load_run(folder).batches is None


def test_a_loaded_run_can_be_saved_again(tmp_path):
    first = make_result(random_log(3)).save(tmp_path / "first")
    second = load_run(first).save(tmp_path / "second")
    assert contents(first) == contents(second)


def test_equal_runs_make_equal_files(tmp_path):
    for name in ("one", "two"):
        make_result(random_log(5)).save(tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_an_empty_run_can_be_saved(tmp_path):
    loaded = load_run(make_result(empty_log()).save(tmp_path / "run"))
    assert [len(frame) for frame in (loaded.requests, loaded.steps, loaded.events, loaded.itl)] == [
        0,
        0,
        0,
        0,
    ]
    assert list(loaded.requests) == REQUESTS


def test_columns_say_their_units_and_nulls_are_null(tmp_path):
    folder = make_result(paper_log(batches=paper_batches())).save(tmp_path / "run")
    for path in folder.glob("*.parquet"):
        for field in pq.read_schema(path):
            assert field.metadata[b"description"], (path.name, field.name)
            if field.name.endswith("_s"):
                assert field.metadata[b"unit"] == b"s"
            if field.name.endswith("_tokens"):
                assert field.metadata[b"unit"] == b"tokens"
    requests = pq.read_table(folder / "requests.parquet")
    assert [column.null_count for column in requests.select(["replica", "tpot_s", "e2e_s"]).columns] == [
        1,
        2,
        1,
    ]


def test_json_has_no_nan(tmp_path):
    text = (make_result(empty_log()).save(tmp_path / "run") / "summary.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in summary.json"))


def test_a_former_run_is_replaced_whole(tmp_path):
    folder = make_result(paper_log(batches=paper_batches()), "old").save(tmp_path / "run")
    make_result(paper_log(), "new").save(folder)
    assert load_run(folder).name == "new"
    assert set(contents(folder)) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_empty_folder_is_used(tmp_path):
    assert load_run(make_result(paper_log()).save(tmp_path)).name == "paper"


def test_what_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("text")
    for name, kind in (("thesis", "folder"), ("file", "file")):
        with pytest.raises(CbsimError) as caught:
            make_result(paper_log()).save(tmp_path / name)
        assert caught.value.problems == (
            f"{tmp_path / name}: a {kind} that is no run stands there; name another folder, or remove it",
        )
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    old = contents(make_result(paper_log(), "old").save(tmp_path / "run"))

    def run_out_of_space(writer, table):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", run_out_of_space)
    for name in ("run", "fresh"):
        with pytest.raises(CbsimError, match="can't be written: No space left on device"):
            make_result(paper_log(), "new").save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert contents(tmp_path / "run") == old


def test_a_rename_that_fails_puts_the_former_run_back(tmp_path, monkeypatch):
    folder = make_result(paper_log(), "old").save(tmp_path / "run")
    rename = Path.rename

    def fail_for_the_new_one(path, target):
        if path.name == "new":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(CbsimError, match="Input/output error"):
        make_result(paper_log(), "new").save(folder)
    assert load_run(folder).name == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_loading_what_is_no_run(tmp_path):
    with pytest.raises(CbsimError, match="nowhere: no such folder; allowed: a run folder"):
        load_run(tmp_path / "nowhere")
    folder = make_result(paper_log()).save(tmp_path / "run")
    (folder / "steps.parquet").write_bytes(b"no table")
    loaded = load_run(folder)
    assert len(loaded.requests) == 4
    with pytest.raises(CbsimError, match=r"steps.parquet: can't be read"):
        loaded.steps
    (folder / "summary.json").write_text('{"num_requests": ')
    with pytest.raises(CbsimError, match="is a damaged run folder"):
        load_run(folder)
    (folder / "summary.json").write_text("[]")
    with pytest.raises(
        CbsimError, match=r"is a damaged run folder: summary.json: got a list; expected a map"
    ):
        load_run(folder)


@pytest.mark.parametrize("name", ["requests", "steps", "events"])
def test_a_foreign_table_is_told_with_what_it_lacks(name, tmp_path):
    folder = make_result(paper_log()).save(tmp_path / "run")
    pd.DataFrame({"other": [1]}).to_parquet(folder / f"{name}.parquet")
    with pytest.raises(CbsimError, match=rf"{name}.parquet: no table of {name} of a run: has no column \w"):
        getattr(load_run(folder), name)


@pytest.mark.parametrize("text", ["3\n", "", "model: {\n  a\n  b: c:\n"])
def test_settings_of_no_run_are_told_in_a_line(text, tmp_path):
    folder = make_result(paper_log()).save(tmp_path / "run")
    (folder / "config.yaml").write_text(text)
    with pytest.raises(CbsimError, match="is a damaged run folder") as caught:
        load_run(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.yaml", "{}", "config.yaml: model: "),
        ("config.yaml", "scheduler: 3", "config.yaml: scheduler: "),
        ("config.yaml", "slo: {ttft_s: x}", "config.yaml: slo.ttft_s"),
        ("summary.json", "{}", "summary.json: num_requests: "),
        ("summary.json", "[" * 100_000, "summary.json: not JSON: nested too deeply"),
        ("summary.json", '{"mfu": NaN}', "summary.json: mfu: "),
        ("manifest.json", '{"versions": 1, "seed": "x", "inputs": {}}', "manifest.json: versions: "),
        ("manifest.json", '{"versions": {}, "seed": 0, "inputs": [{"sha256": "a"}]}', "inputs.0: expected"),
    ],
)
def test_files_that_somebody_has_changed_are_told(name, content, told, tmp_path):
    folder = make_result(paper_log()).save(tmp_path / "run")
    (folder / name).write_text(content)
    with pytest.raises(CbsimError) as caught:
        load_run(folder)
    assert any(
        f"{folder}: is a damaged run folder: " in each and told in each for each in caught.value.problems
    )


def test_manifest_names_every_input(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_bytes(b"abc")
    manifest = make_manifest(7, [trace, trace], {"model": MODEL, "gpu": GPU})
    assert manifest["seed"] == 7
    assert {"cbsim", "python", "numpy", "pyarrow", "simpy"} <= manifest["versions"].keys()
    # SHA-256 of "abc" from FIPS 180-2, appendix B.1.
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest["inputs"] == [
        {"spec": "gpu", "sha256": hash_spec(GPU)},
        {"spec": "model", "sha256": hash_spec(MODEL)},
        {"file": str(trace), "sha256": known},
    ]
    assert hash_spec(MODEL) != hash_spec(MODEL.model_copy(update={"num_layers": 2}))


def test_inputs_are_named_by_paths_that_hold_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "trace.csv").write_bytes(b"abc")
    monkeypatch.chdir(tmp_path)
    (entry,) = make_manifest(0, [Path("trace.csv")])["inputs"]
    assert entry["file"] == str(tmp_path / "trace.csv")


def test_every_unreadable_input_is_named(tmp_path):
    with pytest.raises(CbsimError) as caught:
        hash_files([tmp_path / "b", tmp_path / "a"])
    assert caught.value.problems == tuple(
        f"{tmp_path / name}: can't be read: No such file or directory" for name in "ab"
    )


def test_a_visit_stands_for_each_request_and_replica() -> None:
    visits = make_result(paper_log()).visits
    assert visits is not None
    assert visits["reason"].tolist()[:3] == ["finished"] * 3
    assert visits["reason"].tolist()[3] == "rejected"
    assert visits["left_at_s"].tolist() == [3.0, 2.0, 4.5, 2.0]
    assert (visits["left_at_s"] >= visits["arrived_at_s"]).all()
    assert set(visits["role"]) == {"both"}
