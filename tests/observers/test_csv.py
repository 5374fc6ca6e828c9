"""The observer `csv`: the record's own steps and events, as text."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import cbsim
from cbsim.observers.csv_observer import CsvObserver
from tests.observers.test_hooks import crowd
from tests.observers.watched import row, setting, watch


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"request_id": str})


@pytest.mark.parametrize("num_replicas", [1, 3])
def test_steps_are_those_of_the_run(tmp_path: Path, num_replicas: int) -> None:
    settings = {
        "workload": {"type": "trace", "path": "azure-like.csv", "limit": 60, "rate_scale": 20},
        "scheduler": {"type": "vllm", "max_num_seqs": 8},
        "kv_cache": {"num_blocks": 300},
        "replicas": {"count": num_replicas},
        "observers": [{"type": "csv", "steps": True}],
    }
    result = cbsim.run(settings, out=tmp_path / "run")
    steps = read(tmp_path / "run" / "steps.csv")
    pd.testing.assert_frame_equal(steps, result.steps[list(steps)], check_dtype=False, check_exact=True)
    events = read(tmp_path / "run" / "events.csv")
    assert events["time_s"].is_monotonic_increasing
    by = ["request_id", "time_s", "event"]
    expected = result.events[by].astype({"request_id": str, "event": str}).sort_values(by, ignore_index=True)
    told = events[events["event"] != "first_token"][by].sort_values(by, ignore_index=True)
    pd.testing.assert_frame_equal(told, expected, check_dtype=False, check_exact=True)
    firsts = events[events["event"] == "first_token"].set_index("request_id")
    requests = result.requests.set_index("request_id").loc[firsts.index]
    assert (firsts["time_s"] - requests["arrival_s"]).tolist() == requests["ttft_s"].tolist()


def test_events_are_the_same_whether_steps_are_heard_or_not() -> None:
    """Without steps the replicas' events are told one replica after the other."""
    mapping = setting(num_blocks=8, replicas={"count": 3})
    loosely, closely = CsvObserver(), CsvObserver(steps=True)
    for observer in (loosely, closely):
        watch(mapping, crowd(), observer)
    assert len(loosely.steps["step"]) == 0
    assert len(closely.steps["step"]) > 0
    for name, column in loosely.events.items():
        assert column.tolist() == closely.events[name].tolist(), name
    assert {"arrived", "admitted", "first_token", "finished"} <= set(loosely.events["event"])


def test_a_rejected_and_a_preempted_request_and_awkward_names(tmp_path: Path) -> None:
    observer = CsvObserver()
    rows = [row('a "x", y', 0.0, 7, 4), row("b", 0.5, 7, 4), row("c", 0.75, 500, 9)]
    watch(setting(num_blocks=4), rows, observer)
    (write,) = observer.files().values()
    write(tmp_path / "events.csv")
    assert (tmp_path / "events.csv").read_text() == (
        "time_s,replica,event,request_id,num_prompt_tokens,num_output_tokens,num_cached_tokens,num_preemptions\n"
        '0.0,0,arrived,"a ""x"", y",7,4,0,0\n'
        '0.0,0,admitted,"a ""x"", y",7,4,0,0\n'
        "0.5,0,arrived,b,7,4,0,0\n"
        "0.75,0,arrived,c,500,9,0,0\n"
        "0.75,0,rejected,c,500,9,0,0\n"
        '1.0,0,first_token,"a ""x"", y",7,4,0,0\n'
        "1.0,0,admitted,b,7,4,0,0\n"
        "2.0,0,first_token,b,7,4,0,0\n"
        "2.0,0,preempted,b,7,4,0,1\n"
        '4.0,0,finished,"a ""x"", y",7,4,0,0\n'
        "4.0,0,resumed,b,7,4,0,1\n"
        "7.0,0,finished,b,7,4,0,1\n"
    )


def test_files_are_those_that_are_wanted() -> None:
    assert set(CsvObserver().files()) == {"events.csv"}
    assert set(CsvObserver(events=False, steps=True).files()) == {"steps.csv"}
