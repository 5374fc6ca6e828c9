"""Figures of the gallery that no command of its page holds."""

from __future__ import annotations

from typing import Any

import pytest

from cbsim.base.paths import data_folder
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import run_experiment

CODE = {
    "workload.prompt_tokens.median": 1500,
    "workload.output_tokens.median": 13,
    "workload.arrivals.rate_per_s": 13,
}
TOGETHER = [{"name": "together", "count": 4}]
SPLIT = [
    {"name": "prefill-3", "role": "prefill", "count": 3},
    {"name": "decode-1", "role": "decode"},
]


@pytest.mark.parametrize(("pools", "share", "is_met"), [(TOGETHER, "98.0%", False), (SPLIT, "99.9%", True)])
def test_code_is_served_better_by_three_that_prefill_and_one_that_decodes(
    pools: list[dict[str, Any]], share: str, is_met: bool
) -> None:
    settings = {"sweep": {}, "engine": "interpreted", "cluster.pools": pools, **CODE}
    path = data_folder("experiments") / "how-many-prefill-and-decode.yaml"
    summary = run_experiment(Experiment.load(path, settings), with_interval=False).summary
    assert f"{summary['slo_attainment']:.1%}" == share
    assert summary["slo_met"] is is_met
