"""The Gantt picture: what is drawn, labelled and left out."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cbsim.show.gantt_plot import MAX_ROWS, gantt_picture
from cbsim.studies.explain.batch_step import BatchStep, Gantt
from cbsim.studies.explain.source import Window
from tests.studies.explain.cases import PREEMPTED, Row, source


def gantt(folder: Path, requests: dict[str, Row], num_blocks: int = 4, **scheduler: int) -> Gantt:
    settings = {"type": "vllm", "async_scheduling": False, "max_tokens_per_step": 8} | scheduler
    kv_cache = {"num_blocks": num_blocks, "block_size": 2}
    run = source(folder, requests, scheduler=settings, kv_cache=kv_cache)
    steps: list[BatchStep] = []
    run.batch_steps(Window(0, 0), steps.append)
    return Gantt.of(0, steps, run.result.events)


def bars(figure: Figure, place: int) -> list[tuple[float, float]]:
    """Start and end of the bars of a row."""
    rectangles = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    return [
        (bar.get_x(), bar.get_x() + bar.get_width())
        for bar in rectangles
        if bar.get_y() < place < bar.get_y() + bar.get_height()
    ]


def names(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_bars_stand_over_their_steps_or_their_seconds(tmp_path: Path) -> None:
    drawn = gantt(tmp_path, PREEMPTED)
    over_steps = gantt_picture(drawn, "title")
    assert names(over_steps) == ["a", "b", "c"]
    assert bars(over_steps, 2) == [(-0.5, 0.5), (0.5, 2.5), (2.5, 3.5), (3.5, 4.5)]
    over_time = gantt_picture(drawn, "title", over_time=True)
    assert bars(over_time, 2) == [(0, 1), (1, 3), (3, 4), (4, 5)]


def test_chunks_are_labelled_and_the_budget_is_drawn(tmp_path: Path) -> None:
    figure = gantt_picture(gantt(tmp_path, {"a": (0.0, 20, 2)}, num_blocks=40), "title")
    upper, lower = figure.axes
    assert [text.get_text() for text in upper.texts] == ["8", "8", "4"]
    assert [text.get_text() for text in lower.texts] == ["budget"]
    assert [patch.get_height() for patch in lower.patches if patch.get_height()] == [1, 8, 8, 4]


def test_of_many_requests_those_that_do_more_than_decode_are_drawn(tmp_path: Path) -> None:
    """The first two compute their prompts in step 0; seen from step 1 on, they only decode."""
    num_requests = MAX_ROWS + 2
    requests: dict[str, Row] = {f"r{place}": (0.0, 1, 3) for place in range(2)}
    requests |= {f"r{place}": (0.5, 1, 1) for place in range(2, num_requests)}
    whole = gantt(tmp_path, requests, num_blocks=999, max_tokens_per_step=999)
    cut = Gantt(0, whole.steps[1:], list(whole.rows))
    for row in cut.rows[:2]:
        row.bars = [bar for bar in row.bars if bar.kind == "decode"]
    drawn = gantt_picture(cut, "title")
    assert names(drawn) == [f"r{place}" for place in range(2, num_requests)]
    marked = gantt_picture(cut, "title", marked="r1")
    assert names(marked) == [f"r{place}" for place in range(1, num_requests - 1)]
    weights = [label.get_fontweight() for label in marked.axes[0].get_yticklabels()]
    assert weights == ["bold"] + ["normal"] * (MAX_ROWS - 1)
    assert f"{MAX_ROWS} of {num_requests} requests are drawn" in marked.get_supxlabel()


def test_the_key_names_what_is_there(tmp_path: Path) -> None:
    figure = gantt_picture(gantt(tmp_path, PREEMPTED), "title")
    shown = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert shown == ["prefill", "decode", "preempted"]
