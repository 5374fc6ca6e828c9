"""No text that cbsim writes into a CSV file is run by a spreadsheet, and none is lost by that."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

import cbsim
from cbsim.base.spreadsheet import ESCAPED, escaped
from cbsim.studies.sweep import save_table
from cbsim.workload.convert import convert
from cbsim.workload.trace import TraceWorkload

FORMULAS = ["=1+1", "+1", "-2", "@SUM(A1)", "\tx", "'=2", "''-x", "'plain'", "=1+1'"]


@given(st.text("=+-@\t\r'a1"))
def test_a_text_is_no_formula_and_comes_back(text: str) -> None:
    cell = escaped(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert re.sub(ESCAPED, r"\1", cell) == text
    assert escaped(cell) != cell or cell == text


def test_files_that_cbsim_writes(tmp_path: Path) -> None:
    lines = [
        {"request_id": name, "arrival_s": i, "num_prompt_tokens": 10, "num_output_tokens": 2}
        for i, name in enumerate(FORMULAS)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    cbsim.run(
        {
            "workload": {"type": "trace", "path": str(tmp_path / "t.jsonl")},
            "scheduler": {"type": "static"},
            "cost_model": {"type": "constant", "step_s": 0.1},
            "observers": [{"type": "csv"}],
        },
        out=tmp_path / "run",
    )
    read = TraceWorkload(
        TraceWorkload.Config(type="trace", path=str(tmp_path / "t.jsonl")), seed=0, folder=tmp_path
    )
    convert(read, tmp_path / "t.csv")
    again = TraceWorkload(
        TraceWorkload.Config(type="trace", path=str(tmp_path / "t.csv")), seed=0, folder=tmp_path
    )
    assert [request.request_id for request in again.requests()] == FORMULAS
    save_table(pd.DataFrame({"label": FORMULAS, "figure": [-1.5] * len(FORMULAS)}), tmp_path)
    for path in (tmp_path / "run" / "events.csv", tmp_path / "t.csv", tmp_path / "table.csv"):
        with path.open(newline="") as file:
            cells = {cell for row in csv.reader(file) for cell in row}
        assert set(map(escaped, FORMULAS)) <= cells
        assert not {cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t"))} - {"-1.5"}
    assert pd.read_parquet(tmp_path / "table.parquet")["label"].tolist() == FORMULAS
