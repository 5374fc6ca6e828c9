"""The errors behind intervals are those of the evidence at hand: `python -m calibration.run_errors`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from calibration.run_errors import SERVED, front_s, of_replay, pooled, served
from cbsim.cost.run_errors import FRONT_S, IMPORTED, Z_90

STALE = "python -m calibration.run_errors prints what should stand in cbsim/cost/run_errors.py"


def test_imported_tables_err_as_served_runs_showed():
    found = list(served(pd.read_csv(SERVED)))
    for (several, experts), seen in IMPORTED.items():
        gpus = "several GPUs" if several else "one GPU"
        kind = f"imported, {gpus}, {'experts' if experts else 'dense'}"
        (evidence,) = [each for each in found if each.kind == kind]
        assert evidence.pct == pytest.approx(seen.pct, abs=0.1), STALE
        assert seen.evidence.startswith(evidence.evidence.split()[2]), STALE


def test_what_no_kernel_tells_of_ttft():
    _, p90_s, number = front_s(pd.read_csv(SERVED))
    assert p90_s == pytest.approx(FRONT_S, abs=1e-3), STALE
    assert number > 100


def test_kinds_of_step_count_by_their_time_and_first_steps_not_at_all():
    """10 % off for half of the time: 1.645 times the root of half of that squared."""
    steps = [
        {"kind": "decode", "predicted_s": 5.0, "ratio": 1.0},
        {"kind": "mixed", "predicted_s": 2.0, "ratio": 1.1},
        {"kind": "mixed", "predicted_s": 3.0, "ratio": 1.1},
        {"kind": "prefill", "predicted_s": 0.05, "ratio": 3.0},
    ]
    expected = np.expm1(Z_90 * np.log(1.1) * np.sqrt(0.5)) * 100
    assert of_replay({"verdict": {"steps": steps}}) == pytest.approx(expected)
    assert pooled([4.0, 4.0]) == pytest.approx(4.0)
    assert 3.0 < pooled([2.0, 4.0]) < 4.0


def test_errors_of_served_runs_know_no_sign():
    """Half as long and twice as long are as far off."""
    row = {"framework": "vLLM", "model": "Llama-3.1-8B", "tensor": 1, "data": 1, "measured_tpot_s": 0.01}
    for simulated_s in (0.005, 0.02):
        table = pd.DataFrame(
            [row | {"simulated_tpot_s": simulated_s, "model": name} for name in ("Llama", "x")] * 2
        )
        several = table.assign(tensor=4)
        found = {each.kind: each.pct for each in served(pd.concat([table, several]))}
        assert found == pytest.approx(dict.fromkeys(found, 100.0))
        assert len(found) == 4
