"""Draw the pictures of capacities and published claims: `python experiments/pictures/draw_answers.py runs`.

Each picture whose answer (`cbsim capacity`, `sweep` or `tune` of NAME) lies in the folder given is written
beside this file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from cbsim.results.result import load_run
from cbsim.show.capacity_plot import capacity_bars, interval_bars, rate_picture
from cbsim.show.reader_tables import GOODPUT, ITL, TTFT, LimitedFigure
from cbsim.show.style import save_figure
from cbsim.show.sweep_plot import sweep_curves, sweep_pictures
from cbsim.show.sweep_text import Sweep
from cbsim.show.text import format_figure
from cbsim.show.tune_plot import tune_pictures
from cbsim.studies.capacity.answer import load_capacity
from cbsim.studies.intervals import Interval
from cbsim.studies.tune.best_settings import load_tune

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ORCA = (
    "one at a time",
    "request-level, 8",
    "request-level, 32",
    "request-level, 128",
    "iteration-level, 32",
    "iteration-level, 256",
)
VLLM = ("Orca, 2,048 reserved", "Orca, 1,024 reserved", "Orca, oracle", "paged")
SARATHI = ("prompts alone (vLLM V0)", "prompts whole (Orca)", "chunks, budget 512", "chunks, budget 1,024")
CONTINUOUS = ("one at a time", "static, 4", "continuous, 4", "continuous, 16", "continuous, 256")
PAGING = ("slots of 6,400", "reserve 2,048", "reserve 1,000", "reserve exactly", "paged")
"""Short names of the points of each experiment, in its order."""


def bars(folder: Path, names: tuple[str, ...], title: str) -> Figure:
    """The capacities of an answer, with short names for its contenders."""
    answer = load_capacity(folder)
    labels = {each.label: name for each, name in zip(answer.contenders, names, strict=True)}
    return capacity_bars(answer, title, labels)


def settings(folder: Path, names: tuple[str, ...] = ()) -> Figure:
    """What the settings of a sweep do, as `cbsim sweep` draws it, with short `names` of its schedulers."""
    table = _renamed(pd.read_parquet(folder / "table.parquet"), names)
    run = load_run(folder / "points" / str(table["point"].iloc[0]))
    return sweep_pictures(Sweep.of(table, run.promised), run.name)["settings"].figure


def _renamed(table: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    if not names:
        return table
    schedulers = dict.fromkeys(table["scheduler"])
    return table.replace({"scheduler": dict(zip(schedulers, names, strict=True))})


def kv_blocks(folder: Path) -> Figure:
    """Latency and goodput by the size of the KV cache."""
    table = _renamed(pd.read_parquet(folder / "table.parquet"), ("reserve 1,000", "reserve exactly", "paged"))
    figures = [LimitedFigure(figure) for figure in (TTFT, ITL, GOODPUT)]
    caption = "azure-like at 16 requests/s, Llama-3-8B on an H200; a block holds 16 tokens."
    title = "How much KV cache a chat service needs"
    return sweep_curves(table, "kv_cache.num_blocks", "scheduler", figures, title, caption)


def paging(folder: Path) -> Figure:
    """The share of the KV cache that was taken and held nothing."""
    waste = pd.read_parquet(folder / "table.parquet")["kv_waste.mean"] * 100
    shown = {
        name: (Interval(share, share, share), format_figure(share))
        for name, share in zip(PAGING, waste, strict=True)
    }
    title = "What reservations waste"
    return interval_bars(shown, title, "KV cache taken but empty (%), mean over time")


PICTURES: dict[str, tuple[str, Callable[[Path], Figure]]] = {
    "saturation": ("saturation", settings),
    "capacity-per-gpu": ("capacity-per-gpu-capacity", lambda folder: rate_picture(load_capacity(folder))),
    "kv-blocks": ("kv-blocks", kv_blocks),
    "tuning": ("tuning-tune", lambda folder: tune_pictures(load_tune(folder))["keys"].figure),
    "claim-orca": ("claim-orca-capacity", lambda folder: bars(folder, ORCA, "Orca's claim")),
    "claim-vllm": ("claim-vllm-capacity", lambda folder: bars(folder, VLLM, "vLLM's claim")),
    "claim-sarathi": ("claim-sarathi", lambda folder: settings(folder, SARATHI)),
    "claim-continuous": (
        "claim-continuous-capacity",
        lambda folder: bars(folder, CONTINUOUS, "Continuous batching against one at a time"),
    ),
    "claim-paging": ("claim-paging", paging),
}
"""Name of the picture -> the folder of its answer, and how it is drawn."""


def main(runs: Path) -> None:
    """Draw what is there."""
    for name, (folder, draw) in PICTURES.items():
        if (runs / folder).is_dir():
            png, svg = save_figure(draw(runs / folder), Path(__file__).with_name(f"{name}.png"))
            svg.unlink()
            print(png)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
