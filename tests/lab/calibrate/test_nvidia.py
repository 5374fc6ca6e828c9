"""The import of NVIDIA's tables, from a small wheel of the same make whose times follow simple rules."""

import io
import zipfile
from dataclasses import replace

import pandas as pd
import pytest
import yaml

from cbsim.base.errors import CalibrationError
from cbsim.lab.calibrate import nvidia_tables
from cbsim.lab.calibrate.engine_kernels import ENGINES, small_kernels
from cbsim.lab.calibrate.nvidia import (
    SAMPLING_KERNELS,
    Wanted,
    collectives_points,
    import_meta,
    import_points,
    system_of,
)
from cbsim.lab.calibrate.nvidia_tables import ExpertsTable, NvidiaTables, Release
from cbsim.specs import ModelSpec, ParallelSpec
from tests.specs.test_specs import load_model

ROWS = (1, 16, 64, 512, 2048, 16_384, 32_768)
WIDTHS = (128, 1024, 4096, 16_384, 65_536)
BYTES_PER_S = 1e12 * 0.8
LAUNCH_S = 3e-6


def gemm_ms(m: int, n: int, k: int) -> float:
    """Bilinear in n and k, as the interpolation is."""
    return 1e-9 * n * k * (1 + m / 1000)


def tables() -> dict[str, pd.DataFrame]:
    gemm = pd.DataFrame(
        [
            {"gemm_dtype": dtype, "m": m, "n": n, "k": k, "latency": factor * gemm_ms(m, n, k)}
            for dtype, factor in (("bfloat16", 1.0), ("fp8", 0.5))
            for m in ROWS
            for n in WIDTHS
            for k in WIDTHS
        ]
    )
    heads = [(32, 8), (8, 2)]
    attention = {
        "head_dim": 128,
        "attn_dtype": "bfloat16",
        "kv_cache_dtype": "bfloat16",
        "window_size": 0,
        "kernel_source": "flash",
    }
    context = pd.DataFrame(
        [
            attention
            | {
                "num_heads": query,
                "num_key_value_heads": kv,
                "batch_size": batch,
                "isl": length,
                "step": 0,
                "latency": 1e-3 * batch * length * query,
            }
            for query, kv in heads
            for batch in (1, 4, 64)
            for length in (1, 16, 1024, 16_384)
        ]
    )
    generation = pd.DataFrame(
        [
            attention
            | {
                "num_heads": query,
                "num_key_value_heads": kv,
                "batch_size": batch,
                "isl": 1,
                "step": step,
                "latency": 1e-2 + 1e-6 * batch * (step + 1),
            }
            for query, kv in heads
            for batch in (1, 64, 2048)
            for step in (1, 15, 1023, 65_535)
        ]
    )
    window = context.assign(window_size=128, latency=9.0)
    fp8_cache = generation.assign(kv_cache_dtype="fp8", latency=9.0)
    fp8 = [
        context.assign(kv_cache_dtype="fp8"),
        context.assign(kv_cache_dtype="fp8", window_size=128, latency=4.0),
        fp8_cache.assign(window_size=128, latency=1.0),
    ]
    experts = pd.DataFrame(
        [
            {
                "moe_dtype": "fp8",
                "num_tokens": tokens,
                "hidden_size": 1024,
                "inter_size": 512,
                "topk": 4,
                "num_experts": 64,
                "moe_tp_size": split[0],
                "moe_ep_size": split[1],
                "distribution": "power_law_1.2",
                "kernel_source": source,
                "latency": factor * latency,
            }
            for tokens, latency in ((1, 1.0), (64, 2.0), (1024, 8.0))
            for source, factor in (("slow", 3.0), ("fast", 1.0))
            for split in ((1, 1), (1, 4))
        ]
    )
    latent = pd.DataFrame(
        [
            {"num_heads": 32, "kv_cache_dtype": dtype, "batch_size": batch, "isl": 1, "step": 65_535}
            | {"kernel_source": "default", "latency": latency}
            for batch, times in ((1, (1e-2, 9.0)), (64, (9.0, 5e-2)))
            for dtype, latency in zip(("bfloat16", "fp8"), times, strict=True)
        ]
    )
    nccl = pd.DataFrame(
        [
            {"op_name": op, "nccl_dtype": "half", "num_gpus": 4, "message_size": size, "latency": 2e-9 * size}
            for op in ("all_gather", "reduce_scatter", "all_reduce")
            for size in (1, 1_000_000_000)
        ]
    )
    all_reduce = pd.DataFrame(
        [
            {"num_gpus": 4, "message_size": size, "kernel_source": source, "latency": latency}
            for size in (1, 1_000_000_000)
            for source, latency in (("x_graph", 1e-9 * size), ("x_eager", 99.0))
        ]
    )
    return {
        "gemm/vllm/0.9.0/gemm_perf": gemm.assign(latency=99.0),
        "gemm/vllm/0.10.0/gemm_perf": gemm,
        "gemm/sglang/0.5/gemm_perf": gemm[gemm["m"] > 16].assign(latency=99.0),
        "attention/vllm/0.10.0/context_attention_perf": pd.concat([context, window, *fp8[:2]]),
        "attention/vllm/0.10.0/generation_attention_perf": pd.concat([generation, fp8_cache, fp8[2]]),
        "attention/sglang/0.5/context_attention_perf": context.assign(num_heads=32, num_key_value_heads=32),
        "attention/trtllm/1.0/generation_attention_perf": generation.assign(
            num_heads=32, num_key_value_heads=32
        ),
        "attention/trtllm/1.0/context_attention_perf": pd.concat(fp8[:2]),
        "comm/vllm/0.10.0/custom_allreduce_perf": all_reduce,
        "comm/nccl/2.27/nccl_perf": nccl,
        "moe/vllm/0.10.0/moe_perf": experts[experts["topk"] > 4],
        "moe/vllm/0.9.0/moe_perf": experts,
        "moe/trtllm/1.0/moe_perf": experts.assign(inter_size=256),
        "mla/trtllm/1.0/context_mla_perf": latent.assign(isl=1024, step=0),
        "mla/trtllm/1.0/generation_mla_perf": latent,
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    path = tmp_path_factory.mktemp("wheel") / "aiconfigurator_core-7.8.9-py3-none-any.whl"
    root = "aiconfigurator_core/systems"
    with zipfile.ZipFile(path, "w") as archive:
        for name, table in tables().items():
            content = io.BytesIO()
            table.to_parquet(content)
            archive.writestr(f"{root}/data/l40s/{name}.parquet", content.getvalue())
        archive.writestr(f"{root}/data/empty/.gitkeep", "")
        figures = {
            "mem_bw": 1e12,
            "mem_bw_empirical_scaling_factor": 0.8,
            "mem_empirical_constant_latency": LAUNCH_S,
        }
        archive.writestr(f"{root}/l40s.yaml", yaml.safe_dump({"gpu": figures}))
    return path


def imported(wheel, model="llama-3-8b", tensor_parallel=1):
    wanted = Wanted(load_model(model), ParallelSpec(tensor=tensor_parallel))
    return import_points(NvidiaTables("l40s", wheel), wanted)


def of(points, op):
    return [point for point in points if point.op == op]


def test_a_layer_is_the_sum_of_its_kernels(wheel):
    """Four products, from the newest and fullest table; five small kernels by their bytes and launches."""
    points = {point.tokens: point.t_median_s for point in of(imported(wheel), "dense")}
    assert sorted(points) == [1, 16, 64, 512, 2048, 16_384]
    for tokens, seconds in points.items():
        products = [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336)]
        gemm_s = sum(gemm_ms(tokens, n, k) for n, k in products) / 1000
        small_bytes = tokens * 2 * (8 * 4096 + 2 * 5120 + 3 * 14_336)
        assert seconds == pytest.approx(gemm_s + 5 * LAUNCH_S + small_bytes / BYTES_PER_S, rel=1e-9)


