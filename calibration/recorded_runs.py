"""How near whole recorded runs are, from layer timings of their GPUs; nothing is fitted to the runs.

    python -m calibration.recorded_runs FOLDER --out recorded

FOLDER holds a folder `GPU-MODEL` for each run of `RUNS`: layer timings, `requests.jsonl` and, perhaps, what
prompts share (`prompts.jsonl`) and LLMServingSim's own figures (`llmservingsim_summary.txt`). It imports the
timings, once, into profiles in `--out`, with products of the server's release where `PRODUCTS` has them, and
prints the tables of README.md: every run as `cbsim validate` has it, what each part is worth, and how long
steps took against what was predicted.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from cbsim.base.units import markdown_table
from cbsim.cli import main as cbsim

RUNS = {"rtxpro6000-llama-3.1-8b": "recorded-run.yaml", "rtx4090-llama-3.1-8b": "recorded-run-rtx4090.yaml"}
"""Folders of runs, and the experiments beside this file that predict them."""
PRODUCTS = {"rtxpro6000-llama-3.1-8b": Path(__file__).with_name("products-rtxpro6000-vllm-0.19.csv")}
"""Products that NVIDIA timed with the server's release, where the layers were timed with other libraries."""
LATENCIES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E"}
PARTS = ("mean", "p50", "p90", "p99")
CHANGES: Mapping[str, Sequence[str]] = {
    "as above": (),
    "latencies from when requests were sent": ("--arrivals", "sent"),
    "no host time at all (`host=none`)": ("--set", "cost_model.host=none"),
    "gap between steps 0.3 ms, the longest seen, for 0.15": ("--set", "cost_model.host_gap_s=3e-4"),
    "host time added, not hidden (`host=sync`)": ("--set", "cost_model.host=sync"),
    "decodes as if of equal context": ("--set", "cost_model.unequal_contexts=false"),
    "the formula for attention, no tables (`attention=formula`)": ("--set", "cost_model.attention=formula"),
    "chunks and decodes as if launched apart (`attention=sum`)": ("--set", "cost_model.attention=sum"),
    "batches not padded to CUDA graphs": ("--set", "cost_model.cuda_graph_batch_sizes=[]"),
}
"""One thing changed, by what it is: arguments of `cbsim validate`, the last to count."""


@dataclass(frozen=True)
class RecordedFolder:
    """A recorded run and a profile of its GPU's timings."""

    folder: Path
    profile: Path
    products: Path | None = None
    """Products that stand in place of the layers' own; None for none."""

    @property
    def gpu(self) -> str:
        """Its name in `configs/gpus`."""
        return self.folder.name.partition("-")[0]

    def import_profile(self) -> None:
        """Fit a profile to the layer timings, if that isn't there yet."""
        if (self.profile / "cost.json").is_file():
            return
        files = {
            name: self.folder / f"{name.replace('-', '_')}.csv"
            for name in ("dense", "per-sequence", "attention", "skew")
        }
        if self.products is not None:
            files["products"] = self.products
        given = [part for name, path in files.items() if path.is_file() for part in (f"--{name}", str(path))]
        what = ("--model", "llama-3-8b", "--gpu", self.gpu, "--out", str(self.profile))
        call("calibrate", "import", "layers", *given, *what)

    def validate(self, *further: str, with_prompts: bool = True) -> dict[str, Any]:
        """What `cbsim validate --json` says, with `further` arguments."""
        prompts = self.folder / "prompts.jsonl"
        given = [
            "--log",
            str(self.folder / "requests.jsonl"),
            "--profile",
            str(self.profile),
            "--arrivals",
            "queued",
        ]
        if with_prompts and prompts.is_file():
            given += ["--prompts", str(prompts)]
        config = Path(__file__).parent / RUNS[self.folder.name]
        told: dict[str, Any] = json.loads(call("validate", str(config), *given, "--json", *further))
        return told

    def peer(self) -> dict[str, float]:
        """Errors of LLMServingSim on the run, percent, by names of figures; none where it isn't told."""
        path = self.folder / "llmservingsim_summary.txt"
        names = {"TTFT": "ttft_s", "TPOT": "tpot_s", "Latency": "e2e_s"}
        parts = {"Mean": "mean", "Median": "p50", "P90": "p90", "P99": "p99"}
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        rows = re.findall(r"^(TTFT|TPOT|Latency) (\w+) .* ([-+.\d]+)%$", text, re.MULTILINE)
        return {f"{names[name]}.{parts[part]}": float(error) for name, part, error in rows if part in parts}


