"""Rules of costs: interpreted and compiled, with short lists and long ones, all with the same recorded bits.

`recorded_seconds.json` has what each model said of these steps when its formulas still stood several times,
as vectors and as closures: a digest and the sum of all seconds, and the first of them. Uncertain
profiles were recorded again when what all steps have in common came from runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.errors import model_of
from cbsim.base.binding import Bound
from cbsim.base.records import plain
from cbsim.cost.constant import ConstantConfig, ConstantCost
from cbsim.cost.cost_model import CostModel, StepShape
from cbsim.cost.costfile import CostFile, model_shape, read_cost_file
from cbsim.cost.costrules import CostRules, price_steps
from cbsim.cost.form import StepForm
from cbsim.cost.profile import ProfileConfig, ProfileCost
from cbsim.cost.roofline import RooflineConfig, RooflineCost
from cbsim.cost.step_columns import CHUNK, SHAPE, StepColumns
from tests.cost.laws import make_form, measured_chunks
from tests.cost.test_attention_grid import FACTORS, TIMED, steps_near
from tests.cost.test_attention_grid import FORMS as GRID_FORMS
from tests.cost.test_attention_grid import PARTS as GRID_PARTS
from tests.cost.test_profile import BOX
from tests.cost.test_uncertain import HELD_OUT
from tests.specs.test_specs import load_gpu, load_model

ROOT = Path(__file__).resolve().parents[2]
DENSE = ("llama-3-70b", "llama-3-8b", "qwen3-8b")
SHIPPED = [f"{gpu}/{model}" for gpu in ("a100-80g", "h100", "h200", "l40s") for model in DENSE]
SHIPPED += ["b200/gpt-oss-120b", "h200/deepseek-v3", "gb200/qwen3-235b-a22b-fp8"]
"""Of those shipped, the first twelve, and one with windows, latent attention and experts each."""
MADE: dict[str, StepForm] = {
    "split": make_form(fused=False),
    "fused": make_form(fused=True),
    "measured chunks": measured_chunks(make_form(fused=True)),
    "one knot": make_form(fused=False).model_copy(
        update={"dense": make_form(fused=False).dense.model_copy(update={"tokens": (7,), "seconds": (1e-4,)})}
    ),
    **{f"{parts}{' fused' if fused else ''}": form for (parts, fused), form in GRID_FORMS.items()},
}
WAYS: dict[str, dict[str, Any]] = {
    "usual": {},
    "sync": {"host": "sync", "host_step_s": 3e-3},
    "bare": {"host": "none", "cuda_graph_batch_sizes": []},
    "equal": {"host": "none", "unequal_contexts": False, "cuda_graph_batch_sizes": [3, 1500]},
    "formula": {"attention": "formula", "host_step_s": 2e-2},
    "sum": {"attention": "sum"},
}
LATER_WAYS: dict[str, dict[str, Any]] = {
    **WAYS,
    "eager": {"eager_step_s": 9e-3, "mixed_graph_tokens": 100, "cuda_graph_batch_sizes": [8, 64]},
    "sorting": {"sort_logit_s": 1.4e-10},
}
"""With those that nobody recorded."""
UNRECORDED = {
    "timed losses": make_form(fused=True).model_copy(update={"grid": TIMED}),
    "factors": make_form(fused=False).model_copy(
        update={"grid": GRID_PARTS["decodes and chunks"], "beside": FACTORS}
    ),
    "factors, no tables": make_form(fused=False).model_copy(update={"beside": FACTORS}),
}
"""Forms whose formulas never stood elsewhere."""
NUM_SHAPES = 3000
RECORDED = json.loads((Path(__file__).parent / "recorded_seconds.json").read_text())
WITH_LOGARITHMS = ("all", "decodes")
"""Forms whose figures include logarithms, which are not the same to the last bit on all machines."""


def draw_shapes(seed: int) -> list[StepShape]:
    """Steps of all kinds: usual ones, ones on and beside the knots of tables, and ones far beyond them."""
    chance = random.Random(seed).random  # The same numbers in all versions of Python.

    def below(end: int) -> int:
        return int(chance() * end)

    def size(most: int) -> int:
        kind = chance()
        if kind < 0.4:
            return 1 + below(most)
        if kind < 0.8:
            return max(int(2 ** below(most.bit_length())) + below(3) - 1, 1)
        if kind < 0.9:
            return int(1.5 * 2 ** (1 + below(most.bit_length() - 1)))
        return most + below(29 * most)

    shapes = []
    for _ in range(NUM_SHAPES):
        num_chunks = (0, 0, 0, 1, 1, 2, 5)[below(7)]
        chunks = tuple((size(4096), size(16_384) - 1 if chance() < 0.7 else 0) for _ in range(num_chunks))
        num_decodes = 0 if num_chunks and chance() < 0.3 else size(512)
        mean = size(8192)
        context = num_decodes * mean + below(num_decodes)
        longest = -(-context // max(num_decodes, 1)) * (1, 1, 3, 40)[below(4)]
        shapes.append(StepShape(chunks, below(num_chunks + 1), num_decodes, context, longest))
    return shapes


SHAPES = draw_shapes(11)


class Columns:
    """The same steps in the forms that rules and models take."""

    def __init__(self, shapes: list[StepShape]) -> None:
        self.shapes = shapes
        self.columns = StepColumns.from_shapes(shapes)
        rows = [(len(chunks), sum(tokens for tokens, _ in chunks), *counts) for chunks, *counts in shapes]
        self.records = np.array(rows, dtype=SHAPE)
        self.chunks = np.array([chunk for shape in shapes for chunk in shape.chunks], dtype=CHUNK)
        self.plain = plain(self.records), plain(self.chunks)

    @cached_property
    def few(self) -> Columns:
        """Every sixth of them, for forms that are slow."""
        return Columns(self.shapes[::6])


STEPS = Columns(SHAPES)

Price = Callable[[CostRules, Columns], NDArray[np.float64]]


@pytest.fixture(scope="session")
def compiled() -> Price:
    """Seconds of steps by compiled rules; each rule is compiled once."""
    made: dict[Any, Any] = {}

    def price(rules: CostRules, steps: Columns) -> NDArray[np.float64]:
        seconds = np.zeros(len(steps.records))
        arguments = (rules.record, steps.records, steps.chunks, seconds)
        if rules.step_s not in made:
            made[rules.step_s] = Bound(price_steps, {"step_s": rules.step_s}).compiled
            made[rules.step_s].prepare(*arguments)
        made[rules.step_s](*arguments)
        assert len(made[rules.step_s]._codes) == 1, "records of one rule differ in type"
        return seconds

    return price


def interpreted(rules: CostRules, steps: Columns) -> NDArray[np.float64]:
    seconds = [0.0] * len(steps.shapes)
    Bound(price_steps, {"step_s": rules.step_s}).interpreted(plain(rules.record), *steps.plain, seconds)
    return np.array(seconds)


def in_all_forms(cost: CostModel, compiled: Price, steps: Columns) -> NDArray[np.float64]:
    """Seconds of steps by compiled rules; all forms of a model agree, interpreted ones on few of them."""
    rules, small = cost.rules(), cost.rules(64, 20)
    assert rules is not None
    assert small is not None
    by_rules = compiled(rules, steps)
    forms = {
        "steps_s": cost.steps_s(steps.columns),
        "compiled, small tables": compiled(small, steps),
        "step_s": np.array([cost.step_s(shape) for shape in steps.few.shapes]),
        "interpreted": interpreted(rules, steps.few),
        "interpreted, small tables": interpreted(small, steps.few),
    }
    for form, seconds in forms.items():
        each = 1 if len(seconds) == len(by_rules) else 6
        differs = each * np.flatnonzero(seconds != by_rules[::each])
        assert not len(differs), f"{form}: {len(differs)} differ, first {steps.shapes[differs[0]]}"
    return by_rules


def agree(name: str, cost: CostModel, compiled: Price, steps: Columns = STEPS) -> None:
    """All forms of a model say the same of all steps, and what was recorded."""
    seconds, recorded = in_all_forms(cost, compiled, steps), RECORDED[name]
    assert seconds[: len(recorded["first"])].tolist() == pytest.approx(recorded["first"], rel=1e-12)
    assert math.fsum(seconds.tolist()) == pytest.approx(recorded["sum"], rel=1e-12)
    if not name.startswith(WITH_LOGARITHMS) and "seed" not in name:
        assert hashlib.sha256(seconds.astype("<f8").tobytes()).hexdigest()[:16] == recorded["digest"]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("way", ["usual", "bare"])
def test_shipped_profiles(name: str, way: str, compiled: Price) -> None:
    agree(f"{name}, {way}", shipped(name, way), compiled)


def shipped(name: str, way: str) -> ProfileCost:
    file = read_cost_file(ROOT / "calibration/profiles" / name / "cost.json")
    config = ProfileConfig(type="profile", profile=name, **WAYS[way])
    return ProfileCost(config, model_of(file), load_gpu(name.split("/")[0]), file.parallel)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Profiles of made-up forms."""
    folder = tmp_path_factory.mktemp("profiles")
    for name, form in (MADE | UNRECORDED).items():
        (folder / name).mkdir()
        CostFile(
            format="cbsim-cost/1",
            gpu="h200",
            device="a made-up device",
            model=model_shape(load_model("llama-3-8b")),
            tensor_parallel=1,
            form=form,
            box=BOX,
            points_sha256="0" * 64,
            accuracy={"held_out": HELD_OUT},
        ).save(folder / name / "cost.json")
    return folder