def test_shards_and_all_reduces(wheel):
    """A quarter of each product; apart, two all-reduces of the hidden states, whose sizes count elements."""
    points = imported(wheel, tensor_parallel=4)
    dense, collectives = (
        {point.tokens: point.t_median_s for point in of(points, op)} for op in ("dense", "collectives")
    )
    products = [(1536, 4096), (4096, 1024), (7168, 4096), (4096, 3584)]
    gemm_s = sum(gemm_ms(2048, n, k) for n, k in products) / 1000
    small_bytes = 2048 * 2 * (8 * 4096 + 2 * 1280 + 3 * 3584)
    assert dense[2048] == pytest.approx(gemm_s + 5 * LAUNCH_S + small_bytes / BYTES_PER_S, rel=1e-6)
    assert collectives[2048] == pytest.approx(2 * 1e-9 * 2048 * 4096 / 1000, rel=1e-6)


def test_all_reduces_of_one_release(wheel):
    """For layers that another profiler timed."""
    tables = NvidiaTables(system_of("l40s"), wheel)
    model, parallel = load_model("llama-3-8b"), ParallelSpec(tensor=4)
    newest, named = (
        collectives_points(tables, Wanted(model, parallel, framework))
        for framework in ("vllm", "vllm/0.10.0")
    )
    assert newest == named
    with pytest.raises(CalibrationError, match=r"table of vllm 0.9; allowed: 0.10.0"):
        collectives_points(tables, Wanted(model, parallel, "vllm/0.9"))
    with pytest.raises(CalibrationError, match=r"has no rtx4090; allowed: h200, h100"):
        system_of("rtx4090")


def test_norms_of_all_heads_are_summed_over_gpus(wheel):
    """Eight bytes a token more, and a kernel; none of it on one GPU."""
    model = load_model("llama-3-8b")
    whole = model.model_copy(update={"qk_norm": True, "qk_norm_of_all_heads": True})
    tables, parallel = NvidiaTables("l40s", wheel), ParallelSpec(tensor=4)

    def seconds(model):
        points = import_points(tables, Wanted(model, parallel))
        return {point.tokens: point.t_median_s for point in of(points, "collectives")}

    assert seconds(whole)[2048] - seconds(model)[2048] == pytest.approx(1e-9 * 2048 * 4 / 1000)
    kernels = [small_kernels(ENGINES["vllm"], whole, ParallelSpec(tensor=gpus)) for gpus in (1, 4)]
    assert kernels == [6, 7]


def test_the_head_grows_in_proportion_beyond_the_widest_product(wheel):
    (seconds,) = (point.t_median_s for point in of(imported(wheel), "logits") if point.num_logits == 64)
    head_s = gemm_ms(64, 65_536, 4096) / 1000 * 128_256 / 65_536
    sampling_s = SAMPLING_KERNELS * LAUNCH_S + 64 * 128_256 * 10 / BYTES_PER_S
    assert seconds == pytest.approx(head_s + sampling_s, rel=1e-9)


