"""The picture of a workload shows its figures."""

import numpy as np
import pytest

from cbsim.show.workload_plot import plot_workload, workload_figure
from cbsim.workload import WORKLOADS
from cbsim.workload.stats import WorkloadColumns


def columns(num, span_s=100.0):
    return WorkloadColumns(np.linspace(0.0, span_s, num), np.arange(1, num + 1), np.full(num, 7))


@pytest.mark.parametrize(
    ("made", "xlabel"),
    [
        (columns(50), "time (s)"),
        (columns(50, 3 * 3600.0), "time (h)"),
        (columns(50, 9 * 86400.0), "time (days)"),
        (columns(1), "time (s)"),
        (columns(0), "time (s)"),
    ],
)
def test_axes(made, xlabel):
    figure = workload_figure(made)
    assert figure.axes[0].get_xlabel() == xlabel
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title for title in titles if title] == ["Arrivals (dashed: mean)", "Prompts", "Answers"]


def test_a_workload_is_read_and_drawn_as_two_files(tmp_path):
    synthetic = WORKLOADS.get("synthetic")
    config = synthetic.Config.model_validate(
        {
            "type": "synthetic",
            "num_requests": 50,
            "arrivals": {"type": "poisson", "rate_per_s": 1.0},
            "prompt_tokens": {"type": "fixed", "value": 5},
            "output_tokens": {"type": "fixed", "value": 5},
        }
    )
    workload = synthetic(config, seed=0, folder=tmp_path)
    png, svg = plot_workload(workload, tmp_path / "a.png")
    assert (png.name, svg.name) == ("a.png", "a.svg")
    assert "Workload of 50 requests" in svg.read_text()
