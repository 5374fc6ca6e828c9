"""What Python offers beyond the command line: DataFrames, nested overrides, notebooks."""

import warnings

import pandas as pd
import pytest

import cbsim
from cbsim.base.errors import CbsimError

FRAME = pd.DataFrame(
    {"arrival_s": [0.0, 0.5, 1.0], "num_prompt_tokens": [10, 20, 30], "num_output_tokens": [3, 4, 5]}
)
PLAIN = {
    "model": "llama-3-8b",
    "scheduler": {"type": "vllm", "max_num_seqs": 8},
    "cost_model": {"type": "constant", "step_s": 0.125},
}


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("CBSIM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_a_dataframe_is_a_workload():
    result = cbsim.run({**PLAIN, "workload": FRAME})
    assert result.requests["num_output_tokens"].tolist() == [3, 4, 5]
    again = cbsim.run(result.config)
    assert again.requests.equals(result.requests), "what is written into config.yaml runs again"
    trace = {"type": "trace", "path": FRAME, "limit": 2}
    assert len(cbsim.run({**PLAIN, "workload": trace}).requests) == 2
    other = cbsim.run({**PLAIN, "workload": FRAME}, overrides={"workload": FRAME.assign(num_output_tokens=1)})
    assert other.requests["num_output_tokens"].tolist() == [1, 1, 1]


def test_dataframes_of_other_formats():
    azure = pd.DataFrame(
        {
            "TIMESTAMP": pd.to_datetime(["2023-11-16 18:01:51.1", "2023-11-16 18:01:52.6"]),
            "ContextTokens": [5, 6],
            "GeneratedTokens": [1, 2],
        }
    )
    assert cbsim.run({**PLAIN, "workload": azure}).requests["arrival_s"].tolist() == [0.0, 1.5]
    blocks = {
        "timestamp": [0, 1000],
        "input_length": [20, 30],
        "output_length": [1, 2],
        "hash_ids": [[1], [1, 2]],
    }
    cached = {**PLAIN, "kv_cache": {"prefix_caching": True}}
    workload = {"type": "trace", "path": pd.DataFrame(blocks), "hash_block_tokens": 16}
    assert cbsim.run({**cached, "workload": workload}).requests["num_cached_tokens"].tolist() == [0, 16]


def test_a_wrong_dataframe_is_told_by_row():
    with pytest.raises(CbsimError, match="row 2: num_output_tokens: got 0"):
        cbsim.run({**PLAIN, "workload": FRAME.assign(num_output_tokens=[1, 0, 1])})


def test_nested_overrides_change_what_they_name():
    settings = {**PLAIN, "workload": FRAME}
    merged = cbsim.run(settings, overrides={"scheduler": {"max_tokens_per_step": 64}}).config
    assert merged["scheduler"]["max_tokens_per_step"] == 64
    assert merged["scheduler"]["max_num_seqs"] == 8
    replaced = cbsim.run(settings, overrides={"scheduler": {"type": "continuous"}}).config
    assert replaced["scheduler"]["type"] == "continuous"
    assert replaced["scheduler"]["max_num_seqs"] != 8
    dotted = cbsim.run(settings, overrides={"scheduler.max_num_seqs": 2}).config
    assert dotted["scheduler"]["max_num_seqs"] == 2


def test_a_run_of_a_sweep_says_so():
    swept = {**PLAIN, "workload": FRAME, "sweep": {"scheduler.max_num_seqs": [1, 2, 3]}}
    with pytest.warns(UserWarning, match="first of 3 points"):
        result = cbsim.run(swept)
    assert result.summary["notes"][0].startswith(
        "the first of 3 points of a sweep over scheduler.max_num_seqs"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cbsim.run(swept, overrides={"sweep": {}})


def test_sweeps_of_a_notebook_keep_apart(tmp_path):
    swept = {**PLAIN, "name": "mine", "workload": FRAME, "sweep": {"scheduler.max_num_seqs": [1, 2]}}
    cbsim.sweep(swept)
    cbsim.sweep(swept, overrides={"kv_cache.num_blocks": 50})
    cbsim.sweep(swept)
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(folders) == 2
    assert all(folder.startswith("mine-") for folder in folders)
    assert all((tmp_path / "runs" / folder / "table.csv").is_file() for folder in folders)


def test_what_a_notebook_shows():
    shown = cbsim.run({**PLAIN, "workload": FRAME, "name": "a b"})._repr_html_()
    assert "3 of 3 requests finished" in shown
    assert "ttft_s" in shown
    assert "p99" in shown
