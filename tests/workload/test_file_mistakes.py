"""Every kind of wrong trace, and the exact lines told about it."""

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from cbsim.base.errors import WorkloadError


def parquet_of(*names: str) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({name: [1.0] for name in names}), stream, store_schema=False)
    return stream.getvalue()


TIME = "a time such as 2023-11-16 18:15:46.6805900 (seconds: call the column arrival_s)"
HEADER = "arrived_at,num_prefill_tokens,num_decode_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
CBSIM = "request_id,arrival_s,num_prompt_tokens,num_output_tokens,priority,deadline_s,prompt\n"
WHOLE = "allowed: a whole number from 1 to 100,000,000"
SECONDS = "allowed: a number of seconds from 0 to 9,007,199,254,740,992"
ARRIVAL = "allowed: a number of seconds from 0, or of another time_unit"
PRIORITY = "allowed: a whole number from -9,007,199,254,740,992 to 9,007,199,254,740,992"
SEGMENTS = "allowed: [[segment, num_tokens], ...] with whole numbers from 1 up"
FORMATS = (
    "allowed: azure (TIMESTAMP, ContextTokens, GeneratedTokens); "
    "mooncake (timestamp, input_length, output_length); "
    "mooncake (created_time, input_tokens, output_tokens); "
    "mooncake (session_id, input_length, output_length); servegen (input_length, output_length, duration); "
    "qwen (timestamp, input_length, output_length, chat_id); "
    "llmservingsim (arrival_time_ns, input_toks, output_toks); "
    "bench_serving (start_times, input_lens, output_lens); "
    "guidellm (request_start_time, prompt_tokens, output_tokens); "
    "guidellm (start_time, prompt_tokens, output_tokens, first_token_time); "
    "aiperf (metadata.request_start_ns); "
    "otel (startTimeUnixNano, gen_ai.usage.input_tokens, gen_ai.usage.output_tokens); "
    "inference_perf (start_time, end_time, info.request_metrics); "
    "inference_perf (start_time, end_time, info.input_tokens); "
    "burstgpt (Timestamp, Request tokens, Response tokens); "
    "vidur (arrived_at, num_prefill_tokens, num_decode_tokens); "
    "cbsim (arrival_s, num_prompt_tokens, num_output_tokens)"
)

