"""What each priority feels: TTFT as a CDF for one priority a panel, runs overlaid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter, PercentFormatter

from cbsim.results.result import Result
from cbsim.show.style import head, line_style, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def ttft_by_priority(results: Mapping[str, Result], title: str, caption: str = "") -> Figure:
    """A panel for each priority, a curve for each run under its label; the axis is logarithmic, seconds."""
    priorities = sorted({int(p) for result in results.values() for p in result.requests["priority"].unique()})
    with styled():
        figure = new_figure(11, 4.2)
        panels = figure.subplots(1, len(priorities), squeeze=False, sharex=True)[0]
        for axes, priority in zip(panels, priorities, strict=True):
            for place, (label, result) in enumerate(results.items()):
                requests = result.requests
                ttft_s = np.sort(requests.loc[requests["priority"] == priority, "ttft_s"].dropna().to_numpy())
                share = np.arange(1, len(ttft_s) + 1) / max(len(ttft_s), 1)
                axes.plot(ttft_s, share, label=label, **line_style(place))
            axes.set(
                title=f"priority {priority}", xlabel="TTFT (s)", ylabel="share of requests", xscale="log"
            )
            axes.set_ylim(0, 1.01)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        head(figure, title, caption, panels[0])
    return figure


def ttft_table(results: Mapping[str, Result]) -> pd.DataFrame:
    """TTFT of each run and priority: the number of requests and `p50`, `p99` and `max` in seconds."""
    rows = [
        {
            "run": label,
            "priority": priority,
            "num_requests": len(ttft_s),
            "p50": ttft_s.quantile(0.5),
            "p99": ttft_s.quantile(0.99),
            "max": ttft_s.max(),
        }
        for label, result in results.items()
        for priority, ttft_s in result.requests.groupby("priority")["ttft_s"]
    ]
    return pd.DataFrame(rows)
