"""RooflineCost: by hand from the data sheet, monotone in everything, one number for a decode step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.cost.cost_model import StepShape
from cbsim.cost.roofline import RooflineConfig, RooflineCost
from cbsim.specs import ParallelSpec
from tests.specs.test_specs import load_gpu, load_model


def make(model="llama-3-8b", gpu="h200", tensor_parallel=1, **config) -> RooflineCost:
    return RooflineCost(
        RooflineConfig(type="roofline", **config), load_model(model), load_gpu(gpu), tensor_parallel
    )


def decodes(num_decodes: int, context: int) -> StepShape:
    return StepShape((), 0, num_decodes, num_decodes * context, context)


def test_one_decode_moves_weights_and_kv():
    """Memory-bound: layer and LM head weights plus KV over 4.8 TB/s, activations being under 1 %."""
    cost = make(memory_efficiency=1.0, compute_efficiency=1.0)
    weights = (32 * 218_103_808 + 4096 * 128_256) * 2
    seconds = (weights + 4096 * 131_072) / 4.8e12
    assert seconds < cost.decode_s(1, 4096, 4096) < seconds * 1.01


def test_a_long_prompt_is_bound_by_compute():
    """8192 tokens: 2 FLOP a weight and token and 4 a head element and causal pair, at 989.4 TFLOP/s."""
    cost = make(memory_efficiency=1.0, compute_efficiency=1.0)
    dense = 8192 * 2 * 32 * 218_103_808
    attention = 4 * 32 * 32 * 128 * 8192 * 8193 // 2
    logits_s = 4096 * 128_256 * 2 / 4.8e12
    seconds = (dense + attention) / 989.4e12 + logits_s
    assert cost.step_s(StepShape(((8192, 0),), 1, 0, 0, 0)) == pytest.approx(seconds, rel=2e-3)


def test_logits_cost_only_where_a_token_is_sampled():
    cost = make()
    unfinished = cost.step_s(StepShape(((512, 0),), 0, 0, 0, 0))
    finished = cost.step_s(StepShape(((512, 0),), 1, 0, 0, 0))
    head_s = 4096 * 128_256 * 2 / (4.8e12 * cost.config.memory_efficiency)
    assert finished - unfinished == pytest.approx(head_s, rel=0.01)


def test_efficiencies_scale_their_side():
    half_memory = make(memory_efficiency=0.4)
    assert half_memory.decode_s(1, 1000, 1000) == pytest.approx(
        2 * make(memory_efficiency=0.8).decode_s(1, 1000, 1000)
    )


def test_host_time_by_hand():
    bare = make().step_s(StepShape(((10, 0),), 1, 3, 30, 10))
    with_host = make(host_step_s=1e-3, host_request_s=1e-5).step_s(StepShape(((10, 0),), 1, 3, 30, 10))
    assert with_host - bare == pytest.approx(1e-3 + 4e-5)


def test_tensor_parallel_by_hand():
    """Four GPUs hold a quarter each; 161 all-reduces move 2 x 3/4 of the hidden states at 356 GB/s."""
    config = {"memory_efficiency": 1.0, "compute_efficiency": 1.0, "all_reduce_latency_s": 0.0}
    cost = make("llama-3-70b", tensor_parallel=4, **config)
    dense_s = 4096 * cost.model.dense_flop_per_token / 4 / 989.4e12
    attention_s = 4 * 80 * 64 * 128 * (4096 * 4097 // 2) / 4 / 989.4e12
    link_s = 161 * 4096 * 8192 * 2 * 1.5 / 356e9
    total = cost.step_s(StepShape(((4096, 0),), 0, 0, 0, 0))
    assert total == pytest.approx(dense_s + attention_s + link_s, rel=1e-6)
    latency = make("llama-3-70b", tensor_parallel=4, **config | {"all_reduce_latency_s": 1e-5})
    assert latency.step_s(StepShape(((4096, 0),), 0, 0, 0, 0)) - total == pytest.approx(161e-5)


def test_kv_heads_are_copied_beyond_their_number():
    """With 16 GPUs and 8 KV heads each GPU still holds one whole KV head."""
    config = {"all_reduce_latency_s": 0.0}

    def kv_s(gpus):
        cost = make("llama-3-70b", tensor_parallel=gpus, **config)
        return cost.decode_s(8, 800_000, 100_000) - cost.decode_s(8, 8, 1)

    assert kv_s(16) == pytest.approx(kv_s(8), rel=1e-9)


chunk = st.tuples(st.integers(1, 8192), st.integers(0, 131_072))
shapes = st.builds(
    lambda chunks, finishing, contexts: StepShape(
        tuple(chunks), min(finishing, len(chunks)), len(contexts), sum(contexts), max(contexts, default=0)
    ),
    st.lists(chunk, max_size=4),
    st.integers(0, 4),
    st.lists(st.integers(1, 131_072), max_size=20),
).filter(lambda shape: shape.num_tokens > 0)


@settings(max_examples=150, deadline=None)
@given(shape=shapes, more=st.integers(1, 5000), gpus=st.sampled_from([1, 2, 4, 8]))
def test_monotone_in_everything(shape, more, gpus):
    cost = make(tensor_parallel=gpus, host_request_s=1e-6)
    seconds = cost.step_s(shape)
    assert 0 < seconds < float("inf")
    larger = [
        shape._replace(chunks=(*shape.chunks, (more, more))),
        shape._replace(num_finishing_chunks=shape.num_finishing_chunks + 1),
        shape._replace(
            num_decodes=shape.num_decodes + 1,
            decode_context=shape.decode_context + more,
            max_decode_context=max(shape.max_decode_context, more),
        ),
    ]
    if shape.num_decodes:
        larger.append(shape._replace(decode_context=shape.decode_context + more))
    if shape.chunks:
        (tokens, context), *rest = shape.chunks
        larger.append(shape._replace(chunks=((tokens + more, context), *rest)))
        larger.append(shape._replace(chunks=((tokens, context + more), *rest)))
    for other in larger:
        assert cost.step_s(other) >= seconds


@settings(max_examples=150, deadline=None)
@given(num_decodes=st.integers(1, 2000), context=st.integers(1, 200_000), gpus=st.sampled_from([1, 4]))
def test_decode_s_is_step_s_to_the_bit(num_decodes, context, gpus):
    cost = make(tensor_parallel=gpus, host_step_s=1e-4, host_request_s=3e-6)
    shape = decodes(num_decodes, context)
    assert cost.decode_s(num_decodes, shape.decode_context, context) == cost.step_s(shape)


@pytest.mark.parametrize(
    ("parallel", "told"),
    [
        ({"tensor": 4, "pipeline": 2}, "collectives of 4 GPUs and hand-overs between 2 pipeline stages are"),
        ({"pipeline": 2}, "hand-overs between 2 pipeline stages are"),
        ({"data": 2}, None),
    ],
)
def test_the_note_names_the_gpus_that_exchange_data(parallel, told):
    model, gpu = load_model("llama-3-8b"), load_gpu("h200")
    _, *note = RooflineCost(RooflineConfig(type="roofline"), model, gpu, ParallelSpec(**parallel)).notes()
    assert [each.partition(" estimated by a link")[0] for each in note] == ([told] if told else [])