def call(*arguments: str) -> str:
    """What `cbsim` prints; raises `SystemExit` with the mistakes that it tells, and what else it raises."""
    answer = CliRunner().invoke(cbsim, arguments, catch_exceptions=False)
    if answer.exit_code:
        raise SystemExit(answer.output)
    return answer.stdout


def errors_of(told: Mapping[str, Any]) -> dict[str, float]:
    """Errors by names of figures, percent."""
    return {figure["name"]: figure["error_pct"] for figure in told["figures"]}


def runs_table(runs: Sequence[RecordedFolder]) -> str:
    """Every latency of each run: recorded, and how far off the simulation and its peer are."""
    names = [f"{latency}.{part}" for latency in LATENCIES for part in PARTS]
    header = ("", *(f"{LATENCIES[name.partition('.')[0]]} {name.partition('.')[2]}" for name in names))
    rows = []
    for run in runs:
        told = run.validate()
        recorded = {figure["name"]: figure["real"] for figure in told["figures"]}
        rows.append((f"{run.gpu}: recorded, s", *(f"{recorded[name]:.3g}" for name in names)))
        of = {"**cbsim**, %": errors_of(told)}
        if run.products is not None:
            own = RecordedFolder(run.folder, run.profile.with_name(f"{run.profile.name}-own-products"))
            own.import_profile()
            of["cbsim, all products as its layers have them, %"] = errors_of(own.validate())
        of["cbsim without prompts, %"] = errors_of(run.validate(with_prompts=False))
        of["LLMServingSim 2.0's own figures, %"] = run.peer()
        for what, errors in of.items():
            rows.append((what, *(f"{errors[name]:+.1f}" if name in errors else "-" for name in names)))
    return markdown_table(header, rows)


def changes_table(runs: Sequence[RecordedFolder]) -> str:
    """The errors of the means with one thing changed."""
    header = ("mean TTFT / TPOT / E2E, %", *(run.gpu for run in runs))
    rows = [(what, *(means(run.validate(*given)) for run in runs)) for what, given in CHANGES.items()]
    rows.insert(1, ("without what prompts share", *(means(run.validate(with_prompts=False)) for run in runs)))
    return markdown_table(header, rows)


def means(told: Mapping[str, Any]) -> str:
    """Errors of the means of the latencies, percent."""
    return " / ".join(f"{errors_of(told)[f'{latency}.mean']:+.1f}" for latency in LATENCIES)


def steps_table(runs: Sequence[RecordedFolder]) -> str:
    """By the forced replay: contradicted steps, and recorded over predicted time by kind of step."""
    header = ("", "contradicted", "prefill", "decode", "mixed", "several kinds", "all")
    rows = []
    for run in runs:
        replay = run.validate("--replay")["replay"]
        ratios = replay["recorded_over_predicted"]
        cells = [
            f"{ratios[kind]['ratio']:.3f} ({ratios[kind]['num_steps']:,})" if kind in ratios else "-"
            for kind in ("prefill", "decode", "mixed", "several", "all")
        ]
        contradicted = f"{replay['num_contradictions']} of {replay['num_recorded_steps']}"
        rows.append((run.gpu, contradicted, *cells))
    return markdown_table(header, rows)


def recorded_folders(folder: Path, out: Path) -> Iterator[RecordedFolder]:
    """The runs that a folder holds, each with its profile imported into `out`."""
    for name in RUNS:
        if (folder / name).is_dir():
            run = RecordedFolder(folder / name, out / name, PRODUCTS.get(name))
            run.import_profile()
            yield run


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("recorded"))
    given = parser.parse_args()
    runs = list(recorded_folders(given.folder, given.out))
    for table in (runs_table, changes_table, steps_table):
        print(table(runs), end="\n\n")


if __name__ == "__main__":
    main()
