"""Hugging Face: a model's `config.json`, and the `hf_quant_config.json` beside it, as the keys of ModelSpec.

Keys, and what stands where one is left out, are those of `transformers` for each `model_type`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cbsim.base.errors import ConfigError
from cbsim.base.paths import is_file, is_folder
from cbsim.base.registry import did_you_mean
from cbsim.base.text_files import read_json
from cbsim.config.document import describe_value
from cbsim.config.section import ForeignForm, Named
from cbsim.specs.model import ModelSpec
from cbsim.specs.model_types import NOT_MODELLED, REFUSED, TYPES
from cbsim.specs.quantization import Quantization, modules_of

CONFIG, QUANTIZATION = "config.json", "hf_quant_config.json"

MAX_NUMBER, MAX_LAYERS = 10**9, 10_000
"""Larger figures are mistakes."""
SHARED_KEYS = frozenset(
    {"hidden_size", "intermediate_size", "vocab_size", "rope_theta", "dtype"}
    | {"attention_bias", "sliding_window"}
)
"""Keys that ModelSpec and a `config.json` both have."""


def find(path: Path) -> Path | None:
    """The `config.json` that a path means: itself, or the one in a folder."""
    if is_folder(path):
        path = path / CONFIG
    return path if path.suffix == ".json" and is_file(path) else None


def read(path: Path) -> dict[str, Any]:
    """A `config.json` as it stands, with a `name`, and what lies beside it as `hf_quant_config`.

    Raises `ConfigError` for what can't be read.
    """
    config = read_json(path, ConfigError)
    beside = path.with_name(path.name.removesuffix(CONFIG) + QUANTIZATION)
    if path.name.endswith(CONFIG) and is_file(beside):
        config["hf_quant_config"] = read_json(beside, ConfigError).get("quantization")
    return {"name": _name_of(path), **config}


def translate(given: dict[str, Any]) -> dict[str, Any]:
    """Hugging Face's keys as those of ModelSpec.

    Keys of ModelSpec beside them, such as `weight_dtype`, go before what follows from the others. Raises
    `ConfigError` with a line without a place for each mistake, or for a model that can't be modelled.
    """
    try:
        found = _Figures(given).model()
    except (AttributeError, KeyError, TypeError, ValueError, re.error) as error:
        raise ConfigError(f"a key holds something else than Hugging Face writes there: {error}") from error
    ours = {key: given[key] for key in given.keys() & ModelSpec.model_fields.keys() - SHARED_KEYS}
    notes = [*found.pop("not_modelled"), *ours.pop("not_modelled", [])]
    return {**found, **ours, **({"not_modelled": notes} if notes else {})}


MARKS = ("model_type", "architectures", "num_hidden_layers", "text_config")
"""Keys of which a `config.json` has at least one, and ModelSpec none."""
NAMED_MODEL = Named("model", "models", "llama-3-8b", ForeignForm(MARKS, find, read, translate, "num_layers"))
"""A model by its name in `configs/models`, by a file of ours or of Hugging Face, or as a mapping."""


class _Figures:
    """The figures of one configuration: those of a wrapper's `text_config`, else its own."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        names = ("text_config", "llm_config", "language_config")
        inner: dict[str, Any] = next((given[name] for name in names if isinstance(given.get(name), dict)), {})
        of_all = {key: given[key] for key in ("architectures", "tie_word_embeddings") if key in given}
        self._given = {**given, **inner, **of_all}
        self._problems: list[str] = []
        self._type = str(self._given.get("model_type") or "")
        self._check()
        self._all = {**TYPES[self._type], **self._given}

    def _check(self) -> None:
        """Raise `ConfigError` for what can't be modelled."""
        given, kind = self._given, self._type
        architecture = next(iter(given.get("architectures") or ()), kind)
        for reason, signs in REFUSED.items():
            sign = next((sign for sign in signs if sign == kind or given.get(sign)), None)
            if sign is not None:
                told = "" if sign == kind else f" ({sign})"
                raise ConfigError(f"{architecture} can't be modelled: {reason}{told}")
        strange = set(given.get("layer_types") or ()) - {"full_attention", *_WINDOWS}
        if strange:
            raise ConfigError(f"{architecture} can't be modelled: {min(strange)} (layer_types)")
        if kind not in TYPES:
            got = f"model_type '{kind}' is not known{did_you_mean(kind, TYPES)}" if kind else "no model_type"
            raise ConfigError(f"{architecture or 'model'} can't be modelled: {got}")

    def get(self, *keys: str, default: Any = None) -> Any:
        """What the first of some keys says that says something."""
        return next((self._all[key] for key in keys if self._all.get(key) is not None), default)

    def number(self, *keys: str, default: int | None = None, most: int = MAX_NUMBER) -> int:
        """As `get`, a whole number of at most `most`; a mistake is noted where there is none."""
        found = self.get(*keys, default=default)
        if isinstance(found, int) and not isinstance(found, bool) and 0 <= found <= most:
            return found
        got = "missing" if found is None else f"got {describe_value(found)}"
        bound = f" up to {most:,}" if isinstance(found, int) and found > most else ""
        self._problems.append(f"{keys[0]}: {got}; expected a whole number{bound}")
        return 1

    def _positive(self, key: str, found: Any) -> float:
        """A number above 0 and of a size that figures have; a mistake is noted where it is none."""
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        if is_number and 0 < found <= MAX_NUMBER:
            return float(found)
        self._problems.append(f"{key}: got {describe_value(found)}; expected a number up to {MAX_NUMBER:,}")
        return 1.0

    def _listed(self, key: str, num_layers: int) -> list[Any]:
        """What a list says of each layer; empty where there is none, a mistake where it is too short."""
        found = self.get(key)
        if not isinstance(found, list):
            return []
        if len(found) < num_layers:
            self._problems.append(
                f"{key}: got {len(found)} items; expected one for each of {num_layers} layers"
            )
        return found[:num_layers]

    def model(self) -> dict[str, Any]:
        """The keys of ModelSpec. Raises `ConfigError` with all mistakes."""
        num_layers, hidden = self.number("num_hidden_layers", most=MAX_LAYERS), self.number("hidden_size")
        heads = self.number("num_attention_heads") or 1
        dtype, notes = self._dtype()
        model: dict[str, Any] = {
            "name": self.get("name", default=self._type),
            "num_layers": num_layers,
            "hidden_size": hidden,
            "num_heads": heads,
            "num_kv_heads": self.number("num_key_value_heads", default=heads),
            "head_size": self.number("head_dim", default=hidden // heads),
            "intermediate_size": self.number(
                "intermediate_size_mlp", "dense_intermediate_size", "intermediate_size"
            ),
            "vocab_size": self.number("vocab_size"),
            "tie_embeddings": self.get("tie_word_embeddings", default=False),
            "max_model_len": self._max_model_len(),
            "dtype": dtype,
            "rope_theta": self._rope("rope_theta", 10_000.0),
            "norm_eps": self.get("rms_norm_eps", "layernorm_epsilon", "layer_norm_epsilon", default=1e-5),
            "qk_norm": self.get("use_qk_norm", default=False),
            "qk_norm_of_all_heads": self.get("qk_norm_type", default="per_head") == "per_layer",
            "attention_bias": self.get("attention_bias", default=False),
        }
        if self.get("kv_lora_rank"):
            names = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
            model["mla"] = {name: self.number(name) for name in names}
            if self.get("q_lora_rank"):
                model["mla"]["q_lora_rank"] = self.number("q_lora_rank")
            model["head_size"] = model["mla"]["qk_rope_head_dim"] + model["mla"]["qk_nope_head_dim"]
        else:
            model |= self._attention(num_layers, model["max_model_len"])
        with_experts = self._expert_layers(num_layers)
        if any(with_experts):
            model["experts"] = self._experts(with_experts, model["intermediate_size"])
        if self._problems:
            raise ConfigError(*self._problems)
        quantized, remarks = self._quantized(model, with_experts)
        notes += [f"{key}: {what}" for key, what in NOT_MODELLED.items() if self._tells(key)]
        return {**model, **quantized, "not_modelled": [*notes, *remarks]}

    def _tells(self, key: str) -> bool:
        """Whether a key says that something is there; of chunks, that some layers have them."""
        return bool(self.get(key)) and (key != "attention_chunk_size" or self._type == "llama4_text")

    def _dtype(self) -> tuple[str, list[str]]:
        dtype = self.get("torch_dtype", "dtype", default="bfloat16")
        if dtype == "float32":
            return "bfloat16", ["dtype: float32 is served as bfloat16, as vLLM does"]
        return dtype, []

    def _rope(self, key: str, default: Any = None) -> Any:
        """A figure of the rotary positions, which stands in one of three places."""
        places = [self.get("rope_parameters", default={}), self.get("rope_scaling", default={})]
        found = [place.get(key) for place in places if isinstance(place, dict)]
        return next((each for each in [self.get(key), *found] if each is not None), default)

    def _max_model_len(self) -> int:
        """Positions, or with YaRN as many as it stretches those it was trained with to, as in vLLM."""
        longest = self.number("max_position_embeddings")
        if "yarn" in (self._rope("rope_type"), self._rope("type")):
            before = self._rope("original_max_position_embeddings", longest)
            stretched = self._positive("original_max_position_embeddings", before)
            stretched *= self._positive("rope factor", self._rope("factor", 1))
            longest = max(longest, int(stretched))
        return longest

    def _windows(self, num_layers: int, max_model_len: int) -> list[int | None]:
        """Tokens that each layer's attention reaches back, None for all."""
        window = self.get("sliding_window")
        period = self.get("sliding_window_pattern", "_sliding_window_pattern")
        if self.get("use_sliding_window", default=True) is False:
            window = None
        if kinds := self._listed("layer_types", num_layers):
            windows = [self.get(_WINDOWS[kind]) if kind in _WINDOWS else None for kind in kinds]
        elif self._type == "llama4_text":
            period = self.get("no_rope_layer_interval", default=4)
            slides = self._listed("no_rope_layers", num_layers) or [
                (at + 1) % period for at in range(num_layers)
            ]
            windows = [self.number("attention_chunk_size") if each else None for each in slides]
        elif slides := self._listed("hybrid_layer_pattern", num_layers):
            windows = [window if each else None for each in slides]
        elif period and window:
            windows = [window if (at + 1) % period else None for at in range(num_layers)]
        else:
            first = self.get("max_window_layers", default=0) if self.get("use_sliding_window") else 0
            windows = [window if at >= first else None for at in range(num_layers)]
        return [each if each is not None and each < max_model_len else None for each in windows]

    def _attention(self, num_layers: int, max_model_len: int) -> dict[str, Any]:
        """Layers with a window, or kinds of layers where heads differ too."""
        windows = Counter(self._windows(num_layers, max_model_len))
        kinds, is_told = [], False
        for window, count in windows.items():
            keys = _FULL_KEYS if window is None else _SLIDING_KEYS
            heads = {ours: self.number(key) for ours, key in keys.items() if self.get(key) is not None}
            kinds.append({"num_layers": count, **({"window": window} if window else {}), **heads})
            is_told = is_told or bool(heads)
        slides = [window for window in windows if window is not None]
        if len(slides) > 1 or is_told:
            return {"attention_layers": kinds}
        return {"sliding_window": slides[0], "num_sliding_layers": windows[slides[0]]} if slides else {}

    def _expert_layers(self, num_layers: int) -> list[bool]:
        """Which layers have experts."""
        if not (self.get("has_experts") or self.get(*_NUM_EXPERTS)):
            return [False] * num_layers
        if kinds := self._listed("mlp_layer_types", num_layers):
            return [kind == "sparse" for kind in kinds]
        if numbers := self._listed("moe_layer_freq", num_layers):
            return [bool(each) for each in numbers]
        every = self.number("decoder_sparse_step", "interleave_moe_layer_step", default=1) or 1
        frequency = self.number("moe_layer_freq", default=1) or 1
        first = self.number("first_k_dense_replace", default=0)
        chosen = self.get("moe_layers", default=range(num_layers))
        dense = self.get("mlp_only_layers", default=())
        return [
            at >= first and at % frequency == 0 and (at + 1) % every == 0 and at in chosen and at not in dense
            for at in range(num_layers)
        ]

    def _experts(self, with_experts: list[bool], dense_size: int) -> dict[str, Any]:
        size = self.number("moe_intermediate_size", "intermediate_size")
        shared = self.number("n_shared_experts", default=0) * size
        shared = self.get("shared_expert_intermediate_size", "share_expert_dim", default=shared)
        experts = {
            "num_experts": self.number(*_NUM_EXPERTS),
            "num_experts_per_token": self.number("num_experts_per_tok", "top_k_experts", "experts_per_token"),
            "intermediate_size": size,
            "shared_intermediate_size": dense_size if self.get("enable_moe_block") else shared,
        }
        num_layers = sum(with_experts)
        return experts if num_layers == len(with_experts) else {**experts, "num_layers": num_layers}

    def _quantized(self, model: dict[str, Any], with_experts: list[bool]) -> tuple[dict[str, Any], list[str]]:
        """Dtypes of weights and KV cache, and sentences on what is counted otherwise."""
        given = self.get("hf_quant_config", "quantization_config")
        if not given:
            return {}, []
        quantization = Quantization(given)
        is_beside = bool(self.get("enable_moe_block"))
        modules = [
            module
            for at, has_experts in enumerate(with_experts)
            for module in modules_of(model, f"model.layers.{at}.", has_experts, is_beside)
        ]
        dtypes, notes = quantization.weight_dtypes(modules, model["dtype"])
        usual = max(dtypes, key=lambda part: sum(each.num_weights for each in modules if each.part == part))
        found: dict[str, Any] = {"weight_dtype": dtypes[usual]}
        others = {part: dtype for part, dtype in dtypes.items() if dtype != dtypes[usual]}
        if others:
            found["weight_dtypes"] = others
        kv_dtype, remarks = quantization.kv_dtype()
        return {**found, **({"kv_dtype": kv_dtype} if kv_dtype else {})}, [*notes, *remarks]


_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Kinds of `layer_types` with a window -> the key that says how long it is."""
_SLIDING_KEYS = {
    "num_heads": "swa_num_attention_heads",
    "num_kv_heads": "swa_num_key_value_heads",
    "head_size": "swa_head_dim",
    "value_head_size": "swa_v_head_dim",
}
_FULL_KEYS = {
    "num_kv_heads": "num_global_key_value_heads",
    "head_size": "global_head_dim",
    "value_head_size": "v_head_dim",
}
"""Keys of `AttentionLayers` -> keys that give layers with a window, or without one, heads of their own."""


def _name_of(path: Path) -> str:
    """`Qwen3-8B` for `Qwen3-8B/config.json`, and in Hugging Face's cache of `models--Qwen--Qwen3-8B`."""
    if path.name != CONFIG:
        return path.stem.removesuffix("_config")
    folder = path.resolve().parent
    return folder.parent.parent.name.rpartition("--")[2] if folder.parent.name == "snapshots" else folder.name
