"""ProfileCost: the host's share, graph padding, the calibrated box, and every mistake in a profile's file."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cbsim.base.errors import CalibrationError, ConfigError
from cbsim.cost import COST_MODELS
from cbsim.cost.cost_model import StepShape
from cbsim.cost.costfile import Box, CostFile, model_shape, read_cost_file
from cbsim.cost.profile import VLLM_GRAPH_BATCH_SIZES, ProfileConfig, ProfileCost
from cbsim.cost.step_columns import StepColumns
from tests.cost.laws import make_form, shapes
from tests.specs.test_specs import load_gpu, load_model

BOX = Box(
    max_tokens=16_384,
    max_logits=1024,
    max_decodes=512,
    max_context_tokens=500_000,
    max_attention_pairs=100_000_000,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A profile of known coefficients for Llama-3-8B on an H200."""
    folder = tmp_path_factory.mktemp("profile")
    CostFile(
        format="cbsim-cost/1",
        gpu="h200",
        device="a made-up device",
        model=model_shape(load_model("llama-3-8b")),
        tensor_parallel=1,
        form=make_form(fused=False),
        box=BOX,
        assumptions=["mixed steps were not measured"],
        points_sha256="0" * 64,
    ).save(folder / "cost.json")
    return folder


def make(folder, model="llama-3-8b", gpu="h200", tensor_parallel=1, **config) -> ProfileCost:
    return ProfileCost(
        ProfileConfig(type="profile", profile=str(folder), **config),
        load_model(model),
        load_gpu(gpu),
        tensor_parallel,
    )


DECODE = StepShape((), 0, 64, 128_000, 4000)
MIXED = StepShape(((512, 1000), (16, 0)), 1, 64, 128_000, 4000)


@pytest.mark.parametrize("shape", [DECODE, MIXED])
def test_host_time_by_hand(folder, shape):
    gpu_s = make(folder, host="none").step_s(shape)
    requests = shape.num_requests
    host = {"host_step_s": 1e-3, "host_request_s": 1e-5}
    assert make(folder, host="sync", **host).step_s(shape) == gpu_s + (1e-3 + 1e-5 * requests)
    hidden = make(folder, host="async", host_gap_s=2e-4, **host)
    assert hidden.step_s(shape) == gpu_s + 2e-4
    bound = make(folder, host="async", host_step_s=0.5, host_request_s=1e-2, host_gap_s=2e-4)
    assert bound.step_s(shape) == (0.5 + 1e-2 * requests) + 2e-4


def test_graphs_pad_decodes_only(folder):
    """17 decodes run the graph of 24; with a chunk, with 600 decodes or without graphs nothing is padded."""
    graphs = make(folder, host="none", cuda_graph_batch_sizes=[16, 24, 512])
    none = make(folder, host="none", cuda_graph_batch_sizes=[])
    form = make_form(fused=False)

    def dense(tokens):
        return 32 * float(form.dense.at(np.array([tokens]))[0])

    added = graphs.decode_s(17, 17_000, 1000) - none.decode_s(17, 17_000, 1000)
    assert added == pytest.approx(dense(24) - dense(17), rel=1e-9)
    assert graphs.decode_s(600, 600_000, 1000) == none.decode_s(600, 600_000, 1000)
    assert graphs.step_s(MIXED) == none.step_s(MIXED)


def test_vllm_graph_sizes():
    """1, 2, 4, then every 8 up to 256, then every 16 up to 512."""
    assert VLLM_GRAPH_BATCH_SIZES[:6] == [1, 2, 4, 8, 16, 24]
    assert VLLM_GRAPH_BATCH_SIZES[-18:-15] == [248, 256, 272]
    assert VLLM_GRAPH_BATCH_SIZES[-2:] == [496, 512]
    assert len(VLLM_GRAPH_BATCH_SIZES) == 3 + 32 + 16


@settings(max_examples=80, deadline=None)
@given(shape=shapes(), host=st.sampled_from(["async", "sync", "none"]))
def test_all_ways_to_the_same_bits(folder, shape, host):
    cost = make(folder, host=host)
    seconds = cost.step_s(shape)
    assert cost.steps_s(StepColumns.from_shapes([shape]))[0] == seconds
    if not shape.chunks:
        arguments = shape.num_decodes, shape.decode_context, shape.max_decode_context
        assert cost.decode_s(*arguments) == seconds


