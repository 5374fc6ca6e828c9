"""The decoder: a ragged step over paged blocks against one sequence at a time, dense and in float64."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from cbsim.base.errors import CalibrationError, PluginError
from cbsim.lab.kernels.attention_backends import DecodeBatch, LayerCache, SdpaBackend, make_backend
from cbsim.lab.kernels.decoder import Decoder, SequenceSlice, StepBatch
from cbsim.lab.kernels.feed_forward import Experts, Maker
from cbsim.lab.kernels.layer_ops import LayerOps
from cbsim.lab.kernels.quantised import Fp8Matrix, plain_product, quantise_rows
from cbsim.lab.kernels.shard import Shard
from tests.lab.kernels.references import exact, load_model, naive_logits

CPU = torch.device("cpu")
MLA = {"kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32}
EXPERTS = {"num_experts": 4, "num_experts_per_token": 2, "intermediate_size": 64}
BLOCK_SIZE = 8


def make_decoder(name: str = "tiny", **changes: object) -> tuple[Decoder, list[LayerCache]]:
    shard = Shard(load_model(name, **changes))
    decoder = Decoder(shard, make_backend(None, shard, CPU), CPU, max_positions=256, seed=3)
    caches = [LayerCache.allocate(shard, 40, BLOCK_SIZE, CPU) for _ in decoder.layers]
    return decoder, caches


def compute(decoder: Decoder, caches: list[LayerCache], *slices: SequenceSlice) -> dict[int, torch.Tensor]:
    """Logits by the slice that emits them."""
    batch = StepBatch.build(slices, BLOCK_SIZE, CPU)
    with torch.inference_mode():
        logits = decoder.logits(batch, caches)
    return dict(zip(batch.emitting, logits, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": True},
        {"tie_embeddings": True},
        {"num_kv_heads": 4},
        {"rope_theta": 500000.0},
        {"name": "tiny-experts"},
        {"name": "tiny-sliding", "sliding_window": 7},
    ],
    ids=str,
)
def test_ragged_steps_over_paged_blocks_are_dense_attention(changes: dict[str, object]) -> None:
    decoder, caches = make_decoder(**changes)
    first = torch.randint(512, (30,), generator=torch.Generator().manual_seed(1)).tolist()
    second = torch.randint(512, (21,), generator=torch.Generator().manual_seed(2)).tolist()
    blocks = [[9, 3, 17, 30], [4, 39, 0]]
    compute(decoder, caches, SequenceSlice(first[:11], 0, blocks[0], False))
    # One step: a chunk over context, and another sequence's whole prompt.
    got = compute(
        decoder,
        caches,
        SequenceSlice(first[11:29], 11, blocks[0], True),
        SequenceSlice(second[:20], 0, blocks[1], True),
    )
    wanted = naive_logits(decoder, first), naive_logits(decoder, second)
    torch.testing.assert_close(got[0].double(), wanted[0][28], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[1].double(), wanted[1][19], atol=1e-4, rtol=1e-4)
    # The next step: both decode; the order of the slices is free.
    got = compute(
        decoder,
        caches,
        SequenceSlice(second[20:], 20, blocks[1], True),
        SequenceSlice(first[29:], 29, blocks[0], True),
    )
    torch.testing.assert_close(got[0].double(), wanted[1][20], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[1].double(), wanted[0][29], atol=1e-4, rtol=1e-4)


def test_a_step_of_a_chunk_and_a_decode() -> None:
    decoder, caches = make_decoder()
    tokens = list(range(40))
    compute(decoder, caches, SequenceSlice(tokens[:12], 0, [5, 6], False))
    got = compute(
        decoder,
        caches,
        SequenceSlice(tokens[20:30], 0, [7, 8], True),
        SequenceSlice(tokens[12:13], 12, [5, 6], True),
    )
    torch.testing.assert_close(
        got[0].double(), naive_logits(decoder, tokens[20:30])[-1], atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(got[1].double(), naive_logits(decoder, tokens[:13])[-1], atol=1e-4, rtol=1e-4)


def test_equal_seeds_give_equal_weights() -> None:
    (one, _), (other, _) = make_decoder(), make_decoder()
    assert torch.equal(one.layers[1].mlp.down, other.layers[1].mlp.down)
    assert not torch.equal(one.layers[0].mlp.down, one.layers[1].mlp.down)


def test_two_shards_sum_to_the_whole() -> None:
    """Half the heads and half the MLP each: what the all-reduce would add up."""
    whole, half = Shard(load_model("tiny")), Shard(load_model("tiny"), 2)
    assert (half.num_heads, half.num_kv_heads, half.intermediate_size, half.vocab_size) == (2, 1, 128, 256)
    embedding_bytes = 4 * 512 * 128
    assert 2 * (half.weight_bytes - embedding_bytes) == whole.weight_bytes - embedding_bytes
    assert Shard(load_model("tiny"), 4).num_kv_heads == 1


def test_products_in_fp8() -> None:
    """Rows and weights over scales of their own; what is multiplied is what they round to."""
    rows = torch.randn(7, 64, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 7)[:, None]
    matrix = Fp8Matrix.of(torch.randn(48, 64, generator=torch.Generator().manual_seed(2)))
    rounded, scale = quantise_rows(rows)
    assert rounded.float().abs().amax(-1).tolist() == [448.0] * 7
    torch.testing.assert_close(rounded.float() * scale, rows, atol=0, rtol=0.07)
    wanted = (rounded.double() * scale) @ exact(matrix).T
    # torch gives bfloat16.
    torch.testing.assert_close(plain_product(rows, matrix).double(), wanted, atol=0.02, rtol=0.01)
    zeros = quantise_rows(torch.zeros(2, 16))
    assert not torch.isnan(zeros[0].float()).any()


def test_a_model_with_weights_and_kv_cache_in_fp8() -> None:
    """Four roundings a layer to 3 bits of mantissa leave the direction of the logits."""
    decoder, caches = make_decoder(weight_dtype="fp8", kv_dtype="fp8")
    assert caches[0].keys.dtype == torch.float8_e4m3fn
    assert isinstance(decoder.layers[0].qkv, Fp8Matrix)
    tokens = torch.randint(512, (30,), generator=torch.Generator().manual_seed(1)).tolist()
    compute(decoder, caches, SequenceSlice(tokens[:20], 0, [9, 3, 17, 30], False))
    got = compute(decoder, caches, SequenceSlice(tokens[20:], 20, [9, 3, 17, 30], True))[0].double()
    wanted = naive_logits(decoder, tokens)[-1]
    assert torch.nn.functional.cosine_similarity(got, wanted, dim=0) > 0.99
    assert decoder.shard.layer_kv_token_bytes == 2 * 2 * 32


@pytest.mark.parametrize(
    "changes",
    [{}, {"name": "tiny-experts"}, {"name": "tiny-sliding"}, {"weight_dtype": "fp8", "num_kv_heads": 4}],
    ids=str,
)
def test_the_bytes_of_all_matrices(changes: dict[str, object]) -> None:
    decoder, _ = make_decoder(**changes)
    parts = [decoder, decoder.head, *decoder.layers]
    parts += [part for layer in decoder.layers for part in (layer.mlp, layer.experts) if part is not None]
    held = [value for part in parts for value in vars(part).values()]
    held = [value.weight if isinstance(value, Fp8Matrix) else value for value in held]
    tensors = [value for value in held if isinstance(value, torch.Tensor)]
    matrices = [tensor for tensor in tensors if tensor.ndim > 1]
    assert decoder.shard.weight_bytes == sum(tensor.nbytes for tensor in matrices)
    norms = sum(tensor.numel() for tensor in tensors if tensor.ndim == 1)
    assert decoder.shard.model.num_parameters == norms + sum(tensor.numel() for tensor in matrices)


def test_which_layers_slide_and_which_have_experts() -> None:
    """As Gemma 2 and 3 publish it, and GLM-4.5."""
    shards = [Shard(load_model(name)) for name in ("gemma-2-9b", "gemma-3-12b", "mistral-7b")]
    gemma_2, gemma_3, mistral = ([shard.window_of(number) for number in range(12)] for shard in shards)
    assert gemma_2 == [4096, 0] * 6
    assert gemma_3 == [1024, 1024, 1024, 1024, 1024, 0] * 2
    assert mistral == [0] * 12
    shard = Shard(load_model("glm-4.5-air"))
    assert [shard.has_experts(number) for number in range(4)] == [False, True, True, True]
    assert sum(map(shard.has_experts, range(shard.model.num_layers))) == shard.model.num_expert_layers


def test_tokens_dealt_out_evenly() -> None:
    shard = Shard(load_model("tiny-experts"))
    experts = Experts(Maker(shard, CPU, torch.Generator().manual_seed(1), LayerOps()), is_even=True)
    experts.down = torch.eye(128, 64).expand(8, -1, -1).contiguous()
    experts.gate_up = torch.zeros_like(experts.gate_up)
    experts.gate_up[:, 64:, 0] = torch.arange(1.0, 9.0)[:, None]
    experts.gate_up[:, :64, 1] = 50.0
    hidden = torch.zeros(4, 128)
    hidden[:, :2] = 1.0
    out = experts(hidden)[:, 0] / 50.0
    # Tokens 0 to 3 go to experts 1 and 2, 3 and 4, 5 and 6, 7 and 8, by shares between 0 and 1.
    assert [int(value) for value in out] == [1, 3, 5, 7]


@pytest.mark.parametrize(
    ("changes", "tensor_parallel", "message"),
    [
        ({}, 3, "model tiny: num_heads 4 can't be split over 3 GPUs"),
        ({"dtype": "fp8"}, 1, "there are no fp8 kernels; allowed: float32, bfloat16, float16"),
        ({"head_size": 33}, 1, "head_size 33 is odd"),
        (
            {"experts": {"num_experts": 4, "num_experts_per_token": 2, "intermediate_size": 63}},
            1,
            "model tiny: experts.intermediate_size 63 isn't a multiple of 16 bytes",
        ),
        (
            {"experts": {"num_experts": 4, "num_experts_per_token": 2, "intermediate_size": 65}},
            2,
            "model tiny: experts.intermediate_size 65 can't be split over 2 GPUs",
        ),
        ({"attention_layers": [{"num_layers": 2, "head_size": 64}]}, 1, "layers whose heads differ"),
        ({"mla": MLA}, 1, "there are no kernels for latent attention (mla)"),
        ({"weight_dtype": "int4"}, 1, "there are no kernels for attention weights of int4"),
        ({"weight_dtype": "fp8_block"}, 1, "there are no kernels for mlp weights of fp8_block"),
        ({"weight_dtype": "fp8", "intermediate_size": 250}, 1, "a width of 250 isn't a multiple of 16"),
        (
            {"weight_dtype": "fp8", "experts": EXPERTS},
            1,
            "there are no kernels for experts weights of fp8",
        ),
    ],
)
def test_models_that_the_kernels_cant_run(
    changes: dict[str, object], tensor_parallel: int, message: str
) -> None:
    with pytest.raises(CalibrationError, match="model tiny") as caught:
        Shard(load_model("tiny", **changes), tensor_parallel)
    assert message in str(caught.value)


class CountingBackend(SdpaBackend):
    """A third party's backend: it needs only the two methods."""

    num_calls = 0

    def decode(self, query: torch.Tensor, cache: LayerCache, batch: DecodeBatch) -> torch.Tensor:
        type(self).num_calls += 1
        return super().decode(query, cache, batch)


def test_a_backend_of_ones_own() -> None:
    shard = Shard(load_model("tiny"))
    backend = make_backend("tests.lab.kernels.test_decoder:CountingBackend", shard, CPU)
    decoder = Decoder(shard, backend, CPU, max_positions=64, seed=3)
    caches = [LayerCache.allocate(shard, 4, BLOCK_SIZE, CPU) for _ in decoder.layers]
    compute(decoder, caches, SequenceSlice([5], 0, [2], True))
    assert type(backend).__name__ == "CountingBackend"
    assert backend.num_calls == 2  # type: ignore[attr-defined]


def test_an_unknown_backend() -> None:
    with pytest.raises(PluginError, match="unknown attention backend 'tritn'; did you mean 'triton'"):
        make_backend("tritn", Shard(load_model("tiny")), CPU)
