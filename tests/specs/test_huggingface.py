"""Models as Hugging Face's `config.json` has them: keys, windows, experts, quantization, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cbsim.base.errors import ConfigError
from cbsim.specs import ModelSpec
from cbsim.specs.huggingface import MARKS, find, read, translate
from cbsim.studies.experiment import Experiment

LLAMA = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4},
    **{"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2},
    **{"vocab_size": 1000, "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-6},
}
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
LATENT = {
    **{"model_type": "deepseek_v3", "n_routed_experts": 16, "num_experts_per_tok": 4, "n_shared_experts": 2},
    **{"moe_intermediate_size": 64, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1},
    **{
        "kv_lora_rank": 32,
        "q_lora_rank": 48,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
    },
}


def model_of(**config: Any) -> ModelSpec:
    return ModelSpec.model_validate(translate(LLAMA | config))


def windows_of(**config: Any) -> list[tuple[int, int]]:
    return [(kind.num_layers, kind.window) for kind in model_of(**config).attention_kinds]


def refusal_of(**config: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        translate({"architectures": ["FooForCausalLM"], **config})
    (line,) = refused.value.problems
    return line


def translate_problems(**config: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refused:
        translate(LLAMA | config)
    return refused.value.problems


def test_a_dense_model_by_its_keys() -> None:
    model = model_of(rope_theta=500_000.0, attention_bias=True)
    assert model == ModelSpec(
        **{"name": "llama", "num_layers": 4, "hidden_size": 256, "num_heads": 8, "num_kv_heads": 2},
        **{"head_size": 32, "intermediate_size": 512, "vocab_size": 1000, "max_model_len": 4096},
        **{"rope_theta": 500_000.0, "norm_eps": 1e-6, "attention_bias": True},
    )


def test_keys_of_ours_go_before_what_follows_from_others() -> None:
    model = model_of(name="mine", weight_dtype="fp8", max_model_len=1024, not_modelled=["its charm"])
    assert (model.name, model.weight_dtype, model.max_model_len) == ("mine", "fp8", 1024)
    assert model.not_modelled == ["its charm"]
    assert not ModelSpec.model_fields.keys() & {*MARKS}


def test_what_a_type_leaves_unsaid() -> None:
    assert model_of(model_type="qwen2").attention_bias
    assert model_of(model_type="qwen3").qk_norm
    assert model_of(model_type="gemma2").tie_embeddings
    assert not model_of().tie_embeddings
    sparse = {key: LLAMA[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size")}
    gemma = translate({"text_config": {"model_type": "gemma3_text", **sparse}, "vision_config": {"x": 1}})
    assert (gemma["num_heads"], gemma["head_size"], gemma["vocab_size"]) == (8, 256, 262_208)
    assert gemma["not_modelled"] == ["vision_config: the encoder of images, with its weights"]


def test_a_context_that_yarn_stretches() -> None:
    stretch = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    assert model_of(rope_scaling=stretch).max_model_len == 16_384
    assert model_of(rope_scaling={"rope_type": "llama3", "factor": 8.0}).max_model_len == 4096


def test_windows() -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    assert windows_of() == [(4, 0)]
    assert windows_of(model_type="mistral", sliding_window=128) == [(4, 128)]
    assert windows_of(model_type="phi3", sliding_window=4096) == [(4, 0)]
    assert windows_of(model_type="qwen2", sliding_window=128) == [(4, 0)]
    swa = {"use_sliding_window": True, "max_window_layers": 3, "sliding_window": 128}
    assert windows_of(model_type="qwen2", **swa) == [(1, 128), (3, 0)]
    assert windows_of(model_type="gemma2", sliding_window=128) == [(2, 128), (2, 0)]
    assert windows_of(model_type="gemma3_text", sliding_window=128, num_hidden_layers=13) == [
        (11, 128),
        (2, 0),
    ]
    assert windows_of(layer_types=kinds, sliding_window=64) == [(2, 64), (2, 0)]
    experts = {"num_local_experts": 4, "num_experts_per_tok": 1}
    assert windows_of(model_type="llama4_text", attention_chunk_size=512, **experts) == [(3, 512), (1, 0)]


def test_heads_that_differ_by_window() -> None:
    model = model_of(
        **{"model_type": "gemma4_text", "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
        **{"sliding_window": 64, "global_head_dim": 64, "num_global_key_value_heads": 1},
    )
    sliding, full = model.attention_kinds
    assert (sliding.num_kv_heads, sliding.query_size, full.num_kv_heads, full.query_size) == (2, 32, 1, 64)
    assert model.kv_bytes_per_token == 2 * (3 * 2 * 2 * 32 + 2 * 64)


def test_experts_by_the_keys_of_each_type() -> None:
    experts = model_of(**MIXTRAL).experts
    assert experts is not None
    assert (experts.num_experts, experts.num_experts_per_token, experts.intermediate_size) == (8, 2, 512)
    latent = model_of(**LATENT)
    assert latent.experts is not None
    assert (latent.num_expert_layers, latent.experts.shared_intermediate_size) == (3, 128)
    assert latent.kv_bytes_per_token == 4 * 40 * 2
    assert latent.not_modelled == ["num_nextn_predict_layers: layers that draft tokens, with their weights"]
    qwen = {
        "model_type": "qwen2_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
    }
    uneven = model_of(**qwen, decoder_sparse_step=2, mlp_only_layers=[3], shared_expert_intermediate_size=96)
    assert uneven.experts is not None
    assert (uneven.num_expert_layers, uneven.experts.shared_intermediate_size) == (1, 96)
    llama = {"model_type": "llama4_text", "num_local_experts": 4, "num_experts_per_tok": 1}
    turns = model_of(
        **llama, attention_chunk_size=512, interleave_moe_layer_step=2, intermediate_size_mlp=1024
    )
    assert turns.experts is not None
    assert (turns.num_expert_layers, turns.intermediate_size) == (2, 1024)
    assert (turns.experts.intermediate_size, turns.experts.shared_intermediate_size) == (512, 512)


def test_a_mixture_without_its_expert_keys_is_no_dense_model() -> None:
    assert translate_problems(model_type="mixtral") == (
        "num_local_experts: missing; expected a whole number",
        "num_experts_per_tok: missing; expected a whole number",
    )


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "qwen3_next", "linear_num_key_heads": 16}, "linear attention (linear_num_key_heads)"),
        ({"model_type": "kimi_k3", "text_config": {"linear_attn_config": {"x": 1}}}, "linear attention"),
        ({"model_type": "mamba2"}, "Mamba layers"),
        ({"model_type": "bert"}, "an encoder"),
        ({"model_type": "deepseek_v32", "index_topk": 2048}, "sparse attention (index_topk)"),
        (
            {"model_type": "nemotron-nas", "block_configs": [{}]},
            "layers that differ one by one (block_configs)",
        ),
        ({"model_type": "llama", "layer_types": ["linear_attention"]}, "linear_attention (layer_types)"),
        ({"model_type": "gemma4_text", "num_kv_shared_layers": 10}, "keys and values shared between layers"),
        ({"model_type": "lama"}, "model_type 'lama' is not known; did you mean 'llama'?"),
        ({}, "no model_type"),
    ],
)
def test_who_is_refused_by_name_and_reason(config: dict[str, Any], reason: str) -> None:
    assert refusal_of(**config).startswith(f"FooForCausalLM can't be modelled: {reason}")


def test_mistakes_are_told_all_at_once() -> None:
    assert translate_problems(num_hidden_layers="32", hidden_size=None) == (
        "num_hidden_layers: got '32' (str); expected a whole number",
        "hidden_size: missing; expected a whole number",
    )
    assert translate_problems(num_hidden_layers=10**30) == (
        f"num_hidden_layers: got {10**30}; expected a whole number up to 10,000",
    )
    short = translate_problems(layer_types=["full_attention"])
    assert short == ("layer_types: got 1 items; expected one for each of 4 layers",)
    assert refusal_of(**LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": "x"}}).startswith(
        "rope factor: got 'x' (str); expected a number up to 1,000,000,000"
    )
    assert refusal_of(**LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 1e300}}).startswith(
        "rope factor: got 1e+300"
    )


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
GROUP = {"num_bits": 4, "type": "int", "group_size": 32}


@pytest.mark.parametrize(
    ("given", "dtype", "others"),
    [
        (FP8, "fp8_block", {}),
        ({"quant_method": "fp8"}, "fp8", {}),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4", {}),
        ({"quant_method": "gptq", "bits": 8}, "int8", {}),
        (
            {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
            "mxfp4",
            "attention",
        ),
        ({"quant_algo": "NVFP4", "exclude_modules": ["lm_head", "model.layers.1*"]}, "nvfp4", {}),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8", {}),
        (
            {
                **{"quant_method": "compressed-tensors", "ignore": ["re:.*self_attn.*", "lm_head"]},
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": GROUP}},
            },
            "int4_block",
            "attention",
        ),
    ],
)
def test_quantization(given: dict[str, Any], dtype: str, others: Any) -> None:
    model = model_of(quantization_config=given)
    assert model.weight_dtype == dtype
    assert model.weight_dtypes == ({others: "bfloat16"} if others else {})
    assert (model.weight_dtype_of("mlp"), model.weight_dtype_of("head")) == (dtype, "bfloat16")


def test_what_is_stored_otherwise_than_it_is_counted_is_told() -> None:
    first = {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0"]}
    assert model_of(quantization_config=first).not_modelled == [
        "quantization: 25% of the weights of attention are bfloat16, counted as fp8",
        "quantization: 25% of the weights of mlp are bfloat16, counted as fp8",
    ]
    odd = {"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 8, "type": "int"}}
    assert "a KV cache of" in model_of(quantization_config=odd).not_modelled[0]
    with pytest.raises(ConfigError, match="quantization 'bitsandbytes' is not modelled; known: fp8"):
        model_of(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder beside an experiment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Tiny-NVFP4").mkdir()
    (tmp_path / "Tiny-NVFP4" / "config.json").write_text(json.dumps(LLAMA))
    quantization = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    beside = tmp_path / "Tiny-NVFP4" / "hf_quant_config.json"
    beside.write_text(json.dumps({"quantization": quantization}))
    return tmp_path


def experiment_of(model: Any, *overrides: str) -> Experiment:
    Path("e.yaml").write_text(
        f"model: {json.dumps(model)}\nscheduler: continuous\nworkload: {{type: trace, path: t.csv}}\n"
    )
    Path("t.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,100,3\n")
    return Experiment.load(Path("e.yaml"), overrides)


@pytest.mark.parametrize("model", ["Tiny-NVFP4", "Tiny-NVFP4/config.json"])
def test_a_path_in_an_experiment(folder: Path, model: str) -> None:
    served = experiment_of(model, "model.max_model_len=512").model
    assert (served.name, served.weight_dtype, served.kv_dtype) == ("Tiny-NVFP4", "nvfp4", "fp8")
    assert served.max_model_len == 512


def test_a_path_is_relative_to_the_experiment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment_of("Tiny-NVFP4")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert Experiment.load(Path("..") / "e.yaml").model.weight_dtype == "nvfp4"


def test_a_mapping_with_hugging_faces_keys(folder: Path) -> None:
    assert experiment_of({**LLAMA, "name": "mine"}).model == model_of(name="mine")
    with pytest.raises(ConfigError) as refused:
        experiment_of({**LLAMA, "model_type": "mixtral"})
    assert str(refused.value).splitlines() == [
        f"e.yaml:1: model: {key}: missing; expected a whole number"
        for key in ("num_local_experts", "num_experts_per_tok")
    ]


def test_models_in_a_sweep(folder: Path) -> None:
    swept = experiment_of("tiny", "sweep.model=[tiny, Tiny-NVFP4]")
    assert [point.model.name for _, point in swept.points()] == ["tiny", "Tiny-NVFP4"]


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("lost/config.json", "e.yaml:1: model: lost/config.json: no such file"),
        ("empty", "e.yaml:1: model: empty: a folder without a model's file"),
        ("broken.json", "broken.json: not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("list.json", "list.json: got a list; expected a mapping"),
        ("bert.json", "bert.json: bert can't be modelled: an encoder"),
        ("heads.json", "heads.json: model.num_kv_heads"),
    ],
)
def test_mistakes_in_files_are_told_with_their_place(folder: Path, model: str, line: str) -> None:
    Path("empty").mkdir()
    Path("broken.json").write_text("")
    Path("list.json").write_text("[]")
    Path("bert.json").write_text('{"model_type": "bert"}')
    Path("heads.json").write_text(json.dumps(LLAMA | {"num_key_value_heads": 0}))
    with pytest.raises(ConfigError) as refused:
        experiment_of(model)
    assert refused.value.problems[0].startswith(line)


def test_the_name_of_a_model_in_hugging_faces_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--Qwen--Qwen3-8B" / "snapshots" / "0a1b2c"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(LLAMA))
    path = find(snapshot)
    assert path is not None
    assert read(path)["name"] == "Qwen3-8B"


def test_norms_of_all_heads_together() -> None:
    """MiniMax's, by `qk_norm_type`; others' are of each head."""
    assert model_of(use_qk_norm=True, qk_norm_type="per_layer").qk_norm_of_all_heads
    assert not model_of(use_qk_norm=True, qk_norm_type="per_head").qk_norm_of_all_heads
    assert not model_of(use_qk_norm=True).qk_norm_of_all_heads
