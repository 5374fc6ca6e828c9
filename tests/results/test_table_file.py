"""Tables that something else has written again, or broken: read as they were, or told in a line a column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import cbsim
from cbsim.base.errors import CbsimError
from cbsim.base.paths import find_experiment
from cbsim.cli import main
from cbsim.results.result import load_run
from cbsim.results.table_file import hash_table, read_table
from cbsim.results.tables import TABLES
from tests.run_logs import make_result, paper_batches, paper_log


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    changes = {"time_s": np.zeros(1), "replica": np.zeros(1, "i8"), "change": np.ones(1, "i8")}
    log = paper_log(batches=paper_batches(), changes=changes, pool_of=np.zeros(1, "i8"))
    return make_result(log).save(tmp_path / "run")


@pytest.fixture
def played(tmp_path: Path) -> Path:
    """The folder of a run of a dozen requests."""
    cbsim.run(find_experiment("play"), out=tmp_path / "play")
    return tmp_path / "play"


def rewrite(path: Path, column: str, values: pa.Array) -> None:
    """Put other values in a column of a file."""
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, values), path)


def problems(path: Path, name: str) -> list[str]:
    with pytest.raises(CbsimError) as caught:
        read_table(path, name)
    return [problem.removeprefix(f"{path}: ") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("name", "column", "values", "problem"),
    [
        ("requests", "ttft_s", pa.array(["fast", "1", "2", "3"]), "got text ('fast'); expected numbers"),
        ("requests", "ttft_s", pa.array(["1", "1", "2", None]), "got text ('1'); expected numbers"),
        (
            "requests",
            "ttft_s",
            pa.array(["a"] * 4).dictionary_encode(),
            "got text ('a'); expected numbers",
        ),
        ("requests", "e2e_s", pa.array([True] * 4), "got bool (True); expected numbers"),
        ("requests", "arrival_s", pa.array([0.0, None, np.nan, 1.0]), "got 2 empty cells; expected one"),
        ("requests", "arrival_s", pa.nulls(4), "got 4 empty cells; expected one value a row"),
        ("requests", "priority", pa.array([0.0, 1.5, 0.0, 0.0]), "got double (1.5); expected whole numbers"),
        ("requests", "priority", pa.array([0.0, np.inf, 0, 0]), "got double (inf); expected whole numbers"),
        ("requests", "state", pa.array([0, 1, 1, 1]), "got int64 (0); expected text"),
        ("requests", "request_id", pa.array(["a", "b", None, "d"]), "got an empty cell; expected one value"),
        ("events", "event", pa.array([3.0] * 6), "got double (3.0); expected text"),
        ("batches", "kind", pa.array([b"x", b"y"]), "got binary (b'x'); expected text"),
    ],
)
def test_a_column_of_something_else_is_told(
    folder: Path, name: str, column: str, values: pa.Array, problem: str
) -> None:
    path = folder / f"{name}.parquet"
    rewrite(path, column, values)
    (told,) = problems(path, name)
    assert told.startswith(f"column {column}: {problem}")


def test_names_that_are_not_unique_are_told(folder: Path) -> None:
    path = folder / "requests.parquet"
    rewrite(path, "request_id", pa.array(["a", "b", "d", "d"]))
    assert problems(path, "requests") == ["column request_id: got 'd' 2 times; expected each name once"]


def test_all_columns_of_something_else_are_told_at_once(folder: Path) -> None:
    path = folder / "steps.parquet"
    num_steps = pq.read_metadata(path).num_rows
    for column in ("start_s", "num_running"):
        rewrite(path, column, pa.array(["x"] * num_steps))
    assert problems(path, "steps") == [
        "column start_s: got text ('x'); expected numbers",
        "column num_running: got text ('x'); expected numbers",
    ]


@pytest.mark.parametrize("name", TABLES)
def test_a_missing_column_is_named(folder: Path, name: str) -> None:
    path = folder / f"{name}.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns([table.column_names[-1], table.column_names[0]]), path)
    (told,) = problems(path, name)
    assert told.startswith(f"no table of {name} of a run: has no column {table.column_names[0]}")


def test_columns_that_come_together_are_there_together(played: Path) -> None:
    requests, steps = played / "requests.parquet", played / "steps.parquet"
    pq.write_table(pq.read_table(requests).drop_columns(["ttft_part_host_s"]), requests)
    pq.write_table(pq.read_table(steps).drop_columns(["num_logits"]), steps)
    assert problems(requests, "requests") == ["no table of requests of a run: has no column ttft_part_host_s"]
    assert problems(steps, "steps") == ["no table of steps of a run: has no column num_logits"]


def test_parts_of_a_latency_are_known_where_it_is(played: Path) -> None:
    path = played / "requests.parquet"
    rewrite(path, "part_swap_s", pa.array([None] + [0.0] * 11))
    assert problems(path, "requests") == [
        "column part_swap_s: got an empty cell beside e2e_s; expected numbers"
    ]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("index_bits", [8, 32])
def test_what_pandas_writes_again_is_read_as_it_was(folder: Path, name: str, index_bits: int) -> None:
    was = getattr(load_run(folder), name)
    plain = was.astype({column: str for column in was if isinstance(was[column].dtype, pd.CategoricalDtype)})
    plain = plain.where(was.notna(), None)
    plain = plain.astype({column: float for column in was if str(was[column].dtype) == "Int64"})
    (was if index_bits == 8 else plain).to_parquet(folder / f"{name}.parquet")
    now = getattr(load_run(folder), name)
    pd.testing.assert_frame_equal(now, was, check_categorical=False)
    assert {str(kind) for kind in now.dtypes} == {str(kind) for kind in was.dtypes}


@pytest.mark.parametrize("kept", [0, 3, 200, -1])
def test_a_truncated_file_is_told_in_a_line(folder: Path, kept: int) -> None:
    path = folder / "requests.parquet"
    path.write_bytes(path.read_bytes()[:kept])
    (told,) = problems(path, "requests")
    assert told.startswith("can't be read: ")
    assert "\n" not in told


def test_a_file_that_is_gone_is_called_gone(folder: Path) -> None:
    path = folder / "requests.parquet"
    path.unlink()
    assert problems(path, "requests") == ["can't be read: no such file"]


def test_a_damaged_footer_is_told_in_a_line(folder: Path) -> None:
    path = folder / "requests.parquet"
    content = bytearray(path.read_bytes())
    content[-300:-200] = bytes(100)
    path.write_bytes(content)
    (told,) = problems(path, "requests")
    assert told.startswith("can't be read: ")
    assert "\n" not in told


@pytest.mark.parametrize("command", ["explain", "report", "compare"])
def test_commands_tell_it_in_a_line(played: Path, command: str) -> None:
    path = played / "requests.parquet"
    rewrite(path, "ttft_s", pa.array(["fast"] * 12))
    ran = CliRunner().invoke(main, [command, str(played), *([str(played)] if command == "compare" else [])])
    assert ran.exit_code == 2
    assert ran.output == f"{path}: column ttft_s: got text ('fast'); expected numbers\n"
    assert not (played / "report.html").exists()


@pytest.mark.parametrize("name", TABLES)
def test_the_hash_is_of_all_that_a_table_holds_and_of_nothing_else(folder: Path, name: str) -> None:
    table = read_table(folder / f"{name}.parquet", name)
    whole = hash_table(table, name)
    assert hash_table(pa.concat_tables([table[:1], table[1:]]), name) == whole
    seen = {whole, hash_table(table[1:], name), hash_table(pa.concat_tables([table[1:], table[:1]]), name)}
    for place, column in enumerate(table.column_names):
        values = table.column(column).to_pylist()
        kind = table.schema.field(place).type
        other = 7_777 if pa.types.is_integer(kind) or pa.types.is_floating(kind) else "other"
        seen.add(hash_table(table.set_column(place, column, pa.array([other, *values[1:]], kind)), name))
    num_orders = min(len(table), 2)  # the table, and the same in another order
    assert len(seen) == num_orders + 1 + table.num_columns


def test_files_altered_or_of_another_run_are_told_in_a_line(played: Path, tmp_path: Path) -> None:
    """The other run has the same requests: nothing but the hashes in the manifest could tell."""
    other = tmp_path / "other"
    cbsim.run(find_experiment("play"), out=other, overrides={"cost_model": {"type": "constant", "step_s": 1}})
    report = tmp_path / "report.html"
    assert CliRunner().invoke(main, ["report", str(played), "--out", str(report)]).exit_code == 0
    assert cbsim.load_run(played).manifest["files"]["requests.parquet"] in report.read_text()
    for name in ("requests.parquet", "steps.parquet", "summary.json", "config.yaml"):
        own = (played / name).read_bytes()
        (played / name).write_bytes((other / name).read_bytes())
        for line in (["report", played], ["compare", other, played], ["explain", played]):
            ran = CliRunner().invoke(main, [*map(str, line)])
            if line[0] != "report" and name == "steps.parquet":
                continue  # Which they do not look at.
            assert ran.exit_code == 2
            assert ran.output.startswith(f"{played / name}: is not the file that was written here: altered")
        (played / name).write_bytes(own)
    own_text = (played / "summary.json").read_text()
    (played / "summary.json").write_text(own_text.replace('"cpu_s": ', '"cpu_s": 1'))
    cbsim.load_run(played)  # What a run took is nobody's evidence.
