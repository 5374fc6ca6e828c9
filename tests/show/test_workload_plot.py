"""The picture of a workload shows its figures and is equal to the byte each time."""

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


def test_the_file_is_the_same_each_time(tmp_path):
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
    first, again = (plot_workload(workload, tmp_path / name) for name in ("a.png", "b.png"))
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
