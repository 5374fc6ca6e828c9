"""The attention kernel compiles for Hopper and Ampere, without a GPU, to tensor-core instructions."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("an interpreted kernel can't be compiled", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cbsim.lab.kernels import triton_attention, triton_experts, triton_layer
from cbsim.lab.kernels.kernel_choice import DecodeTuning
from cbsim.lab.kernels.prefill_kernels import chunk_tile
from tests.lab.kernels.references import attention_shard

POINTERS = ("query", "keys", "values", "out")
INDICES = ("block_tables", "key_lens", "token_starts")
PARTIALS = ("partials", "log_sums")


ELEMENT_TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compile_for(
    capability: int,
    dtype: str,
    head_size: int,
    tuning: DecodeTuning,
    *,
    is_whole: bool = False,
    cache: str | None = None,
    queries: int | None = None,
) -> Any:
    """The kernel of a model with 32 query and 8 KV heads, as a GPU of that capability would run it: for
    chunks, of so many `queries` a program, or for decodes.
    """
    constants = {
        "ARE_CHUNKS": queries is not None,
        "NUM_HEADS": 32,
        "GROUP": 4,
        "QUERIES": queries or 1,
        "ROWS": max(16, 4 * (queries or 1)),
        "HEAD_SIZE": head_size,
        "PADDED_SIZE": triton.next_power_of_2(head_size),
        "BLOCK_SIZE": 16,
        "TILE": tuning.tile,
        "IS_WHOLE": is_whole,
        "NUM_STAGES": tuning.num_stages,
        "CAST": cache is not None,
        "WIDEN": False,
    }
    return compiled(triton_attention._attention_kernel, constants, dtype, cache, capability, tuning.num_warps)


def compiled(
    kernel: Any, constants: dict[str, Any], dtype: str, cache: str | None, capability: int, num_warps: int
) -> Any:
    """A kernel for a GPU of that capability, its tensors and strides aligned as torch aligns them."""
    kinds = dict.fromkeys(POINTERS, f"*{ELEMENT_TYPES[dtype]}") | dict.fromkeys(INDICES, "*i32")
    if cache is not None:
        kinds |= dict.fromkeys(("keys", "values"), f"*{cache}")
    kinds |= {
        **dict.fromkeys(PARTIALS, "*fp32"),
        **dict.fromkeys(constants, "constexpr"),
        "scale_log2": "fp32",
    }
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    aligned = (*POINTERS, *PARTIALS, "query_stride", "block_stride", "token_stride", "head_stride")
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return triton.compile(
            ASTSource(kernel, signature, constants, attributes),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": num_warps},
        )


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "head_size"), [("bfloat16", 128), ("float16", 64)])
def test_it_compiles_to_tensor_core_instructions(dtype: str, head_size: int, capability: int) -> None:
    compiled = compile_for(capability, dtype, head_size, DecodeTuning())
    assert "mma.sync" in compiled.asm["ptx"]
    assert "cp.async" in compiled.asm["ptx"]
    assert compiled.metadata.shared <= 99 * 1024
    # Two tiles are under way while a third is computed: each waits for the one before the last two copies.
    assert "cp.async.wait_group 2" in " ".join(compiled.asm["ptx"].split()).replace("0x", "")


def test_a_whole_context_compiles_too() -> None:
    compiled = compile_for(90, "bfloat16", 128, DecodeTuning(), is_whole=True)
    assert "mma.sync" in compiled.asm["ptx"]


@pytest.mark.parametrize(
    ("dtype", "head_size", "tuning"),
    [
        ("bfloat16", 128, DecodeTuning()),
        ("bfloat16", 80, DecodeTuning()),
        ("float32", 128, DecodeTuning()),
        ("bfloat16", 128, DecodeTuning(tile=128, num_warps=8, num_stages=5)),
        ("bfloat16", 128, DecodeTuning(num_stages=2)),
    ],
)
def test_shared_memory_is_never_more_than_a_tuning_says(
    dtype: str, head_size: int, tuning: DecodeTuning
) -> None:
    compiled = compile_for(90, dtype, head_size, tuning)
    assert compiled.metadata.shared <= tuning.shared_bytes(attention_shard(32, 8, head_size, dtype))


def test_tiles_are_halved_to_what_a_gpu_has() -> None:
    llama, wide = (attention_shard(32, 8, size, "bfloat16") for size in (128, 256))
    h200, l40s = 227 * 1024, 99 * 1024
    # 3 stages of 64 tokens, 128 elements of 2 bytes, keys and values: 96 KiB.
    assert DecodeTuning().shared_bytes(llama) == 96 * 1024
    assert DecodeTuning().fitting(llama, h200) == DecodeTuning().fitting(llama, l40s) == DecodeTuning()
    assert DecodeTuning().fitting(wide, h200).tile == 64
    assert DecodeTuning().fitting(wide, l40s).tile == 32
    assert DecodeTuning().fitting(wide, 1).tile == 16


def test_chunks_are_pipelined_and_multiplied_by_warp_groups() -> None:
    """What they need of shared memory is what tiles are cut down by."""
    shard, rows = attention_shard(32, 8, 128, "bfloat16"), 128
    made = compile_for(90, "bfloat16", 128, DecodeTuning(num_warps=8), is_whole=True, queries=rows // 4)
    assert "wgmma" in made.asm["ptx"]
    assert "cp.async.wait_group 2" in " ".join(made.asm["ptx"].split()).replace("0x", "")
    assert made.metadata.shared <= (6 * 64 + rows) * 128 * 2
    sizes = {99: 32, 163: 64, 227: 64}
    assert {size: chunk_tile(shard, size * 1024, rows) for size in sizes} == sizes


def test_a_cache_of_8_bits_compiles() -> None:
    tuning = DecodeTuning()
    assert compile_for(90, "bfloat16", 128, tuning, cache="fp8e4nv").metadata.shared < 99 * 1024


FUSED = {
    "_add_norm_kernel": {"SIZE": 4096, "PADDED": 4096, "HAS_DELTA": True},
    "_rotate_kernel": {
        "NUM_HEADS": 32,
        "NUM_KV_HEADS": 8,
        "HEADS_PADDED": 64,
        "HALF": 64,
        "HALF_PADDED": 64,
        "HAS_NORM": True,
    },
    "_write_kernel": {"BLOCK_SIZE": 16, "SIZE": 1024, "PADDED": 1024},
    "_gated_kernel": {"SIZE": 14336, "COLUMNS": 1024},
    "_quantise_kernel": {"SIZE": 4096, "COLUMNS": 1024},
    "_group_kernel": {"NUM_EXPERTS": 128, "PADDED": 128, "NUM_CHOSEN": 8, "SIZE": 2048, "COLUMNS": 1024},
    "_collect_kernel": {"NUM_CHOSEN": 8, "SIZE": 2048, "COLUMNS": 1024},
    "_route_kernel": {
        "NUM_EXPERTS": 128,
        "PADDED": 128,
        "NUM_CHOSEN": 8,
        "CHOSEN_PADDED": 8,
        "IS_EVEN": False,
    },
}
KINDS = {"scales": "*fp32", "eps": "fp32", "largest": "fp32"}
KINDS |= dict.fromkeys(("positions", "slots", "places"), "*i64")
KINDS |= dict.fromkeys(("chosen", "counts", "taken", "ends"), "*i32")


@pytest.mark.parametrize("name", FUSED)
def test_the_fused_kernels_of_a_layer_compile(name: str) -> None:
    """Loads of neighbouring elements are wide: 16 bytes a thread where its share is that long."""
    kernel = getattr(triton_layer if hasattr(triton_layer, name) else triton_experts, name)
    strides = ("token_stride", "key_stride", "value_stride", "block_stride")
    kinds = {arg: "i32" if arg in strides else "*bf16" for arg in kernel.arg_names} | KINDS
    kinds |= dict.fromkeys(FUSED[name], "constexpr")
    if name in ("_write_kernel", "_quantise_kernel"):
        small = ("cached_keys", "cached_values", "out")
        kinds |= {arg: "*fp8e4nv" for arg in small if arg in kernel.arg_names}
    signature = {arg: kinds[arg] for arg in kernel.arg_names}
    aligned = [
        place for place, kind in enumerate(signature.values()) if kind.startswith("*") or kind == "i32"
    ]
    attributes = {(place,): [["tt.divisibility", 16]] for place in aligned}
    made = triton.compile(
        ASTSource(kernel, signature, FUSED[name], attributes),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": 4},
    )
    assert name == "_route_kernel" or "ld.global.v4" in made.asm["ptx"]