def test_gpus_that_share_the_head_gather_its_logits(wheel):
    """A quarter of the head each, then all logits, 2 bytes each; left out where no all-gather was timed."""
    (seconds,) = (
        point.t_median_s
        for point in of(imported(wheel, tensor_parallel=4), "logits")
        if point.num_logits == 64
    )
    head_s = gemm_ms(64, 128_256 / 4, 4096) / 1000 + SAMPLING_KERNELS * LAUNCH_S
    logits = 64 * 128_256
    gathered_s = 2e-9 * logits / 1000
    assert seconds == pytest.approx(head_s + logits * 10 / BYTES_PER_S + gathered_s, rel=1e-6)
    tables = NvidiaTables("l40s", wheel)
    warnings = [
        import_meta(
            tables, Wanted(load_model("llama-3-8b"), ParallelSpec(tensor=gpus)), "2026-01-01"
        ).warnings
        for gpus in (1, 4, 8)
    ]
    left_out = "the all-gather of the logits is left out"
    assert [left_out in said for said in warnings] == [False, False, True]


def test_prompts_that_a_step_can_hold(wheel):
    """Neither prompts of one token, nor more than 16,384 tokens at once, nor sliding windows."""
    chunks = {point.chunks: point.t_median_s for point in of(imported(wheel), "prefill")}
    assert {(len(key), key[0][0]) for key in chunks} == {
        (1, 16),
        (4, 16),
        (64, 16),
        (1, 1024),
        (4, 1024),
        (1, 16_384),
    }
    assert chunks[((1024, 0),) * 4] == pytest.approx(1e-3 * 4 * 1024 * 32 / 1000)


def test_decodes_whose_kv_sits_in_l2_are_left_out(wheel):
    """96 MB of L2 hold 24k tokens of 4 KiB; 16 tokens say enough, for reading them takes no time at all."""
    splits = {
        (point.num_decodes, point.max_decode_context): point.split for point in of(imported(wheel), "decode")
    }
    assert splits == {
        (1, 16): "fit",
        (1, 1024): "warm",
        (1, 65_536): "fit",
        (64, 16): "warm",
        (64, 1024): "fit",
        (64, 65_536): "fit",
    }


@pytest.mark.parametrize(
    ("framework", "system", "estimates"),
    [("vllm", "l40s", ["mixed", "unequal"]), ("vllm", "h200_sxm", []), ("trtllm", "l40s", [])],
)
def test_launches_nobody_timed_are_estimated_for_those_who_mix(wheel, framework, system, estimates):
    """What is known is of FlashAttention 2, as on an L40S; TensorRT-LLM launches chunks and decodes apart."""
    tables = NvidiaTables("l40s", wheel)
    tables.system = system
    wanted = Wanted(load_model("llama-3-8b"), framework=framework, decode_framework=framework)
    assert import_meta(tables, wanted, "2026-01-01").estimates == estimates


def test_where_points_come_from(wheel):
    wanted = Wanted(load_model("llama-3-8b"), ParallelSpec(tensor=4), "vllm", "sglang")
    meta = import_meta(NvidiaTables("l40s", wheel), wanted, "2026-01-01")
    assert meta.source == "aiconfigurator-core 7.8.9, kernels of vllm (decode attention: sglang) on l40s"
    assert (meta.gpu, meta.tensor_parallel) == ("l40s", 4)
    told = import_meta(NvidiaTables("l40s", wheel), replace(wanted, experts_framework="trtllm"), "2026-01-01")
    assert "kernels of vllm (decode attention: sglang, experts: trtllm) on l40s" in told.source
    assert meta.licence is not None
    assert meta.licence.startswith("Apache-2.0")
    assert (
        "--system l40s --model llama-3-8b --tp 4 --framework vllm --decode-framework sglang" in meta.command
    )
    fp8 = wanted.model.model_copy(update={"weight_dtype": "fp8"})
    told = import_meta(
        NvidiaTables("l40s", wheel), replace(wanted, model=fp8, distribution="balanced"), "2026-01-01"
    )
    assert "--tp 4 --weight-dtype fp8 --distribution balanced --framework vllm" in told.command
    dated = import_meta(NvidiaTables("l40s", wheel, None, Release("vllm", (0, 8, 5))), wanted, "2026-01-01")
    assert any("timed next to vllm 0.8.5" in said for said in dated.warnings)


@pytest.mark.parametrize(
    ("system", "wanted", "message"),
    [
        ("l40", {}, "no system 'l40' in aiconfigurator-core; did you mean 'l40s'"),
        ("empty", {}, "no system 'empty'"),
        ("l40s", {"framework": "vlm"}, "no context_attention_perf table of 'vlm'; did you mean 'vllm'"),
        (
            "l40s",
            {"model": "llama-2-7b"},
            "no context attention with 32 query heads and 32 KV heads of size 128 in bfloat16 was timed; "
            "allowed: --framework sglang",
        ),
        (
            "l40s",
            {"model": "llama-2-7b", "framework": "sglang"},
            "no generation attention with 32 query heads and 32 KV heads of size 128 in bfloat16 was timed; "
            "allowed: --decode-framework trtllm",
        ),
        (
            "l40s",
            {"model": "qwen3-8b", "tensor_parallel": 4, "decode_framework": "trtllm"},
            "--decode-framework vllm",
        ),
        (
            "l40s",
            {"model": "qwen3-32b", "framework": "sglang"},
            "no context attention with 64 query heads and 8 KV heads of size 128 in bfloat16 was timed; "
            "try another --tp",
        ),
        ("l40s", {"model": "tiny"}, "model tiny: tables have activations in 16 bits alone, got float32"),
        ("l40s", {"tensor_parallel": 3}, "model llama-3-8b: num_heads 32 can't be split over 3 GPUs"),
        ("l40s", {"tensor_parallel": 2}, "no all-reduce over 2 GPUs was timed; allowed: 1, 4"),
    ],
)
def test_what_the_tables_lack_is_told(wheel, system, wanted, message):
    wanted = {"model": "llama-3-8b"} | wanted
    parallel = ParallelSpec(tensor=wanted.pop("tensor_parallel", 1))
    model = load_model(wanted.pop("model"))
    with pytest.raises(CalibrationError, match=message):
        import_points(NvidiaTables(system, wheel), Wanted(model, parallel, **wanted))


