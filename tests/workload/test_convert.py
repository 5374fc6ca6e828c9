"""Conversion: what is written reads back as equal requests, whatever the container."""

import gzip

import pytest

from cbsim.base.errors import CbsimError, WorkloadError
from cbsim.workload.convert import convert

SUFFIXES = [".jsonl", ".csv", ".parquet", ".jsonl.gz", ".csv.zst"]
RICH = {
    "type": "synthetic",
    "num_requests": 200,
    "arrivals": {"type": "gamma", "rate_per_s": 3.0, "cv": 2.0},
    "prompt_tokens": {"type": "lognormal", "mean": 300.0, "sigma": 1.0},
    "output_tokens": {"type": "uniform", "min": 1, "max": 50},
    "sessions": {"think_time_s": 5.0},
    "users": {"num_users": 3},
    "priorities": {"values": [-1, 0, 4]},
    "deadlines": {"values_s": [0.1, 2.0]},
}
PLAIN = {name: RICH[name] for name in ("type", "num_requests", "arrivals", "prompt_tokens", "output_tokens")}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("settings_", [PLAIN, RICH], ids=["plain", "rich"])
def test_round_trip(make, facts, tmp_path, suffix, settings_):
    workload = make(**settings_)
    path = tmp_path / f"w{suffix}"
    assert convert(workload, path) == 200
    again = make(type="trace", path=path.name)
    assert [facts(r) for r in again.requests()] == [facts(r) for r in workload.requests()]
    assert again.notes() == []
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_some_have_what_others_lack_and_names_are_odd(trace, make, facts, tmp_path, suffix):
    text = (
        '{"request_id": "a, \\"b\\"", "arrival_s": 0.1, "num_prompt_tokens": 3, "num_output_tokens": 1}\n'
        '{"request_id": "\u00fc", "arrival_s": 0.30000000000000004, "num_prompt_tokens": 3, '
        '"num_output_tokens": 1, "user": "u,v", "deadline_s": 0.7, "prompt": [["s \u00e9", 3]]}\n'
    )
    workload = trace("source.jsonl", text)
    convert(workload, tmp_path / f"w{suffix}")
    again = make(type="trace", path=f"w{suffix}")
    assert [facts(r) for r in again.requests()] == [facts(r) for r in workload.requests()]


def test_settings_are_applied(trace, make, tmp_path):
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-01-01 00:00:00,9,9\n2023-01-01 00:00:08,9,9\n"
    convert(trace("a.csv", text, rate_scale=2.0, max_output_tokens=4), tmp_path / "w.jsonl")
    assert (tmp_path / "w.jsonl").read_text() == (
        '{"request_id": "r0", "arrival_s": 0.0, "num_prompt_tokens": 9, "num_output_tokens": 4}\n'
        '{"request_id": "r1", "arrival_s": 4.0, "num_prompt_tokens": 9, "num_output_tokens": 4}\n'
    )


def test_equal_requests_make_equal_gzip_bytes(make, tmp_path):
    for name in ("one.csv.gz", "another.csv.gz"):
        convert(make(**PLAIN), tmp_path / name)
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "another.csv.gz").read_bytes()
    assert (tmp_path / "one.csv.gz").read_bytes()[4:8] == bytes(4)  # no time of writing
    assert gzip.decompress((tmp_path / "one.csv.gz").read_bytes()).startswith(b"request_id,arrival_s,")


@pytest.mark.parametrize("name", ["w.txt", "w.gz", "w", "w.parquet.gz"])
def test_another_suffix_is_refused(make, tmp_path, name):
    with pytest.raises(
        WorkloadError, match=r"allowed: \.jsonl and \.csv, also with \.gz or \.zst, and \.parquet"
    ):
        convert(make(**PLAIN), tmp_path / name)


def test_nothing_half_written(trace, tmp_path, make):
    target = tmp_path / "w.jsonl"
    target.write_text("as it was")

    class Broken(type(make(**PLAIN))):
        def requests(self):
            for i, request in enumerate(super().requests()):
                if i == 150 and self.is_second_time:
                    raise WorkloadError("broken")
                yield request
            self.is_second_time = True

        is_second_time = False

    made = make(**PLAIN)
    broken = Broken(made.config, seed=0, folder=tmp_path)
    with pytest.raises(WorkloadError, match="broken"):
        convert(broken, target)
    assert target.read_text() == "as it was"
    assert [each.name for each in tmp_path.iterdir()] == ["w.jsonl"]


def test_a_folder_that_is_not_there_is_made_and_one_that_cannot_be_is_told(make, tmp_path):
    target = tmp_path / "new" / "w.csv"
    convert(make(**PLAIN), target)
    with pytest.raises(CbsimError, match="can't be written: File exists"):
        convert(make(**PLAIN), target / "w.csv")
