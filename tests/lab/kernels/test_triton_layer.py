"""The fused kernels of a layer against float64: by Triton's interpreter, or on a GPU."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from cbsim.lab.kernels import triton_layer
from cbsim.lab.kernels.attention_backends import LayerCache, make_backend
from cbsim.lab.kernels.decoder import Decoder, SequenceSlice, StepBatch
from cbsim.lab.kernels.layer_ops import LayerOps
from cbsim.lab.kernels.quantised import FP8, Fp8Matrix, quantise_rows
from cbsim.lab.kernels.shard import Shard
from cbsim.lab.kernels.triton_layer import FusedOps
from tests.lab.kernels.references import attention_shard, load_model, naive_logits

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 2e-5}

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")


def random(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def representable(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> torch.Tensor:
    """Numbers that FP8 has, the largest of it in each row: Triton's interpreter rounds others wrongly, losing
    the carry of a mantissa that rounds up to a power of two.
    """
    values = random(*shape, dtype=torch.float32, seed=seed).to(FP8).float()
    values[..., 0] = 448.0
    return values.to(dtype)


def assert_near(got: torch.Tensor, wanted: torch.Tensor) -> None:
    tolerance = TOLERANCE[got.dtype]
    torch.testing.assert_close(got.double().cpu(), wanted.double().cpu(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [64, 96, 1000])
@pytest.mark.parametrize("has_delta", [False, True])
def test_residual_and_norm(size: int, dtype: torch.dtype, has_delta: bool) -> None:
    hidden, delta = (random(5, size, dtype=dtype, seed=seed) for seed in (1, 2))
    weight = random(size, dtype=dtype, seed=3)
    added, normed = FusedOps().add_norm(hidden, delta if has_delta else None, weight, 1e-5)
    wanted = (hidden + delta if has_delta else hidden).double()
    assert_near(added, wanted)
    scale = (wanted.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    assert_near(normed, wanted * scale * weight.double())


@pytest.mark.parametrize(("heads", "head_size"), [((4, 2), 32), ((6, 1), 80), ((5, 5), 64)])
@pytest.mark.parametrize("has_norm", [False, True])
def test_rotary_positions(heads: tuple[int, int], head_size: int, has_norm: bool) -> None:
    """Pairs of elements half a head apart are complex numbers, turned by the position."""
    num_tokens, half, split = 4, head_size // 2, sum(heads)
    projected = random(num_tokens, split + heads[1], head_size, dtype=torch.float32)
    positions = torch.tensor([0, 3, 17, 40], device=DEVICE)
    angle = torch.arange(50, device=DEVICE)[:, None] * 10000.0 ** (-torch.arange(half, device=DEVICE) / half)
    norms = (random(head_size, dtype=torch.float32, seed=1), random(head_size, dtype=torch.float32, seed=2))
    query, keys = FusedOps().rotate(
        projected, positions, angle.cos(), angle.sin(), *heads, norms if has_norm else None, 1e-5
    )
    wanted = projected[:, :split].double()
    if has_norm:
        weights = torch.stack([norms[0]] * heads[0] + [norms[1]] * heads[1]).double()
        wanted = wanted * (wanted.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weights
    turn = torch.polar(torch.ones((), dtype=torch.float64, device=DEVICE), angle[positions].double())[:, None]
    turned = torch.complex(wanted[..., :half], wanted[..., half:]) * turn
    wanted = torch.cat((turned.real, turned.imag), -1)
    assert_near(query, wanted[:, : heads[0]])
    assert_near(keys, wanted[:, heads[0] :])


@pytest.mark.parametrize("kv_dtype", [None, "fp8"])
def test_keys_and_values_into_their_slots(kv_dtype: str | None) -> None:
    """Values are a slice of a wider tensor; nothing else in the cache changes."""
    shard = attention_shard(6, 3, 20, "float16", kv_dtype)
    cache, other = (LayerCache.allocate(shard, 4, 8, DEVICE) for _ in range(2))
    keys, values = representable(5, 3, 20), representable(5, 9, 20, seed=1)[:, 6:]
    slots = torch.tensor([9, 8, 31, 0, 17], device=DEVICE)
    FusedOps().write(cache, keys, values, slots)
    LayerOps().write(other, keys, values, slots)
    for got, wanted in ((cache.keys, other.keys), (cache.values, other.values)):
        assert torch.equal(got.float(), wanted.float())


@pytest.mark.parametrize("size", [48, 1024, 1500])
def test_the_activation(size: int) -> None:
    gate_up = random(3, 2 * size)
    gate, up = gate_up.double().chunk(2, -1)
    assert_near(FusedOps().gated(gate_up), gate * torch.sigmoid(gate) * up)


@pytest.mark.parametrize("size", [48, 2500])
def test_rows_in_fp8(size: int) -> None:
    """Each row's scale makes its largest element the largest of FP8."""
    by = torch.tensor([[0.0], [2.0**-9], [1.0], [64.0]], device=DEVICE)
    rows = representable(4, size, dtype=torch.bfloat16) * by.bfloat16()
    got, scales = triton_layer.quantise_rows(rows)
    wanted, wanted_scales = quantise_rows(rows)
    assert torch.equal(scales[1:], by[1:])
    assert torch.equal(scales, wanted_scales)
    assert torch.equal(got.float(), wanted.float())
    assert torch.equal(got.float() * scales, rows.float())