EXPERTS = {
    "name": "small-experts",
    "num_layers": 4,
    "hidden_size": 1024,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_size": 128,
    "intermediate_size": 4096,
    "vocab_size": 32_000,
    "max_model_len": 8192,
    "weight_dtype": "fp8",
    "kv_dtype": "fp8",
    "sliding_window": 128,
    "num_sliding_layers": 2,
    "experts": {
        "num_experts": 64,
        "num_experts_per_token": 4,
        "intermediate_size": 512,
        "shared_intermediate_size": 1024,
        "num_layers": 3,
    },
}


def with_experts(wheel, distribution="power_law_1.2", framework="vllm", **changes):
    parallel = ParallelSpec.model_validate(changes.pop("parallel", {"tensor": 1}))
    model = ModelSpec.model_validate(EXPERTS | changes)
    tables = NvidiaTables("l40s", wheel)
    return import_points(tables, Wanted(model, parallel, framework, "vllm", distribution)), tables


def test_products_by_dtype_and_layers_of_two_kinds(wheel):
    """FP8 products take half; one layer in four has the MLP of 4,096, three have shared experts of 1,024
    and a router, which stays in bf16 and is narrower than the narrowest product.
    """
    points = {point.tokens: point.t_median_s for point in of(with_experts(wheel)[0], "dense")}
    attention = gemm_ms(512, 6144, 1024) + gemm_ms(512, 1024, 4096)
    mlp, shared = (gemm_ms(512, 2 * width, 1024) + gemm_ms(512, 1024, width) for width in (4096, 1024))
    gemm_s = 0.5 * (attention + mlp / 4 + shared * 3 / 4) / 1000 + gemm_ms(512, 128, 1024) * 3 / 4 / 1000
    width = 4096 / 4 + 1024 * 3 / 4
    small_bytes = 512 * 2 * (8 * 1024 + 2 * 40 * 128 + 3 * width)
    expected = gemm_s + (5 + 2 * 3 / 4) * LAUNCH_S + small_bytes / BYTES_PER_S
    assert points[512] == pytest.approx(expected, rel=1e-4)


def test_shared_experts_beside_routed_ones_are_hidden(wheel):
    """At 64 tokens vLLM runs them on another stream: routed ones take 2 ms, shared ones far less."""
    points = {point.tokens: point.t_median_s for point in of(with_experts(wheel)[0], "dense")}
    attention = gemm_ms(64, 6144, 1024) + gemm_ms(64, 1024, 4096)
    mlp = gemm_ms(64, 2 * 4096, 1024) + gemm_ms(64, 1024, 4096)
    gemm_s = 0.5 * (attention + mlp / 4) / 1000 + gemm_ms(64, 128, 1024) * 3 / 4 / 1000
    small_bytes = 64 * 2 * (8 * 1024 + 2 * 40 * 128 + 3 * (4096 / 4 + 1024 * 3 / 4))
    expected = gemm_s + (5 + 3 / 4) * LAUNCH_S + small_bytes / BYTES_PER_S
    assert points[64] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "kernels"),
    [
        ({}, 5),
        ({"tensor": 2, "told": True}, 3),
        ({"framework": "sglang"}, 4),
        ({"framework": "trtllm"}, 3),
        ({"framework": "trtllm", "dtype": "fp8"}, 5),
        ({"framework": "trtllm", "tensor": 2, "dtype": "fp8"}, 1),
        ({"framework": "trtllm", "tensor": 2, "qk_norm": True}, 4),
    ],
)
def test_small_kernels_by_engine(changes, kernels):
    """Norms go into all-reduces, positions into attention, as engines have it."""
    model = load_model("llama-3-8b").model_copy(
        update={"weight_dtype": changes.get("dtype"), "qk_norm": changes.get("qk_norm", False)}
    )
    parallel, framework = ParallelSpec(tensor=changes.get("tensor", 1)), changes.get("framework", "vllm")
    wanted = Wanted(model, parallel, framework, reduces_with_norms=changes.get("told"))
    assert small_kernels(wanted.engine, model, parallel) == kernels


