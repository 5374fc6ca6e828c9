"""Each format, from a few lines written by hand to the requests they mean."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from cbsim.workload.trace_reader import read_trace

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n"
    "2023-11-17 00:00:00.0000001,879,55\n"
)
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,10,2\n1.25,20,3\n"


def rows(workload):
    return [
        (r.request_id, r.arrival_s, r.num_prompt_tokens, r.num_output_tokens) for r in workload.requests()
    ]


def test_azure_2023_counts_from_its_first_request_exactly(trace):
    # 18:15:50.9951690 - 18:15:46.6805900 = 43,145,790 ticks of 100 ns; midnight is 20,653.3194101 s later
    assert rows(trace("a.csv", AZURE)) == [
        ("r0", 0.0, 374, 44),
        ("r1", 43_145_790 / 1e7, 396, 109),
        ("r2", 206_533_194_101 / 1e7, 879, 55),
    ]


def test_azure_2024_has_offsets(trace):
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,2162,5\n"
        "2024-05-10 00:00:00.017335+00:00,2399,6\n"
    )
    assert rows(trace("a.csv", text)) == [("r0", 0.0, 2162, 5), ("r1", 74_050 / 1e7, 2399, 6)]


@pytest.mark.parametrize(
    "later", ["2024-05-10 02:00:01+02:00", "2024-05-09T22:00:01-02:00", "2024-05-10 00:00:01Z"]
)
def test_instants_with_and_without_offset_may_stand_together(trace, later):
    text = f"TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00,1,1\n{later},2,2\n"
    assert [r.arrival_s for r in trace("a.csv", text).requests()] == [0.0, 1.0]


def test_mooncake_block_ids_become_segments(trace):
    text = (
        '{"timestamp": 0, "input_length": 1100, "output_length": 6, "hash_ids": [46, 47, 48]}\n'
        '{"timestamp": 1500, "input_length": 1024, "output_length": 7, "hash_ids": [46, 50]}\n'
        '{"timestamp": 1501, "input_length": 600, "output_length": 8, "hash_ids": [46]}\n'
    )
    found = list(trace("m.jsonl", text).requests())
    assert [r.arrival_s for r in found] == [0.0, 1.5, 1.501]
    assert found[0].prompt == (("h:46", 512), ("h:47", 512), ("h:48", 76))
    assert found[1].prompt == (("h:46", 512), ("h:50", 512))
    assert found[2].prompt == (("h:46", 512), ("p:r2", 88))


def test_burstgpt_leaves_failures_out_and_counts_them(trace):
    text = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,s7,1,ChatGPT,472,18,490,Conversation log\n"
        "45,,1,ChatGPT,0,0,0,API log\n"
        "118.5,,1,GPT-4,417,276,693,Conversation log\n"
    )
    workload = trace("b.csv", text)
    assert rows(workload) == [("r0", 5.0, 472, 18), ("r2", 118.5, 417, 276)]
    assert [r.session_id for r in workload.requests()] == ["s7", None]
    assert workload.notes() == ["b.csv: failed requests left out (answers of 0 tokens): 1"]
    assert workload.num_requests() == 2


def test_vidur(trace):
    assert rows(trace("v.csv", VIDUR)) == [("r0", 0.5, 10, 2), ("r1", 1.25, 20, 3)]


CBSIM = [
    {
        "request_id": "a",
        "arrival_s": 0.1,
        "num_prompt_tokens": 52,
        "num_output_tokens": 3,
        "priority": -1,
        "session_id": "s",
        "user": "u",
        "deadline_s": 2.5,
        "prompt": [["sys", 40], ["p:a", 12]],
    },
    {"request_id": "b", "arrival_s": 0.2, "num_prompt_tokens": 9, "num_output_tokens": 4},
]


def cbsim_file(kind):
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in CBSIM).encode()
    table = [{**row, "prompt": json.dumps(row["prompt"]) if "prompt" in row else None} for row in CBSIM]
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        pyarrow.parquet.write_table(pa.Table.from_pylist(table), sink)
        return sink.getvalue().to_pybytes()
    return (
        b"request_id,arrival_s,num_prompt_tokens,num_output_tokens,priority,session_id,user,deadline_s,prompt\n"
        b'a,0.1,52,3,-1,s,u,2.5,"[[""sys"", 40], [""p:a"", 12]]"\n'
        b"b,0.2,9,4,,,,,\n"
    )


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_cbsim_in_every_container(trace, facts, kind):
    found = [facts(r) for r in trace(f"c.{kind}", cbsim_file(kind)).requests()]
    assert found == [
        ("a", 0.1, 52, 3, -1, "s", "u", 2.5, (("sys", 40), ("p:a", 12))),
        ("b", 0.2, 9, 4, 0, None, None, None, None),
    ]


def test_columns_are_python_numbers(trace):
    (request, *_) = trace("v.csv", VIDUR).requests()
    assert [type(x) for x in (request.arrival_s, request.num_prompt_tokens, request.num_output_tokens)] == [
        float,
        int,
        int,
    ]


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("name", ["v.csv", "v.csv.packed"])
def test_compressed_files_open_as_they_are(trace, compress, name):
    assert rows(trace(name, compress(VIDUR.encode()))) == [("r0", 0.5, 10, 2), ("r1", 1.25, 20, 3)]


@pytest.mark.parametrize(
    "data",
    [
        VIDUR.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + VIDUR.encode(),
        VIDUR.strip().encode(),
        VIDUR.replace("\n", "\n\n").encode(),
        VIDUR.replace("10,2", " 10,2.0").encode(),
    ],
    ids=["crlf", "bom", "no newline at the end", "blank lines", "spaces and 2.0"],
)
def test_harmless_oddities(trace, data):
    assert rows(trace("v.csv", data)) == [("r0", 0.5, 10, 2), ("r1", 1.25, 20, 3)]


def test_the_format_may_be_named(trace):
    assert rows(trace("v.csv", VIDUR, format="vidur"))[0] == ("r0", 0.5, 10, 2)


def test_unsorted_rows_are_sorted_stably_with_a_note(trace):
    text = "arrived_at,num_prefill_tokens,num_decode_tokens\n3,1,1\n1,2,1\n3,3,1\n1,4,1\n"
    workload = trace("v.csv", text)
    assert rows(workload) == [("r1", 1.0, 2, 1), ("r3", 1.0, 4, 1), ("r0", 3.0, 1, 1), ("r2", 3.0, 3, 1)]
    assert workload.notes() == ["v.csv: 2 of 4 requests stood after a later one; sorted"]


def test_many_equal_arrivals_keep_their_order(trace):
    arrivals = [i * 7 % 5 for i in range(500)]
    text = "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(f"{t},1,1\n" for t in arrivals)
    found = [(r.arrival_s, int(r.request_id[1:])) for r in trace("v.csv", text).requests()]
    assert found == sorted((float(t), i) for i, t in enumerate(arrivals))


def test_rows_without_an_id_are_named_by_their_place_in_the_file(trace, monkeypatch):
    monkeypatch.setattr("cbsim.workload.table.BLOCK_BYTES", 100)
    text = "request_id,arrival_s,num_prompt_tokens,num_output_tokens\nfirst,0,1,1\n" + ",0,1,1\n" * 50
    names = [r.request_id for r in trace("c.csv", text).requests()]
    assert names == ["first", *(f"r{i}" for i in range(1, 51))]


def test_unsorted_dates_count_from_the_earliest(trace):
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-01-01 00:00:05,1,1\n2023-01-01 00:00:02,2,1\n"
    assert rows(trace("a.csv", text)) == [("r1", 0.0, 2, 1), ("r0", 3.0, 1, 1)]


def test_columns_of_our_own_format_that_go_unused_are_noted(trace):
    text = "arrival_s,num_prompt_tokens,num_output_tokens,prioritty\n0,1,1,5\n"
    workload = trace("c.csv", text)
    assert [r.priority for r in workload.requests()] == [0]
    assert workload.notes() == ["c.csv: column 'prioritty' is not used; did you mean 'priority'?"]


def test_a_json_key_may_appear_late(trace):
    text = '{"arrival_s": 0, "num_prompt_tokens": 1, "num_output_tokens": 1}\n'
    late = '{"arrival_s": 1, "num_prompt_tokens": 1, "num_output_tokens": 1, "user": "u"}\n'
    assert [r.user for r in trace("c.jsonl", text + late).requests()] == [None, "u"]


def test_a_file_is_read_again_only_where_it_has_changed(tmp_path):
    path, header = tmp_path / "t.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n"
    path.write_text(f"{header}0,8,1\n")
    first = read_trace(path)
    assert read_trace(path) is first
    with pytest.raises(ValueError, match="read-only"):
        first.arrival_s[0] = 1.0
    path.write_text(f"{header}0,8,1\n1,8,1\n")
    assert len(read_trace(path)) == 2
