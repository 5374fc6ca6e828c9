"""The note on what unequal contexts do to a run's latencies."""

from __future__ import annotations

from pathlib import Path

import pytest

import cbsim
from cbsim.cost.attention_grid import AttentionGrid
from cbsim.cost.costfile import CostFile, model_shape
from tests.cost.laws import make_form
from tests.cost.test_attention_grid import GRID, TIMED
from tests.cost.test_profile import BOX
from tests.specs.test_specs import load_model

NUM_REQUESTS = 60


POOLS = [{"name": "prompts", "role": "prefill"}, {"name": "answers", "role": "decode"}]


def notes(
    folder: Path, grid: AttentionGrid | None, pools: list[dict[str, str]] | None = None, **settings: object
) -> list[str]:
    """Of a run whose prompts are of very unequal lengths, about unequal contexts alone."""
    trace = folder / "trace.csv"
    rows = [f"{0.001 * n},{4000 if n % 8 == 0 else 60},200" for n in range(NUM_REQUESTS)]
    trace.write_text("arrival_s,num_prompt_tokens,num_output_tokens\n" + "\n".join(rows) + "\n")
    CostFile(
        format="cbsim-cost/1",
        gpu="h200",
        device="a made-up device",
        model=model_shape(load_model("llama-3-8b")),
        tensor_parallel=1,
        form=make_form(fused=True).model_copy(update={"grid": grid}),
        box=BOX,
        points_sha256="0" * 64,
    ).save(folder / "cost.json")
    result = cbsim.run(
        {
            "model": "llama-3-8b",
            "gpu": "h200",
            "workload": {"type": "trace", "path": str(trace)},
            "scheduler": {"type": "vllm"},
            "cost_model": {"type": "profile", "profile": str(folder), **settings},
            **({} if pools is None else {"cluster": {"pools": pools}}),
        }
    )
    return [note for note in result.summary["notes"] if "unequal" in note]


@pytest.mark.parametrize(
    ("grid", "how", "pools"),
    [(TIMED, "as timed or estimated", None), (GRID, "by theory", None), (GRID, "by theory", POOLS)],
)
def test_both_figures_are_told_where_they_differ(tmp_path, grid, how, pools):
    (note,) = notes(tmp_path, grid, pools)
    assert note.startswith(f"with and without what decodes of unequal contexts lose, {how} (cost_model.")
    assert "TPOT " in note
    assert "(+" in note


def test_nothing_is_told_where_there_is_no_such_part(tmp_path):
    assert notes(tmp_path, None) == []
    assert notes(tmp_path, TIMED, unequal_contexts=False) == []