def test_products_are_the_frameworks_own_without_quantising(wheel, monkeypatch):
    """Of 30 us TensorRT-LLM's quantising took 2 and 8; of vLLM's 5 us for 2 rows, 12 for 1 is a hiccup."""
    tables = NvidiaTables("l40s", wheel)
    size = {"n": 1024, "k": 1024}

    def products(*microseconds):
        return pd.DataFrame(
            [size | {"gemm_dtype": "fp8", "m": m, "seconds": t * 1e-6} for m, t in enumerate(microseconds, 1)]
        )

    def quantising(microseconds):
        return pd.DataFrame(
            [{"quant_dtype": "fp8", "m": m, "k": 1024, "seconds": microseconds * 1e-6} for m in (1, 2)]
        )

    timed = {
        ("sglang", "gemm_perf"): products(4.0, 4.0),
        ("trtllm", "gemm_perf"): products(30.0, 31.0),
        ("vllm", "gemm_perf"): products(12.0, 8.0),
        ("trtllm", "scale_matrix_perf"): quantising(2.0),
        ("trtllm", "computescale_perf"): quantising(8.0),
        ("vllm", "scale_matrix_perf"): quantising(3.0),
    }
    monkeypatch.setattr(tables, "_frameworks", lambda op: ["sglang", "trtllm", "vllm"])
    monkeypatch.setattr(tables, "_versions", lambda op, framework, name: (framework, name) in timed)
    monkeypatch.setattr(tables, "_read", lambda op, framework, name: timed[framework, name])

    def seconds(framework):
        table = tables.gemm("fp8", framework)
        return {m: table.seconds(m, 1024, 1024) for m in table.rows}

    assert seconds("trtllm") == pytest.approx({1: 20e-6, 2: 21e-6})
    assert seconds("vllm") == pytest.approx({2: 5e-6})
    assert seconds("sglang") == pytest.approx({1: 4e-6, 2: 4e-6})
    assert tables.gemm("fp8").seconds(1, 1024, 1024) == pytest.approx(4e-6)


def test_products_in_blocks_are_the_frameworks_own_with_quantising(wheel, monkeypatch):
    """vLLM's hold the host's time, so that the least of the others' stands for them."""
    tables = NvidiaTables("l40s", wheel)
    size = {"gemm_dtype": "fp8_block", "m": 1, "n": 1024, "k": 1024}
    timed = {name: pd.DataFrame([size | {"seconds": s}]) for name, s in (("sglang", 4e-6), ("trtllm", 9e-6))}
    timed["vllm"] = pd.DataFrame([size | {"seconds": 6e-5}])
    monkeypatch.setattr(tables, "_frameworks", lambda op: list(timed))
    monkeypatch.setattr(tables, "_read", lambda op, framework, name: timed[framework])
    found = {name: tables.gemm("fp8_block", name).seconds(1, 1024, 1024) for name in timed}
    assert found == pytest.approx({"sglang": 4e-6, "trtllm": 9e-6, "vllm": 4e-6})


def test_experts_are_those_of_the_shape_the_split_and_the_spread(wheel):
    """The fastest kernel of the newest version that has them, by three quarters for three layers of four."""
    points, tables = with_experts(wheel)
    assert {point.tokens: point.t_median_s for point in of(points, "experts")} == pytest.approx(
        {1: 0.75 * 1e-3, 64: 0.75 * 2e-3, 1024: 0.75 * 8e-3}
    )
    assert tables.notes == []
    points, tables = with_experts(wheel, framework="trtllm")
    assert len(of(points, "experts")) == 3
    assert tables.notes == ["experts are those of vllm, since trtllm's were not timed"]
    with pytest.raises(CalibrationError, match="no 64 experts of 512, 4 a token, in fp8 over 1 x 1 GPUs"):
        with_experts(wheel, distribution="balanced")


SPEC = ModelSpec.model_validate(EXPERTS).experts


def moe_rows(seconds, dtype="mxfp4", tensor=2, parallel=1):
    """A table of experts with one size, 16 tokens."""
    row = {"distribution": "power_law_1.2", "hidden_size": 1024, "inter_size": 512, "topk": 4}
    row |= {"num_experts": 64, "moe_tp_size": tensor, "moe_ep_size": parallel, "moe_dtype": dtype}
    return pd.DataFrame([row | {"num_tokens": 16, "seconds": seconds, "kernel_source": "fast"}])


def test_experts_that_a_framework_did_not_time(wheel, monkeypatch):
    """Its own dealt out whole, else the least of others'; of 4 bits those with 8-bit products first."""
    tables = NvidiaTables("l40s", wheel)
    timed = {
        "sglang": [moe_rows(5.0, "w4a16_mxfp4"), moe_rows(7.0, "w4a8_mxfp4_mxfp8", tensor=1)],
        "trtllm": [moe_rows(6.0, "w4a16_mxfp4", tensor=1, parallel=2)],
        "vllm": [moe_rows(4.0, "w4a16_mxfp4"), moe_rows(1.0, "w4a16_mxfp4", tensor=1)],
    }
    monkeypatch.setattr(tables, "_frameworks", lambda op: sorted(timed))
    monkeypatch.setattr(tables, "_all", lambda op, frameworks, name: iter(timed.get(frameworks[0], [])))

    def seconds(framework, tensor):
        wanted = ExpertsTable(SPEC, 1024, "mxfp4", tensor, 1, "power_law_1.2")
        return tables.experts(framework, wanted).seconds.tolist()

    assert seconds("vllm", 2) == [4.0]
    assert tables.notes == []
    assert seconds("trtllm", 2) == [6.0]
    assert seconds("vllm", 1) == [7.0]
    del timed["trtllm"]
    assert seconds("trtllm", 2) == [4.0]
    assert tables.notes == [
        "experts are whole ones dealt out, since trtllm's slices were not timed",
        "experts are those of sglang, since vllm's were not timed",
        "experts are the least of those of sglang and those of vllm, since trtllm's were not timed",
    ]


