"""The decode kernel compiles for Hopper and Ampere, without a GPU, to tensor-core instructions."""

from __future__ import annotations

import os
import warnings

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("an interpreted kernel can't be compiled", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cbsim.kernels import triton_decode

POINTERS = ("query", "keys", "values", "out")
INDICES = ("block_tables", "context_lens")
PARTIALS = ("partials", "log_sums")


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "head_size"), [("bf16", 128), ("fp16", 64)])
def test_it_compiles_to_tensor_core_instructions(
    dtype: str, head_size: int, capability: int, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = triton_decode._partial_kernel
    constants = {
        "NUM_HEADS": 32,
        "GROUP": 4,
        "ROWS": 16,
        "HEAD_SIZE": head_size,
        "PADDED_SIZE": head_size,
        "BLOCK_SIZE": 16,
        "TILE": 64,
        "IS_WHOLE": False,
        "NUM_STAGES": 3,
        "WIDEN": False,
    }
    kinds = dict.fromkeys(POINTERS, f"*{dtype}") | dict.fromkeys(INDICES, "*i32")
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
        compiled = triton.compile(
            ASTSource(kernel, signature, constants, attributes), target=GPUTarget("cuda", capability, 32)
        )
    assert "mma.sync" in compiled.asm["ptx"]
    assert "cp.async" in compiled.asm["ptx"]
    assert compiled.metadata.shared <= 99 * 1024