@pytest.mark.parametrize(
    ("shape", "outside"),
    [
        (MIXED, False),
        (StepShape(((16_384, 0),), 0, 0, 0, 0), True),  # 134 M pairs
        (StepShape(((8192, 0),), 0, 0, 0, 0), False),
        (StepShape(((8192, 0), (8193, 0)), 0, 0, 0, 0), True),
        (StepShape((), 0, 513, 513, 1), True),
        (StepShape((), 0, 2, 500_001, 500_000), True),
        (StepShape(((1, 499_999),), 1, 0, 0, 0), False),
        (StepShape(((1, 499_999),), 1, 1, 1, 1), True),
    ],
)
def test_steps_outside_are_told(folder, shape, outside):
    cost = make(folder)
    keys = pairs = shape.decode_context
    for tokens, context in shape.chunks:
        keys += tokens + context
        pairs += tokens * context + tokens * (tokens + 1) // 2
    steps = {
        "num_prefill_tokens": np.array([sum(tokens for tokens, _ in shape.chunks)]),
        "num_decode_tokens": np.array([shape.num_decodes]),
        "num_logits": np.array([shape.num_logits]),
        "num_context_tokens": np.array([keys]),
        "num_attention_pairs": np.array([pairs]),
    }
    assert len(cost.notes(steps)) == 1 + outside
    if outside:
        assert "1 of 1 steps lay outside the calibrated range" in cost.notes(steps)[1]


def test_notes_and_inputs(folder):
    cost = make(folder)
    assert cost.notes() == [f"profile {folder}: mixed steps were not measured"]
    assert cost.inputs() == [folder / "cost.json"]


def test_the_shipped_default_by_name():
    cost = COST_MODELS.get("profile")(
        ProfileConfig(type="profile", profile="h200/llama-3-8b"), load_model("llama-3-8b"), load_gpu("h200")
    )
    # Weights alone take 16.06 GB / 4.8 TB/s = 3.3 ms; half as much again covers everything else.
    assert 3.3e-3 < cost.decode_s(1, 1000, 1000) < 6e-3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "qwen3-8b"}, "num_layers 32, not 36"),
        ({"gpu": "h100"}, "gpu h200, not h100"),
        ({"tensor_parallel": 2}, "tensor_parallel 1, not 2"),
    ],
)
def test_a_profile_of_something_else_is_refused(folder, changed, message):
    with pytest.raises(ConfigError, match=message):
        make(folder, **changed)


def test_a_wrong_name_is_told_with_the_nearest():
    with pytest.raises(CalibrationError, match="no profile 'h200/llama-3-8'; did you mean 'h200/llama-3-8b'"):
        make("h200/llama-3-8")


@pytest.mark.parametrize("sizes", [[8, 4], [4, 4], [0, 1]])
def test_graph_sizes_must_rise(folder, sizes):
    with pytest.raises(ValidationError, match="positive and rise"):
        make(folder, cuda_graph_batch_sizes=sizes)


def edited(content: dict, keys: str, value) -> str:
    *parents, last = keys.split(".")
    place = content
    for key in parents:
        place = place[key]
    place[last] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("format", "other/3", "format: Input should be 'cbsim-cost/1', got 'other/3'"),
        (
            "form.decode.per_token_s",
            -1e-9,
            "form.decode.per_token_s: .*greater than or equal to 0, got -1e-09",
        ),
        ("form.decode.softness", 4.5, "form.decode.softness: .*less than or equal to 4, got 4.5"),
        ("form.dense.seconds", [1.0], "form.dense: [0-9]+ tokens for 1 seconds"),
        (
            "form.prefill.lengths",
            {"tokens": [64, 128], "more_s": [1.0, 0.0]},
            "form.prefill: a chunk must not take less for more tokens",
        ),
        ("form.surprise", 1, "form.surprise: Extra inputs are not permitted"),
        ("model", {"name": "x"}, "model lacks num_layers, hidden_size"),
        ("box.max_tokens", 0, "box.max_tokens: .*greater than or equal to 1"),
    ],
)
def test_a_foreign_file_is_refused(folder, tmp_path, keys, value, message):
    content = json.loads((folder / "cost.json").read_text())
    path = tmp_path / "cost.json"
    path.write_text(edited(content, keys, value))
    with pytest.raises(CalibrationError, match=message):
        read_cost_file(path)


def test_mistakes_are_told_all_at_once(folder, tmp_path):
    content = json.loads((folder / "cost.json").read_text())
    content["tensor_parallel"] = 0
    content["form"]["num_layers"] = "many"
    (tmp_path / "cost.json").write_text(json.dumps(content))
    with pytest.raises(CalibrationError) as caught:
        read_cost_file(tmp_path / "cost.json")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2]"])
def test_a_corrupt_file_is_one_line(tmp_path, content):
    path = tmp_path / "cost.json"
    path.write_bytes(content)
    with pytest.raises(CalibrationError) as caught:
        read_cost_file(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: ")


def test_a_file_is_saved_whole_and_read_back(folder):
    cost_file = read_cost_file(folder / "cost.json")
    assert cost_file.form == make_form(fused=False)
    assert [path.name for path in folder.iterdir()] == ["cost.json"]