def older_wheel(folder, **tables):
    """One whose tables are text."""
    path = folder / "aiconfigurator-0.7.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, table in tables.items():
            archive.writestr(f"aiconfigurator/systems/data/l40s/{name}.txt", table.to_csv(index=False))
    return path


def older_experts(latency, *sources, tokens=(1, 64, 1024)):
    """Of the shape in the wheel."""
    rows = moe_rows(0.0, "fp8", tensor=1).drop(columns="seconds")
    return pd.concat(
        rows.assign(num_tokens=count, kernel_source=source, latency=latency)
        for count in tokens
        for source in sources or ("fast",)
    )


def test_experts_of_a_release(wheel, tmp_path):
    """The newest that is no newer, else the oldest, of 0.9 always 0.9.0; below four tokens the newest."""
    older = {"0.7.0": 7.0, "0.8.0rc2": 5.0}
    path = older_wheel(tmp_path, **{f"vllm/{name}/moe_perf": older_experts(ms) for name, ms in older.items()})

    def seconds(*version, older=path):
        tables = NvidiaTables("l40s", wheel, older, Release("vllm", version))
        return tables.experts("vllm", ExpertsTable(SPEC, 1024, "fp8", 1, 1, "power_law_1.2")).seconds.tolist()

    newest = [1e-3, 2e-3, 8e-3]
    assert seconds(0, 7) != newest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvidia_tables, "NEWEST_EXPERTS", ("fp8",))
        assert seconds(0, 7) == newest
    assert seconds(0, 8, 0, 2) == seconds(0, 8, 5) == [1e-3, 5e-3, 5e-3]
    assert seconds(0, 8, 0, 1) == [1e-3, 5e-3, 5e-3]
    assert seconds(0, 6) == [1e-3, 7e-3, 7e-3]
    assert seconds(0, 9) == seconds(0, 9, 0) == seconds(0, 8, older=None) == newest
    tables = NvidiaTables("l40s", wheel, path, Release("trtllm", (0, 7, 0)))
    assert (
        tables.experts("vllm", ExpertsTable(SPEC, 1024, "fp8", 1, 1, "power_law_1.2")).seconds.tolist()
        == newest
    )
    products = [
        NvidiaTables("l40s", wheel, *others).gemm().seconds(64, 4096, 4096)
        for others in ((), (path, Release("vllm", (0, 7, 0))))
    ]
    assert products[0] == products[1]


@pytest.mark.parametrize(("evenly", "milliseconds"), [("0.8.0", [3, 7, 7]), ("0.7.0", [3, 6, 24])])
def test_experts_as_many_times_as_long_as_spread_evenly(wheel, tmp_path, monkeypatch, evenly, milliseconds):
    """The newest's 1, 2 and 8 ms three times as long, with few tokens alone if another release timed that."""
    even, uneven = (
        older_experts(0.0).assign(distribution=name, latency=ms)
        for name, ms in (("balanced", [0.02, 0.05, 9.0]), ("power_law_1.2", [1.0, 2.0, 8.0]))
    )
    newest = pd.concat([even, uneven]).assign(seconds=lambda table: table["latency"] / 1000)
    timed = {"0.7.0": [older_experts(7.0)], "0.8.0": []}
    timed[evenly].append(even.assign(latency=3 * even["latency"]))
    tables = {
        f"vllm/{version}/moe_perf": pd.concat(parts).assign(version=version)
        for version, parts in timed.items()
        if parts
    }
    dated = NvidiaTables("l40s", wheel, older_wheel(tmp_path, **tables), Release("vllm", (0, 7, 5)))
    every = NvidiaTables._all

    def with_even(self, op, frameworks, name):
        return [newest] if self.release is None else every(self, op, frameworks, name)

    monkeypatch.setattr(NvidiaTables, "_all", with_even)
    wanted = ExpertsTable(SPEC, 1024, "fp8", 1, 1, "power_law_1.2")
    assert dated.experts("vllm", wanted).seconds * 1000 == pytest.approx(milliseconds)


def test_experts_of_a_kernel(wheel, tmp_path):
    """The one told, without the timings that contradict each other."""
    sources = ("moe_torch_flow_min_latency", "moe_torch_flow")
    table = older_experts(4.0, *sources).assign(version="1.0.0rc6")
    table.loc[table["kernel_source"] == "moe_torch_flow", "latency"] = 9.0
    path = older_wheel(
        tmp_path,
        **{
            "vllm/1.0.0rc6/moe_perf": table,
            "vllm/1.2.0rc5/moe_perf": older_experts(6.0, *sources).assign(version="1.2.0rc5"),
        },
    )
    tables = NvidiaTables("l40s", wheel, path, Release("vllm", (1, 1, 0)))

    def last_ms(kernel):
        wanted = ExpertsTable(SPEC, 1024, "fp8", 1, 1, "power_law_1.2", kernel)
        return tables.experts("vllm", wanted).seconds[-1] * 1000

    assert last_ms("CUTLASS") == last_ms(None) == pytest.approx(9.0)
    assert last_ms("TRTLLM") == pytest.approx(6.0)


def test_layers_with_a_window_have_points_of_their_own(wheel):
    points, _ = with_experts(wheel)
    windows = {op: {point.window for point in of(points, op)} for op in ("prefill", "decode")}
    assert windows == {"prefill": {0, 128}, "decode": {0, 128}}
    chunk = [point for point in of(points, "prefill") if point.window and point.chunks == ((1024, 0),)]
    assert [point.t_median_s for point in chunk] == [4e-3]