def make(folder: Path, name: str, **settings: Any) -> ProfileCost:
    config = ProfileConfig(type="profile", profile=str(folder / name), **settings)
    return ProfileCost(config, load_model("llama-3-8b"), load_gpu("h200"))


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("way", WAYS)
def test_made_up_profiles(name: str, way: str, folder: Path, compiled: Price) -> None:
    agree(f"{name}, {way}", make(folder, name, **WAYS[way]), compiled)


@pytest.mark.parametrize("name", UNRECORDED)
@pytest.mark.parametrize("way", LATER_WAYS)
def test_forms_that_came_later(name: str, way: str, folder: Path, compiled: Price) -> None:
    in_all_forms(make(folder, name, **LATER_WAYS[way]), compiled, STEPS)


@pytest.mark.parametrize("name", ["all", "all, rough", "all, dear chunks"])
def test_mixed_steps_about_the_knots_of_tables(name: str, folder: Path, compiled: Price) -> None:
    grid = GRID_PARTS[name]
    in_all_forms(make(folder, name), compiled, Columns(steps_near(grid, 3000, seed=7)))


@pytest.mark.parametrize("name", ["split", "fused", "decodes", "all, rough"])
@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_uncertain_profiles(name: str, seed: int, folder: Path, compiled: Price) -> None:
    """Sizes beyond those for which mixed steps' errors are drawn err like the largest of those."""
    cost = make(folder, name, uncertainty=True, step_error_pct=16.6).drawn(seed)
    steps = Columns([shape for shape in SHAPES if is_drawn(shape)])
    agree(f"{name}, seed {seed}", cost, compiled, steps)


