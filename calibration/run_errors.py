"""How wrong whole steps are, by what a cost model knows: the evidence behind the interval of every run.

    python -m calibration.run_errors FOLDER --out recorded

It prints what stands in `cbsim/cost/run_errors.py`, percent that 9 of 10 steps, or runs, lie within: of
profiles with mixed launches by the forced replay of the recorded runs in FOLDER (see `recorded_runs.py`), of
NVIDIA's kernel tables by TPOT of the served runs of vLLM (served-runs.csv), of all-reduces that nobody timed
by their share of a step in the shipped profiles, of rooflines by those profiles. Then, for the recorded runs,
whether the interval that the *other* run and its replay give holds what was recorded.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from calibration.errors import Priced, model_of, priced_profiles, roofline_errors, steps
from calibration.recorded_runs import RecordedFolder, recorded_folders
from cbsim.base.units import MS_PER_S, markdown_table
from cbsim.cost.profile import ProfileConfig, ProfileCost
from cbsim.cost.run_errors import CONFIDENCE, Z_90

SERVED = Path(__file__).with_name("served-runs.csv")
DENSE = ("Llama", "Qwen3-32B")
"""How the names of the served models without experts begin."""
FEW_CLIENTS = 4
"""Clients among whom hardly any prompt waits for another."""
SHORT_PROMPT = 1024
MIN_SHARE = 0.01
"""A kind of step that takes less of a run's time does not count: the first steps of a server are slow."""


class Evidence(NamedTuple):
    """A spread, and what it comes from."""

    kind: str
    pct: float
    """Within which 9 of 10 lie, around no error."""
    evidence: str


def of_replay(told: Mapping[str, Any]) -> float:
    """The spread of the kinds of step of a replayed run: 1.645 times the root of the mean square, percent.

    A kind counts by the time that its steps take, if that is a hundredth or more: a run of another mixture
    may consist of any. `told` is what `cbsim validate --replay --json` says.
    """
    cells = pd.DataFrame(told["verdict"]["steps"])
    cells["recorded_s"] = cells["predicted_s"] * cells["ratio"]
    kinds = cells.groupby("kind")[["predicted_s", "recorded_s"]].sum()
    kinds = kinds[kinds["predicted_s"] >= MIN_SHARE * kinds["predicted_s"].sum()]
    logs = np.log(kinds["recorded_s"] / kinds["predicted_s"])
    weights = kinds["predicted_s"] / kinds["predicted_s"].sum()
    return 100.0 * math.expm1(Z_90 * math.sqrt(float((weights * logs**2).sum())))


def pooled(pcts: Sequence[float]) -> float:
    """The spread of several runs together, percent."""
    return 100.0 * math.expm1(math.sqrt(float(np.mean(np.log1p(np.array(pcts) / 100.0) ** 2))))


def served(table: pd.DataFrame) -> Iterator[Evidence]:
    """How far imported tables miss TPOT of vLLM's runs, by number of GPUs and kind of model."""
    runs = table[table["framework"] == "vLLM"]
    is_dense = runs["model"].str.startswith(DENSE)
    is_one = runs["tensor"] * runs["data"] == 1
    error = np.abs(np.log(runs["simulated_tpot_s"] / runs["measured_tpot_s"]))
    for one, gpus in ((True, "one GPU"), (False, "several GPUs")):
        for dense, model in ((True, "dense"), (False, "experts")):
            chosen = error[(is_one == one) & (is_dense == dense)]
            pct = 100.0 * math.expm1(float(np.quantile(chosen, CONFIDENCE)))
            yield Evidence(f"imported, {gpus}, {model}", pct, f"TPOT of {len(chosen)} served runs of vLLM")


def front_s(table: pd.DataFrame) -> tuple[float, float, int]:
    """Seconds of TTFT that no kernel tells, p50 and p90 over vLLM's runs of few clients and short prompts."""
    chosen = table[
        (table["framework"] == "vLLM")
        & (table["clients"] <= FEW_CLIENTS)
        & (table["num_prompt_tokens"] == SHORT_PROMPT)
    ]
    lacking_s = chosen["measured_ttft_s"] - chosen["simulated_ttft_s"]
    return float(lacking_s.quantile(0.5)), float(lacking_s.quantile(CONFIDENCE)), len(chosen)


def collectives(profiles: Mapping[str, Priced]) -> Evidence:
    """What a profile without all-reduces may lack: their share of steps in those that have them."""
    shares: list[float] = []
    num_profiles = 0
    for name, each in profiles.items():
        if each.file.form.collectives is None:
            continue
        num_profiles += 1
        config = ProfileConfig(type="profile", profile=name, host="none")
        model = model_of(each.file)
        cost = ProfileCost(config, model, each.gpu, each.file.parallel)
        cost._form = cost._form.model_copy(update={"collectives": None})
        without_s = cost.steps_s(steps(model))
        shares += (each.profile_s / without_s - 1.0).tolist()
    pct = 100.0 * float(np.quantile(shares, CONFIDENCE))
    return Evidence("all-reduces not timed", pct, f"their share of steps in {num_profiles} profiles")


def rooflines(profiles: Mapping[str, Priced]) -> Iterator[Evidence]:
    """How far rooflines miss the steps of shipped profiles, by what joins GPUs."""
    for is_module, (gpus, errors) in roofline_errors(profiles).items():
        kind = "estimated, modules" if is_module else "estimated, cards"
        yield Evidence(kind, errors.p90_pct, f"steps of profiles of {', '.join(gpus)}")


def main() -> None:
    """Print the evidence, and what each recorded run's interval is worth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("recorded"))
    given = parser.parse_args()
    runs = list(recorded_folders(given.folder, given.out)) if given.folder else []
    by_run = {run: of_replay(run.validate("--replay")) for run in runs}
    rows = [
        Evidence(f"measured, {run.gpu}", pct, "its replay, by kind of step") for run, pct in by_run.items()
    ]
    if rows:
        rows.append(Evidence("measured", pooled([*by_run.values()]), "these together"))
    table, profiles = pd.read_csv(SERVED), priced_profiles()
    rows += [*served(table), collectives(profiles), *rooflines(profiles)]
    print(markdown_table(("kind", "90% within, %", "from"), [(k, f"{pct:.1f}", e) for k, pct, e in rows]))
    p50_s, p90_s, number = front_s(table)
    front = f"{p50_s * MS_PER_S:.0f} ms at the median, {p90_s * MS_PER_S:.0f} ms at p90 of {number} runs"
    print(f"\nTTFT that no kernel tells: {front}")
    for run in runs:
        others = [pct for other, pct in by_run.items() if other is not run]
        if others:
            print(f"\n{run.gpu}, steps within {pooled(others):.1f}% by the others:")
            print(held(run, pooled(others)))


def held(run: RecordedFolder, pct: float) -> str:
    """What was recorded beside the interval of the run at a spread of its steps' times, percent."""
    told = run.validate("--set", f"cost_model.step_error_pct={pct}")
    rows = [
        (
            figure["name"],
            *(f"{figure[part]:.4g}" for part in ("real", "simulated", "low", "high")),
            "yes" if figure["low"] <= figure["real"] <= figure["high"] else "NO",
        )
        for figure in told["figures"]
        if "low" in figure
    ]
    return markdown_table(("", "recorded", "simulated", "low", "high", "held"), rows)


if __name__ == "__main__":
    main()
