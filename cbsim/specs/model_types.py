"""Model types: which of `transformers` are modelled, what is refused, and what of a model is left out."""

from __future__ import annotations

from typing import Any

_QWEN2 = {"attention_bias": True, "use_sliding_window": False}
_QWEN3 = {"use_qk_norm": True, "use_sliding_window": False}
_EXPERTS = {"has_experts": True}
_GEMMA3 = {
    **{"tie_word_embeddings": True, "use_qk_norm": True, "sliding_window_pattern": 6, "vocab_size": 262_208},
    **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
    **{"max_position_embeddings": 131_072, "rms_norm_eps": 1e-6, "rope_theta": 1e6},
}
_FAMILIES: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("llama", "mistral", "ministral", "ministral3", "phi3", "mimo"), {}),
    (("qwen2", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"), _QWEN2),
    (("qwen2_moe",), _QWEN2 | _EXPERTS),
    (("qwen3", "qwen3_vl_text"), _QWEN3),
    (("qwen3_moe", "qwen3_vl_moe_text"), _QWEN3 | _EXPERTS),
    (("mixtral", "phimoe", "gpt_oss", "minimax_m2", "step3p7", "mimo_v2_flash"), _EXPERTS),
    (("deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe", "glm4v_moe_text"), _EXPERTS),
    (("llama4_text",), {**_EXPERTS, "n_shared_experts": 1}),
    (("glm", "glm4", "glm4v_text"), {"attention_bias": True}),
    (("gemma",), {"tie_word_embeddings": True}),
    (("gemma2",), {"tie_word_embeddings": True, "head_dim": 256, "sliding_window_pattern": 2}),
    (("gemma3", "gemma3_text"), _GEMMA3),
    (("gemma4_text",), {"tie_word_embeddings": True, "use_qk_norm": True}),
)
TYPES = {kind: unsaid for kinds, unsaid in _FAMILIES for kind in kinds}
"""What is modelled: `model_type` -> what its configuration says where it leaves a key out."""
REFUSED = {
    "linear attention": (
        *("linear_attn_config", "linear_num_key_heads"),
        *("qwen3_next", "kimi_linear", "minimax", "minimax_text_01", "rwkv"),
    ),
    "Mamba layers": (
        *("mamba_num_heads", "mamba_n_heads", "mamba_d_state", "ssm_state_size", "state_size"),
        *("mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "zamba2", "granitemoehybrid", "nemotron_h"),
    ),
    "sparse attention": (
        *("index_topk", "sparse_attention_config", "compress_ratios", "dual_chunk_attention_config"),
        *("deepseek_v32", "deepseek_v4", "glm_moe_dsa", "minimax_m3", "phi3small"),
    ),
    "layers that differ one by one": ("block_configs",),
    "keys and values shared between layers": ("num_kv_shared_layers",),
    "embeddings of each layer": ("hidden_size_per_layer_input",),
    "an encoder": (
        *("is_encoder_decoder", "bert", "roberta", "xlm-roberta", "modernbert", "deberta-v2", "electra"),
        *("t5", "bart", "whisper", "clip", "siglip", "vit"),
    ),
}
"""What can't be modelled: the reason -> keys of a configuration that tell it, and `model_type`s."""
NOT_MODELLED = {
    "vision_config": "the encoder of images, with its weights",
    "audio_config": "the encoder of sound, with its weights",
    "num_nextn_predict_layers": "layers that draft tokens, with their weights",
    "num_mtp_modules": "layers that draft tokens, with their weights",
    "attention_chunk_size": "chunks of attention, taken as a window of as many tokens",
    "attn_logit_softcapping": "the cap on attention's logits",
    "final_logit_softcapping": "the cap on the LM head's logits",
    "attention_k_eq_v": "keys that are values too in layers without a window; both projections are counted",
    "attn_output_gate": "the gate on attention's output",
    "attention_other_setting": "heads of layers with a window, taken as those of the others",
    "mlp_bias": "biases of MLPs",
}
"""Keys that change what a model costs, and what they stand for."""