CASES = {
    "negative": (HEADER + "-1,5,6\n", [f"2: arrived_at: got -1; {ARRIVAL}"]),
    "nan": (HEADER + "nan,5,6\n", [f"2: arrived_at: got nan; {ARRIVAL}"]),
    "infinite": (HEADER + "1,inf,6\n", [f"2: num_prefill_tokens: got inf; {WHOLE}"]),
    "not whole": (HEADER + "1,5.5,6\n", [f"2: num_prefill_tokens: got 5.5; {WHOLE}"]),
    "text": (HEADER + "1,5,many\n", [f"2: num_decode_tokens: got many; {WHOLE}"]),
    "underscore": (HEADER + "1,5,1_000\n", [f"2: num_decode_tokens: got 1_000; {WHOLE}"]),
    "zero prompt": (HEADER + "1,0,6\n", [f"2: num_prefill_tokens: got 0; {WHOLE}"]),
    "zero output": (HEADER + "1,5,0\n", [f"2: num_decode_tokens: got 0; {WHOLE}"]),
    "nothing": (HEADER + "1,,6\n", [f"2: num_prefill_tokens: got nothing; {WHOLE}"]),
    "above the token limit": (HEADER + "1,5,100000001\n", [f"2: num_decode_tokens: got 100000001; {WHOLE}"]),
    "above 2**63": (HEADER + "1e19,5,6\n", [f"2: arrived_at: got 1e19; {ARRIVAL}"]),
    "above 2**64": (
        HEADER + "1,5,18446744073709551616\n",
        [f"2: num_decode_tokens: got 18446744073709551616; {WHOLE}"],
    ),
    "several, in order of line and column": (
        HEADER + "1,x,y\n\n2,5\n-3,0,6\n",
        [
            f"2: num_prefill_tokens: got x; {WHOLE}",
            f"2: num_decode_tokens: got y; {WHOLE}",
            "4: got 2 columns (2,5); allowed: 3",
            f"5: arrived_at: got -3; {ARRIVAL}",
            f"5: num_prefill_tokens: got 0; {WHOLE}",
        ],
    ),
    "truncated last line": (HEADER + "1,5,6\n2,", ["3: got 2 columns (2,); allowed: 3"]),
    "too many columns": (HEADER + "1,5,6,7\n", ["2: got 4 columns (1,5,6,7); allowed: 3"]),
    "not an instant": (
        AZURE + "yesterday,5,6\n2023-02-30 00:00:00,5,6\n",
        [
            f"2: TIMESTAMP: got yesterday; allowed: {TIME}",
            f"3: TIMESTAMP: got 2023-02-30 00:00:00; allowed: {TIME}",
        ],
    ),
    "missing column, near name": (
        "TIMESTAMP,ContextToken,GeneratedTokens\n",
        ["1: ContextTokens: missing column of format azure; did you mean 'ContextToken'?"],
    ),
    "missing column": (
        "TIMESTAMP,x,ContextTokens\n",
        ["1: GeneratedTokens: missing column of format azure; got columns TIMESTAMP, x, ContextTokens"],
    ),
    "a table of somebody's own": (
        "timestamp,prompt_tokens,output_tokens\n1,5,6\n",
        [
            "1: got columns timestamp, prompt_tokens, output_tokens; missing: arrival_s (or arrival_time, "
            "arrival_ts, arrived_at), arrivals in seconds"
        ],
    ),
    "unknown columns": ("a,b\n1,2\n", [f"1: got columns a, b; {FORMATS}"]),
    "a client of ServeGen": (
        "600,0.58,9.21,Weibull,0.38,0.80\n",
        [
            "1: got rates of a client of ServeGen by time, which are no requests; allowed: the requests that "
            "ServeGen draws from them, under a header, such as arrival_s,num_prompt_tokens,num_output_tokens"
        ],
    ),
    "no header": (
        "600,0.58,9.21\n",
        [
            "1: got 600,0.58,9.21 where the names of columns should stand; "
            "allowed: a header, such as arrival_s,num_prompt_tokens,num_output_tokens"
        ],
    ),
    "a lone carriage return": (
        CBSIM + "a,0,5,6,0,,\n\nb,1,5,6,0,x\ry,\nc,2,5,6,0,,\n",
        ["4: got a carriage return alone; allowed: lines that end in LF or CR LF"],
    ),
    "repeated column": ("a,b,a\n", ["1: a: got this column 2 times; allowed: once"]),
    "header alone": (HEADER, [" got no requests; allowed: at least one"]),
    "empty": ("", [" got an empty file; allowed: a CSV header, JSON lines or Parquet"]),
    "blank": ("\n\r\n", [" got an empty file; allowed: a CSV header, JSON lines or Parquet"]),
    "duplicate ids": (
        CBSIM + "a,0,5,6,0,,\nb,1,5,6,0,,\na,2,5,6,0,,\n",
        ["4: request_id: got a again; allowed: each id once"],
    ),
    "an id like the name of an unnamed row": (
        CBSIM + "r1,0,5,6,0,,\n,1,5,6,0,,\n",
        ["3: request_id: got r1 again; allowed: each id once"],
    ),
    "optional columns": (
        CBSIM + "a,0,5,6,high,-1,\nb,1,5,6,,nan,\n",
        [
            f"2: priority: got high; {PRIORITY}",
            f"2: deadline_s: got -1; {SECONDS}",
            f"3: deadline_s: got nan; {SECONDS}",
        ],
    ),
    "segments don't add up": (
        CBSIM + 'a,0,52,6,0,,"[[""sys"", 40], [""p"", 13]]"\n',
        ["2: prompt: got segments of 53 tokens; allowed: num_prompt_tokens, 52"],
    ),
    "segments of another shape": (
        CBSIM + 'a,0,5,6,0,,"[[""sys"", 0]]"\nb,0,5,6,0,,hello\nc,0,5,6,0,,"{""sys"": 5}"\n',
        [
            f'2: prompt: got [["sys", 0]]; {SEGMENTS}',
            f"3: prompt: got hello; {SEGMENTS}",
            f'4: prompt: got {{"sys": 5}}; {SEGMENTS}',
        ],
    ),
    "failures alone": (
        "Timestamp,Request tokens,Response tokens\n1,5,0\n2,0,0\n",
        [" got 2 failed requests alone; allowed: one answer or more"],
    ),
    "zero prompt with an answer": (
        "Timestamp,Request tokens,Response tokens\n1,5,0\n2,0,3\n",
        [f"3: Request tokens: got 0; {WHOLE}"],
    ),
    "UTF-16": ((HEADER + "1,5,6\n").encode("utf-16"), [" got UTF-16 text; allowed: UTF-8"]),
    "Latin-1": (
        HEADER.encode() + b"1,5,6\n2,\xe95,6\n",
        ["3: got byte 0xe9 at offset 56; allowed: UTF-8 text"],
    ),
    "truncated gzip": (
        gzip.compress((HEADER + "1,5,6\n" * 100).encode())[:-9],
        [" the gzip data ends early; allowed: a whole file"],
    ),
    "corrupt gzip": (b"\x1f\x8bgarbage" * 9, [" the gzip data is corrupt; allowed: a whole file"]),
    "truncated zstd": (
        zstandard.compress((HEADER + "1,5,6\n" * 100).encode())[:-3],
        [" the zstd data ends early; allowed: a whole file"],
    ),
    "corrupt Parquet": (b"PAR1 and no more", None),
    "a column's name in Parquet that is no text": (
        parquet_of("arrival_s").replace(b"arrival_s", b"\xcbrrival_s"),
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_csv(trace, tmp_path, case):
    content, lines = CASES[case]
    with pytest.raises(WorkloadError) as caught:
        list(trace("t.csv", content).requests())
    if lines is None:
        assert caught.value.problems[0].startswith(f"{tmp_path}/t.csv: got damaged Parquet data (")
    else:
        assert list(caught.value.problems) == [f"{tmp_path}/t.csv:{line}" for line in lines]


GOOD = '{"arrival_s": 0, "num_prompt_tokens": 5, "num_output_tokens": 6}\n'
JSON_CASES = {
    "truncated last line": (
        GOOD + '{"arrival_s": 1, "num',
        ['2: got {"arrival_s": 1, "num; allowed: one whole JSON object'],
    ),
    "not an object": (GOOD + "7\n", ["2: got 7; allowed: one whole JSON object"]),
    "two objects in a line": (
        GOOD + '{"a": 1}, {"b": 2}\n',
        ['2: got {"a": 1}, {"b": 2}; allowed: one whole JSON object'],
    ),
    "first line broken": ("{oops\n", ["1: got {oops; allowed: one whole JSON object"]),
    "an array of no objects": ("[1]", ["1: got a JSON array; allowed: one JSON object a line"]),
    "wrong types": (
        GOOD + '{"arrival_s": NaN, "num_prompt_tokens": true, "num_output_tokens": null, "user": [1]}\n',
        [
            f"2: arrival_s: got NaN; {ARRIVAL}",
            f"2: num_prompt_tokens: got true; {WHOLE}",
            f"2: num_output_tokens: got nothing; {WHOLE}",
            "2: user: got [1]; allowed: text",
        ],
    ),
    "a key left out": (
        GOOD + '{"arrival_s": 1, "num_output_tokens": 6}\n',
        [f"2: num_prompt_tokens: got nothing; {WHOLE}"],
    ),
    "beyond float": (
        GOOD + '{"arrival_s": 1' + "0" * 400 + ', "num_prompt_tokens": 5, "num_output_tokens": 6}\n',
        [f"2: arrival_s: got 1{'0' * 39}...; {ARRIVAL}"],
    ),
    "too many block ids": (
        '{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [1, 2, 3]}\n'
        '{"timestamp": 0, "input_length": 5120, "output_length": 1, "hash_ids": [1, 2]}\n'
        '{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [1.5]}\n',
        [
            "1: hash_ids: got 3 ids; allowed: at most 1 for 512 prompt tokens in blocks of 512 "
            "(hash_block_tokens sets another size)",
            "3: hash_ids: got [1.5]; allowed: a list of whole numbers",
        ],
    ),
}


@pytest.mark.parametrize("case", JSON_CASES)
def test_jsonl(trace, tmp_path, case):
    content, lines = JSON_CASES[case]
    with pytest.raises(WorkloadError) as caught:
        list(trace("t.jsonl", content).requests())
    assert list(caught.value.problems) == [f"{tmp_path}/t.jsonl:{line}" for line in lines]


def test_parquet_names_rows(trace, tmp_path):
    rows = [
        json.loads(GOOD),
        {**json.loads(GOOD), "num_prompt_tokens": -3},
        {**json.loads(GOOD), "arrival_s": None},
    ]
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), sink)
    with pytest.raises(WorkloadError) as caught:
        list(trace("t.parquet", sink.getvalue().to_pybytes()).requests())
    assert list(caught.value.problems) == [
        f"{tmp_path}/t.parquet:row 2: num_prompt_tokens: got -3; {WHOLE}",
        f"{tmp_path}/t.parquet:row 3: arrival_s: got nothing; {ARRIVAL}",
    ]