@pytest.mark.skipif(DEVICE.type == "cpu", reason="Triton's interpreter rounds wrongly to FP8")
def test_rows_of_any_numbers_in_fp8() -> None:
    rows = random(64, 2500, dtype=torch.bfloat16)
    got, scales = triton_layer.quantise_rows(rows)
    wanted, wanted_scales = quantise_rows(rows)
    torch.testing.assert_close(scales, wanted_scales, atol=0, rtol=1e-6)
    assert (got.float() == wanted.float()).float().mean() > 0.99
    torch.testing.assert_close(got.float(), wanted.float(), atol=0, rtol=0.13)


def test_products_of_both_kinds() -> None:
    rows, matrix = representable(3, 32, dtype=torch.bfloat16), random(16, 32, dtype=torch.bfloat16, seed=1)
    for weights in (matrix, Fp8Matrix.of(matrix)):
        assert torch.equal(FusedOps().product(rows, weights), LayerOps().product(rows, weights))


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "num_chosen", "is_even"),
    [(1, 4, 1, False), (9, 6, 3, False), (9, 8, 2, True)],
)
def test_tokens_to_their_experts_and_back(
    num_tokens: int, num_experts: int, num_chosen: int, is_even: bool
) -> None:
    """Each group holds the rows of its expert, in whatever order, and nothing else."""
    hidden, logits = random(num_tokens, 40), random(num_tokens, num_experts, seed=1)
    found = [ops.dispatch(hidden, logits, num_chosen, is_even=is_even) for ops in (FusedOps(), LayerOps())]
    (rows, ends, places, shares), (_, wanted_ends, wanted_places, wanted_shares) = found
    assert torch.equal(ends, wanted_ends)
    assert ends.dtype == torch.int32
    assert_near(shares, wanted_shares)
    group, wanted_group = (torch.searchsorted(ends, each, right=True) for each in (places, wanted_places))
    assert torch.equal(group, wanted_group)
    assert sorted(places.flatten().tolist()) == list(range(num_tokens * num_chosen))
    assert torch.equal(rows[places], hidden[:, None].expand(-1, num_chosen, -1))
    computed = random(*rows.shape, seed=2)
    got = FusedOps().collect(computed, places, shares)
    assert_near(got, (computed[places].double() * shares.double()[..., None]).sum(1))
    assert_near(LayerOps().collect(computed, places, shares), got)


@pytest.mark.parametrize("changes", [{"qk_norm": True}, {"name": "tiny-experts"}], ids=str)
def test_a_whole_step_of_fused_kernels(changes: dict[str, object]) -> None:
    """A chunk over context beside a decode, as dense attention in float64 has them."""
    shard = Shard(load_model(**{"name": "tiny", **changes}))
    backend = make_backend("sdpa", shard, DEVICE)
    decoder = Decoder(shard, backend, DEVICE, max_positions=64, seed=3, ops=FusedOps())
    caches = [LayerCache.allocate(shard, 12, 8, DEVICE) for _ in decoder.layers]
    tokens = torch.randint(512, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    steps = (
        [SequenceSlice(tokens[:8], 0, [7, 2, 9], False), SequenceSlice(tokens[4:16], 0, [1, 0], False)],
        [SequenceSlice(tokens[8:], 8, [7, 2, 9], True), SequenceSlice(tokens[16:17], 12, [1, 0], True)],
    )
    with torch.inference_mode():
        for slices in steps:
            batch = StepBatch.build(slices, 8, DEVICE)
            logits = decoder.logits(batch, caches)
    got = dict(zip(batch.emitting, logits.double(), strict=True))
    torch.testing.assert_close(got[0], naive_logits(decoder, tokens)[-1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[1], naive_logits(decoder, tokens[4:17])[-1], atol=1e-4, rtol=1e-4)