def test_ranks_exchange_tokens_in_layers_with_experts(wheel):
    """Four ranks of one GPU: an all-gather and a reduce-scatter of all tokens in three layers of four."""
    points, _ = with_experts(wheel, parallel={"data": 4, "expert": 4})
    seconds = {point.tokens: point.t_median_s for point in of(points, "collectives")}
    assert seconds[1024] == pytest.approx(0.75 * 2 * 2e-9 * 1024 * 1024 / 1000)


def test_ranks_gather_tokens_in_nvfp4(wheel):
    """TensorRT-LLM's quantise them before: 4.5 bits each, where sums are scattered in 16."""
    tables = NvidiaTables("l40s", wheel)
    model = ModelSpec.model_validate(EXPERTS | {"weight_dtype": "nvfp4"})
    parallel = ParallelSpec(data=4, expert=4)
    bits = []
    for framework in ("trtllm", "vllm"):
        points = collectives_points(tables, Wanted(model, parallel, framework))
        seconds = {point.tokens: point.t_median_s for point in points}
        bits.append(seconds[1024] / (0.75 * 2e-9 / 1000 * 1024 * 1024) * 16)
    assert bits == pytest.approx([16 + 4.5, 16 + 16])


def test_ranks_on_nvlink_over_trays_send_tokens_to_their_experts(wheel, monkeypatch):
    """From as many ranks as a token has experts: three passes of one rank's tokens, each 1 ns a token."""
    passes = ("prepare", "dispatch", "combine", "combine_low_precision")
    sizes = {"hidden_size": 1024, "topk": 4, "num_experts": 64, "moe_ep_size": 4}
    sent = pd.DataFrame(
        [
            {"op_name": f"alltoall_{name}", "kernel_source": kernel, "moe_dtype": dtype, "num_tokens": tokens}
            | {**sizes, "seconds": factor * 1e-9 * tokens}
            for name in passes
            for kernel, dtype, factor in (
                ("NVLinkTwoSided", "bfloat16", 1.0),
                ("NVLinkTwoSided", "nvfp4", 5.0),
                ("NVLinkOneSided", "bfloat16", 9.0),
            )
            for tokens in (1, 100_000)
        ]
    )
    all_of = NvidiaTables._all

    def with_sent(self, op, frameworks, name):
        return [sent] if name == "trtllm_alltoall_perf" else all_of(self, op, frameworks, name)

    monkeypatch.setattr(NvidiaTables, "_all", with_sent)
    points, _ = with_experts(wheel, parallel={"data": 4, "expert": 4})
    seconds = {point.tokens: point.t_median_s for point in of(points, "collectives")}
    assert seconds[1024] == pytest.approx(0.75 * 3 * 1e-9 * 1024 / 4)
    points, _ = with_experts(wheel, parallel={"data": 4, "expert": 2})
    seconds = {point.tokens: point.t_median_s for point in of(points, "collectives")}
    assert seconds[1024] == pytest.approx(0.75 * 2 * 2e-9 * 1024 * 1024 / 1000)


def test_collectives_over_trays_are_those_of_a_node_with_the_same_gpus(wheel, monkeypatch):
    monkeypatch.setitem(nvidia_tables.IN_ONE_NODE, "l40s", "node")
    monkeypatch.setattr(nvidia_tables, "TRAY_GPUS", 2)
    made = []

    class Node(NvidiaTables):
        def __init__(self, system, wheel, *others):
            made.append(system)
            super().__init__("l40s", wheel, *others)

    monkeypatch.setattr(nvidia_tables, "NvidiaTables", Node)
    tables = NvidiaTables("l40s", wheel)
    empty = tables._read("comm", "vllm", "custom_allreduce_perf").iloc[:0]
    monkeypatch.setattr(tables, "_read", lambda op, framework, name: empty)
    assert tables.all_reduce("vllm", 4).at(1e9) == pytest.approx(1e-9 * 1e9 / 2000)
    monkeypatch.setattr(tables, "_all", lambda op, frameworks, name: [])
    assert tables.nccl("all_gather", 4).at(1e9) == pytest.approx(2e-9 * 1e9 / 2000)
    assert made == ["node", "node"]
    assert tables.notes == ["collectives over 4 GPUs are those of node, since none over two trays was timed"]
    with pytest.raises(CalibrationError, match="no all-gather over 16 GPUs was timed"):
        tables.nccl("all_gather", 16)


LATENT = {
    "mla": {
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "q_lora_rank": 1536,
    },
    "experts": None,
    "sliding_window": None,
    "num_sliding_layers": 0,
    "weight_dtype": None,
    "intermediate_size": 1024,
}


def test_latent_attention_is_put_together_from_kernels_and_products(wheel):
    """Queries down and up, the latent vector, keys and values unpacked, output; the kernel of 32 heads."""
    points, tables = with_experts(wheel, **LATENT)
    dense = {point.tokens: point.t_median_s for point in of(points, "dense")}
    shapes = [(2112, 1024), (32 * 192, 1536), (32 * 256, 512), (1024, 32 * 128), (2048, 1024), (1024, 1024)]
    gemm_s = sum(gemm_ms(512, n, k) for n, k in shapes) / 1000
    small_bytes = 512 * 2 * (8 * 1024 + 2 * 33 * 192 + 3 * 1024)
    assert dense[512] == pytest.approx(gemm_s + 7 * LAUNCH_S + small_bytes / BYTES_PER_S, rel=1e-4)
    decodes = {point.num_decodes: point.t_median_s for point in of(points, "decode")}
    assert decodes == pytest.approx({1: 1e-5, 64: 5e-5})
    assert tables.notes == ["latent attention is that of trtllm, since vllm's was not timed apart"]