def test_twenty_lines_are_told_and_the_rest_counted(trace, tmp_path):
    with pytest.raises(WorkloadError) as caught:
        list(trace("t.csv", HEADER + "1,5,x\n" * 5000).requests())
    lines = caught.value.problems
    assert len(lines) == 21
    assert lines[0] == f"{tmp_path}/t.csv:2: num_decode_tokens: got x; {WHOLE}"
    assert lines[19] == f"{tmp_path}/t.csv:21: num_decode_tokens: got x; {WHOLE}"
    assert lines[20] == f"{tmp_path}/t.csv: ... and 4,980 more"


def test_lines_are_right_beyond_the_first_block(trace, tmp_path, monkeypatch):
    monkeypatch.setattr("cbsim.workload.table.BLOCK_BYTES", 100)
    content = HEADER + "1,5,6\n" * 100 + "\n" + "2,5,6\n" * 50 + "3,x,6\n"
    with pytest.raises(WorkloadError) as caught:
        list(trace("t.csv", content).requests())
    assert list(caught.value.problems) == [f"{tmp_path}/t.csv:153: num_prefill_tokens: got x; {WHOLE}"]


def test_a_duplicate_id_is_found_across_blocks(trace, tmp_path, monkeypatch):
    monkeypatch.setattr("cbsim.workload.table.BLOCK_BYTES", 100)
    rows = [{**json.loads(GOOD), "request_id": name} for name in ["a", "b", "c", "d", "e", "b"]]
    with pytest.raises(WorkloadError) as caught:
        list(trace("t.jsonl", "".join(json.dumps(row) + "\n" for row in rows)).requests())
    assert list(caught.value.problems) == [
        f"{tmp_path}/t.jsonl:6: request_id: got b again; allowed: each id once"
    ]


def test_a_missing_file_names_the_nearest(make, tmp_path):
    (tmp_path / "trace.csv").write_text(HEADER + "1,5,6\n")
    with pytest.raises(WorkloadError) as caught:
        list(make(type="trace", path="trase.csv").requests())
    (line,) = caught.value.problems
    assert line.startswith(f"trase.csv: no such file; did you mean 'trace.csv'?; looked in {tmp_path}, ")


def test_a_folder_is_no_trace(make, tmp_path):
    with pytest.raises(WorkloadError) as caught:
        list(make(type="trace", path=str(tmp_path)).requests())
    assert caught.value.problems == (f"{tmp_path}: got a folder; allowed: a trace file",)


def test_a_window_that_misses_the_trace(trace, tmp_path):
    with pytest.raises(WorkloadError) as caught:
        list(trace("t.csv", HEADER + "1,5,6\n2.5,5,6\n", start_s=3).requests())
    assert caught.value.problems == (
        f"{tmp_path}/t.csv: got no requests from start_s = 3 to end_s = null; "
        "allowed: a window that meets 1 to 2.5 seconds",
    )
