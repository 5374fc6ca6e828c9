"""A sweep's table that something else has written again, or broken, is told in a line a column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import cbsim
from cbsim.base.errors import CbsimError
from cbsim.cli import main
from cbsim.show.reader_tables import compare_points, run_tables
from cbsim.show.report_file import sweep_chapter
from cbsim.show.sweep_text import Sweep, read_sweep_table, replicate_table
from cbsim.studies.sweep import SHA256, sweep

CONFIG: dict[str, Any] = {
    "workload": {"type": "tests.sweep_parts:Even"},
    "scheduler": {"type": "continuous"},
    "cost_model": {"type": "constant", "step_s": 0.1},
    "kv_cache": {"num_blocks": 100},
    "sweep": {"scheduler.max_num_seqs": [1, 2]},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    sweep(CONFIG, out=tmp_path)
    return tmp_path / "table.parquet"


def rewrite(path: Path, column: str, values: list[object]) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, pa.array(values)), path)


def problems(path: Path) -> list[str]:
    with pytest.raises(CbsimError) as caught:
        read_sweep_table(path.parent)
    return [problem.removeprefix(f"{path}: ") for problem in caught.value.problems]


def test_text_among_figures(path: Path) -> None:
    rewrite(path, "ttft_s.p99", ["fast", "slow"])
    rewrite(path, "num_rejected", ["0", None])
    assert problems(path) == [
        "column num_rejected: got string ('0'); expected numbers",
        "column ttft_s.p99: got string ('fast'); expected numbers",
    ]


def test_points_without_names(path: Path) -> None:
    rewrite(path, "point", ["0123456789abcdef", None])
    assert problems(path) == ["column point: got empty cells; expected names"]


def test_missing_columns(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["mfu", "goodput_per_s"]), path)
    assert problems(path) == ["no table of a sweep: has no column goodput_per_s, mfu"]


def test_a_truncated_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])
    (told,) = problems(path)
    assert told.startswith("can't be read: ")
    assert "\n" not in told


def test_an_altered_table_is_told_and_one_that_another_tool_has_written_is_read(path: Path) -> None:
    rewrite(path, "scheduler.max_num_seqs", ["one", "two"])
    assert problems(path) == ["was altered since it was written; the same command writes it anew"]
    table = pq.read_table(path)
    unmarked = {key: told for key, told in table.schema.metadata.items() if key != SHA256}
    pq.write_table(table.replace_schema_metadata(unmarked), path)
    assert read_sweep_table(path.parent)["scheduler.max_num_seqs"].tolist() == ["one", "two"]


@pytest.mark.parametrize("command", ["explain", "report"])
def test_commands_tell_it_in_a_line(path: Path, command: str) -> None:
    rewrite(path, "num_finished", ["x", "y"])
    ran = CliRunner().invoke(main, [command, str(path.parent)])
    assert ran.exit_code == 2
    assert f"{path}: column num_finished: got string ('x'); expected numbers\n" in ran.output


@pytest.mark.parametrize(
    ("swept", "marked"),
    [
        ({"scheduler.max_num_seqs": [1, 2]}, [False, True]),
        ({"workload.interval_s": [0.2, 0.1]}, [False, False]),
        ({"workload.interval_s": [0.2, 0.1], "scheduler.max_num_seqs": [1, 2]}, [False, True] * 2),
    ],
)
def test_the_best_of_a_table_is_marked_among_points_with_the_same_requests(
    tmp_path: Path, swept: dict[str, Any], marked: list[bool]
) -> None:
    workload = CONFIG["workload"] | {"interval_s": 0.2}
    table = sweep(CONFIG | {"workload": workload, "sweep": swept}, tmp_path)
    compared = compare_points(table)
    (shown,) = [row[1:] for row in compared.rows if row[0] == "throughput (req/s)"]
    assert [cell.endswith("*") for cell in shown] == marked
    assert ("marked are the best of the points with one traffic" in compared.notes) == (len(marked) > 2)
    chapter = sweep_chapter(tmp_path).tables[0].table
    place = chapter.header.index("throughput (req/s)")
    assert [row[place].endswith("*") for row in chapter.rows] == marked


@pytest.mark.parametrize(
    ("slo", "num_shown"),
    [({}, 2), ({"ttft_s": {"p95": 60.0}}, 0), ({"ttft_s": {"each": 60.0, "p95": 9.0}}, 2)],
)
def test_what_limits_of_each_request_give_is_not_shown_where_the_run_alone_has_some(
    tmp_path: Path, slo: dict[str, Any], num_shown: int
) -> None:
    """Goodput and the share within the SLO: `-` without an SLO, no rows beside limits of the run."""
    table = sweep(CONFIG | {"slo": slo}, tmp_path)
    points = Sweep.of(table, slo)
    run = cbsim.run({key: value for key, value in CONFIG.items() if key != "sweep"} | {"slo": slo})
    for titles in (
        [row[0] for row in compare_points(table, points.slo).rows],
        replicate_table(points).header,
        [row[0] for row in run_tables(run)[0].rows],
    ):
        told = [title for title in titles if title.startswith(("goodput", "requests within", "within"))]
        assert len(told) == num_shown
