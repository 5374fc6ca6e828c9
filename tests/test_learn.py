"""The learning path: both languages show the same, commands print it, and worked figures are right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from cbsim.results.result import Result
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import run_experiment
from tests.test_readmes import ROOT, Command, checkout, commands, run_block

__all__ = ["checkout"]

LEARN = ROOT / "experiments" / "learn"
STAGES = sorted(path.parent for path in LEARN.glob("*/README.md"))
PAGES = ("README.md", "README_zh.md")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
STEPS = re.compile(r"<!-- steps(?P<settings>.*?) -->\n\|.*\n\|.*\n(?P<rows>(?:\|.*\n)+)")


class Row(NamedTuple):
    """One or more equal steps as worked out on a page."""

    first: int
    last: int
    start_ms: float
    parts: list[tuple[str, int, str]]
    """Request, tokens and kind."""
    sum_ms: float
    """As written after the last `=`."""
    formula_ms: float
    """What the formula before it gives."""
    kv_blocks: int | None


def rows_of(table: str) -> list[Row]:
    """The rows of a table of steps: number, start, what is computed, what that takes, perhaps blocks."""
    rows = []
    for line in table.splitlines():
        number, start, computed, takes, *blocks = [cell.strip() for cell in line.strip("|").split("|")]
        first, _, last = number.partition("-")
        formula, _, total = takes.rpartition("=")
        rows.append(
            Row(
                int(first),
                int(last or first),
                float(start),
                parts_of(computed),
                float(total),
                value_of(formula or total),
                int(blocks[0].rpartition("=")[2]) if blocks else None,
            )
        )
    return rows


def parts_of(computed: str) -> list[tuple[str, int, str]]:
    """`A, B 400` is a decode of A and 400 prompt tokens of B; `(A)` is a slot without work."""
    parts = []
    for name, tokens in re.findall(r"(\w+)(?: (\d+))?", re.sub(r"\(\w+\)", "", computed)):
        parts.append((name, int(tokens or 1), "prefill" if tokens else "decode"))
    return parts


def value_of(formula: str) -> float:
    """A sum of products, as `4 × (10 + 0.1 × 400 + 1)`."""
    assert re.fullmatch(r"[\d.+×() ]+", formula), formula
    return float(eval(formula.replace("×", "*")))


def blocks_of(page: Path) -> list[list[Command]]:
    text = page.read_text(encoding="utf-8")
    return commands(text, "console(?: test| torch)?")


def run_with(stage: Path, settings: str) -> Result:
    overrides = [text.strip() for text in settings.split("--set ") if text.strip()]
    return run_experiment(Experiment.load(stage / "run.yaml", [*overrides, "output.batches=true"]))


WORKED = [
    pytest.param(stage, page, number, id=f"{stage.name}-{page}-{number}")
    for stage in STAGES
    for page in PAGES
    for number, _ in enumerate(STEPS.findall((stage / page).read_text(encoding="utf-8")))
]


@pytest.mark.parametrize(("stage", "page", "number"), WORKED)
def test_steps_are_worked_out_right(
    stage: Path, page: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(stage))
    settings, table = STEPS.findall((stage / page).read_text(encoding="utf-8"))[number]
    result = run_with(stage, settings)
    steps, batches = result.steps, result.batches
    assert batches is not None
    for row in rows_of(table):
        told = f"{row}\n{steps}"
        span = steps[steps["step"].between(row.first, row.last)]
        assert len(span) == row.last - row.first + 1, told
        assert span["start_s"].iloc[0] * 1000 == pytest.approx(row.start_ms, abs=0.05), told
        assert span["duration_s"].sum() * 1000 == pytest.approx(row.sum_ms, abs=0.05), told
        assert row.formula_ms == pytest.approx(row.sum_ms), told
        for step in span["step"]:
            batch = batches[batches["step"] == step]
            found = zip(batch["request_id"], batch["num_tokens"], batch["kind"], strict=True)
            assert sorted(found) == sorted(row.parts), told
        if row.kv_blocks is not None:
            assert set(span["kv_blocks_used"]) == {row.kv_blocks}, told


def test_turns_find_what_the_page_says() -> None:
    """Of the stage on routing: requests, prompt tokens and those found, turn by turn, and in all."""
    stage = LEARN / "15-routing"
    result = run_with(stage, "--set replicas.router=prefix_affinity")
    by_turn = result.requests.groupby("num_prompt_tokens")["num_cached_tokens"]
    text = (stage / "README.md").read_text(encoding="utf-8")
    *_, counts, prompts, cached = ([int(number) for number in row] for row in tables(text) if len(row) == 5)
    assert by_turn.size().to_dict() == dict(zip(prompts, counts, strict=True))
    assert by_turn.median().to_dict() == dict(zip(prompts, cached, strict=True))
    num_found, num_prompt = (result.requests[f"num_{name}_tokens"].sum() for name in ("cached", "prompt"))
    assert f"{num_found:,} of {num_prompt:,} tokens: {num_found / num_prompt:.1%}".replace("%", " %") in text


TORCH = [
    pytest.param(block, id=f"{stage.name}-{number}")
    for stage in STAGES
    for number, block in enumerate(
        commands((stage / "README.md").read_text(encoding="utf-8"), "console torch")
    )
]


@pytest.mark.parametrize("block", TORCH)
def test_commands_that_compute_print_what_is_shown(block: list[Command], checkout: Path) -> None:
    pytest.importorskip("torch")
    run_block(block, checkout)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_both_languages_show_the_same(stage: Path) -> None:
    english, chinese = ((stage / page).read_text(encoding="utf-8") for page in PAGES)
    assert blocks_of(stage / "README.md") == blocks_of(stage / "README_zh.md")
    assert [tables(english), answers(english)] == [tables(chinese), answers(chinese)]
    assert len(re.findall("^## ", english, re.MULTILINE)) == len(re.findall("^## ", chinese, re.MULTILINE))


def tables(text: str) -> list[list[str]]:
    """The numbers of each row of a table."""
    return [NUMBER.findall(line.replace(",", "")) for line in text.splitlines() if line.startswith("|")]


def answers(text: str) -> tuple[int, int]:
    """How many exercises have an answer to unfold, and how many of those are closed."""
    return text.count("<details>"), text.count("</details>")


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_each_stage_has_an_exercise_with_its_answer(stage: Path) -> None:
    opened, closed = answers((stage / "README.md").read_text(encoding="utf-8"))
    assert opened == closed >= 1
    assert any(block for block in blocks_of(stage / "README.md"))


@pytest.mark.parametrize("page", PAGES)
def test_one_stage_leads_to_the_next(page: str) -> None:
    index = (LEARN / page).read_text(encoding="utf-8")
    assert re.findall(r"\]\((\d\d-[\w-]+)/" + re.escape(page), index) == [stage.name for stage in STAGES]
    other = next(name for name in PAGES if name != page)
    for number, stage in enumerate(STAGES):
        text = (stage / page).read_text(encoding="utf-8")
        assert text.startswith(f"# {number + 1}. ")
        links = [
            f"../{near.name}/{page}" for near in STAGES[max(0, number - 1) : number + 2] if near != stage
        ]
        assert [link for link in [*links, f"../{page}", other] if f"]({link})" not in text] == []


def test_how_worked_steps_are_read() -> None:
    table = "| 2-5 | 31 | (C) A, B 400 | 4 × (10 + 0.1 × 400 + 1) = 204 | 5 + 5 = 10 |\n"
    parts = [("A", 1, "decode"), ("B", 400, "prefill")]
    assert rows_of(table) == [Row(2, 5, 31.0, parts, 204.0, 204.0, 10)]
    assert rows_of("| 0 | 0 | A | 12 |\n") == [Row(0, 0, 0.0, parts[:1], 12.0, 12.0, None)]