def is_drawn(shape: StepShape) -> bool:
    tokens, contexts = shape.num_tokens - shape.num_decodes, [sum(chunk) for chunk in shape.chunks]
    means = [shape.decode_context // max(shape.num_decodes, 1)]
    is_mixed = bool(shape.chunks and shape.num_decodes)
    return not is_mixed or (tokens < 128 and shape.num_decodes < 32 and max([*contexts, *means]) < 65_536)


@pytest.mark.parametrize("number", range(3))
def test_constant(number: int, compiled: Price) -> None:
    settings = ({}, {"per_prefill_token_s": 3e-5}, {"per_prefill_token_s": 3e-5, "per_decode_s": 1e-4})
    config = ConstantConfig(type="constant", step_s=0.013, **settings[number])
    cost = ConstantCost(config, load_model("llama-3-8b"), load_gpu("h100"))
    agree(f"constant {number}", cost, compiled)


@pytest.mark.parametrize(
    ("model", "gpu", "tensor_parallel"),
    [("llama-3-8b", "h100", 1), ("qwen3-8b", "l40s", 2), ("llama-3-70b", "a100-80g", 8)],
)
@pytest.mark.parametrize("number", range(2))
def test_roofline(model: str, gpu: str, tensor_parallel: int, number: int, compiled: Price) -> None:
    settings = ({}, {"host_step_s": 1e-3, "host_request_s": 2e-5})[number]
    config = RooflineConfig(type="roofline", **settings)
    # Recorded when links had the rates of their data sheets.
    told = load_gpu(gpu).model_copy(update={"measured_link_gb_s": None, "link_latency_s": None})
    cost = RooflineCost(config, load_model(model), told, tensor_parallel)
    agree(f"roofline {model} {gpu} {number}", cost, compiled)