def test_decodes_absorb_unpacking_in_two_products(wheel, monkeypatch):
    """Of 64 decodes they take 13 us more than the one product counted, of one no more; TensorRT-LLM's whole
    layers say what they take.
    """
    apart_s = gemm_ms(64, 32 * 256, 512) / 1000
    timed = [
        ("bfloat16", "mla_gen_pre", 1, 0.0),
        ("bfloat16", "mla_gen_post", 1, 0.0),
        ("bfloat16", "mla_gen_pre", 64, 9e-6),
        ("bfloat16", "mla_gen_post", 64, apart_s + 4e-6),
        ("bfloat16", "mla_gen_post", 64, 1.0),
        ("fp8", "mla_gen_pre", 64, 0.0),
    ]
    columns = ["bmm_dtype", "op_name", "num_tokens", "seconds"]
    products, every = pd.DataFrame(timed, columns=columns).assign(num_heads=32), NvidiaTables._all
    monkeypatch.setattr(
        NvidiaTables, "_all", lambda *asked: [products] if asked[1] == "mla_bmm" else every(*asked)
    )
    points, tables = with_experts(wheel, **LATENT)
    decodes = {point.num_decodes: point.t_median_s for point in of(points, "decode")}
    assert decodes == pytest.approx({1: 1e-5, 64: 6.3e-5})
    assert tables.latent_products("trtllm", 32) is None


def test_what_whole_layers_of_latent_attention_take_more(wheel, monkeypatch):
    """Of 64 decodes a layer took 70 us beyond its products and four small kernels, of one less than they."""
    shapes = [(2112, 1024), (32 * 192, 1536), (32 * 256, 512), (1024, 32 * 128)]
    apart_s = sum(gemm_ms(64, n, k) for n, k in shapes) / 1000 + 4 * LAUNCH_S
    whole = {"num_heads": 32, "gemm_type": "bfloat16", "kv_cache_dtype": "fp8", "step": 65_536}
    modules = pd.DataFrame(
        [whole | {"batch_size": 1, "seconds": 0.0}, whole | {"batch_size": 64, "seconds": apart_s + 7e-5}]
    )
    read, versions = NvidiaTables._read, NvidiaTables._versions
    name = "mla_generation_module_perf"
    monkeypatch.setattr(NvidiaTables, "_read", lambda *asked: modules if asked[3] == name else read(*asked))
    monkeypatch.setattr(NvidiaTables, "_versions", lambda *asked: asked[3] == name or versions(*asked))
    decodes = {
        point.num_decodes: point.t_median_s for point in of(with_experts(wheel, **LATENT)[0], "decode")
    }
    assert decodes == pytest.approx({1: 1e-5, 64: 7e-5})


def test_latent_attention_of_a_release(wheel, tmp_path, monkeypatch):
    """Of 64 decodes it took 20 us more than the newest, with which whole layers were timed; of one 3 less."""
    shapes = [(2112, 1024), (32 * 192, 1536), (32 * 256, 512), (1024, 32 * 128)]
    apart_s = sum(gemm_ms(64, n, k) for n, k in shapes) / 1000 + 4 * LAUNCH_S
    whole = {"num_heads": 32, "gemm_type": "bfloat16", "kv_cache_dtype": "fp8", "step": 65_536}
    modules = pd.DataFrame([whole | {"batch_size": 64, "seconds": apart_s + 6e-5}])
    read, versions = NvidiaTables._read, NvidiaTables._versions
    name = "mla_generation_module_perf"
    monkeypatch.setattr(NvidiaTables, "_read", lambda *asked: modules if asked[3] == name else read(*asked))
    monkeypatch.setattr(NvidiaTables, "_versions", lambda *asked: asked[3] == name or versions(*asked))
    latent = {
        "num_heads": 32,
        "kv_cache_dtype": "float16",
        "isl": 1,
        "step": 65_535,
        "kernel_source": "default",
    }
    table = pd.DataFrame(
        [latent | {"batch_size": 1, "latency": 7e-3}, latent | {"batch_size": 64, "latency": 7e-2}]
    )
    path = older_wheel(tmp_path, **{"trtllm/0.9/generation_mla_perf": table})
    model = ModelSpec.model_validate(EXPERTS | LATENT | {"kv_dtype": "fp8"})
    tables = NvidiaTables("l40s", wheel, path, Release("trtllm", (0, 9)))
    points = import_points(tables, Wanted(model, framework="vllm", decode_framework="trtllm"))
    decodes = {point.num_decodes: point.t_median_s for point in of(points, "decode")}
    assert decodes == pytest.approx({1: 7e-6, 64: 8e-5})


def test_something_else_than_the_wheel(tmp_path):
    other = tmp_path / "other.whl"
    other.write_bytes(b"no archive")
    with pytest.raises(CalibrationError, match="can't be read as a wheel"):
        NvidiaTables("l40s", other)
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("other/__init__.py", "")
    with pytest.raises(CalibrationError, match="not a wheel of aiconfigurator-core"):
        NvidiaTables("l40s", other)
