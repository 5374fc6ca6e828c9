"""Quantization: from what a checkout of Hugging Face says of it to the dtype of each kind of weights."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cbsim.base.errors import ConfigError
from cbsim.specs.precision import WeightDtype

SCHEMES: dict[str, WeightDtype] = {
    **dict.fromkeys(("fp8", "fbgemm_fp8", "fp8_pc_pt"), "fp8"),
    "fp8_pb_wo": "fp8_block",
    **dict.fromkeys(("int8", "w8a8_sq_per_channel"), "int8"),
    **dict.fromkeys(("int4", "awq", "w4a16_awq", "w4a8_awq"), "int4"),
    "mxfp4": "mxfp4",
    **dict.fromkeys(("nvfp4", "nvfp4_awq"), "nvfp4"),
}
"""Names that `quant_method` and `quant_algo` give to what is modelled."""
BY_BITS: dict[tuple[str, int], WeightDtype] = {
    ("float", 8): "fp8",
    ("float", 4): "mxfp4",
    ("int", 8): "int8",
    ("int", 4): "int4",
}
"""By type and bits, as compressed-tensors, modelopt, GPTQ and AutoRound have them."""
_SAME_MODULE = (
    (r"\blanguage_model\.", ""),
    (r"\b(block_sparse_moe|feed_forward|ffn)\b", "mlp"),
    (r"\bshared_expert\b", "shared_experts"),
)
"""Other names of modules, and those that we give them."""


class Module(NamedTuple):
    """A weight matrix of one layer, by the name that quantization knows it by."""

    part: str
    """The kind of weights that it belongs to, as in `ModelSpec.weight_dtypes`."""
    name: str
    num_weights: int


class Quantization:
    """What `quantization_config`, or the `quantization` of `hf_quant_config.json`, says.

    Raises `ConfigError` for a method that is not modelled.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._kv: Any = given.get("kv_cache_quant_algo") or given.get("kv_cache_scheme")
        left_out = [given.get(key) or [] for key in ("modules_to_not_convert", "ignore", "exclude_modules")]
        self._left_out = _pattern(name for names in left_out for name in names)
        self._rules = [(_pattern(names), dtype) for dtype, names in _targets(given).items()]

    def weight_dtypes(self, modules: Sequence[Module], usual: str) -> tuple[dict[str, str], list[str]]:
        """The dtype of each part, and sentences on what is counted otherwise than it is stored.

        A part takes the dtype of most of its weights; `usual` is that of what is not quantized.
        """
        stored: dict[str, Counter[str]] = defaultdict(Counter)
        for module in modules:
            stored[module.part][self._dtype(module.name) or usual] += module.num_weights
        notes = []
        for part, dtypes in stored.items():
            (most, _), *others = dtypes.most_common()
            notes += [
                f"quantization: {count / dtypes.total():.0%} of the weights of {part} are {dtype}, counted "
                f"as {most}"
                for dtype, count in others
            ]
        found = {part: dtypes.most_common(1)[0][0] for part, dtypes in stored.items()}
        return found, notes

    def kv_dtype(self) -> tuple[str | None, list[str]]:
        """The dtype of the KV cache where it is quantized, and a sentence if that is not modelled."""
        kv = self._kv
        bits = kv.get("num_bits") if isinstance(kv, dict) else None
        if not kv:
            return None, []
        if str(kv).lower() == "fp8" or (bits == 8 and kv.get("type") == "float"):
            return "fp8", []
        return None, [f"quantization: a KV cache of {kv}"]

    def _dtype(self, name: str) -> WeightDtype | None:
        if self._left_out.search(name):
            return None
        return next((dtype for pattern, dtype in self._rules if pattern.search(name)), None)


def _targets(given: Mapping[str, Any]) -> dict[WeightDtype, list[str]]:
    """The modules that are quantized to each dtype."""
    targets: dict[WeightDtype, list[str]] = defaultdict(list)
    if given.get("quantized_layers"):
        for name, scheme in given["quantized_layers"].items():
            targets[_dtype(scheme)].append(name)
    elif given.get("config_groups"):
        for group in given["config_groups"].values():
            targets[_dtype(group["weights"])] += group.get("targets") or ["Linear"]
    else:
        targets[_dtype(given)] = ["Linear"]
    return targets


def _dtype(scheme: Mapping[str, Any]) -> WeightDtype:
    """The dtype that a scheme by name, or by bits, stands for."""
    bits = scheme.get("num_bits") or scheme.get("bits") or scheme.get("w_bit")
    names = [str(scheme.get(key, "")).lower() for key in ("quant_algo", "quant_method")]
    found = next((SCHEMES[name] for name in names if name in SCHEMES), None)
    if found is None and bits:
        found = BY_BITS.get((scheme.get("type", "int"), bits))
    if found == "int4" and bits == 8:
        found = "int8"
    group = scheme.get("group_size") or 0
    if found == "mxfp4" and group == 16:
        found = "nvfp4"
    if found == "int4" and 0 < group < 64:
        found = "int4_block"
    if found == "fp8" and (scheme.get("weight_block_size") or scheme.get("block_structure")):
        found = "fp8_block"
    if found is None:
        said = next((name for name in names if name), f"{bits} bits")
        raise ConfigError(
            f"quantization '{said}' is not modelled; known: {', '.join(SCHEMES)}, gptq, compressed-tensors, "
            "modelopt"
        )
    return found


def _pattern(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds the modules named, with what lies below them.

    A name is one or more steps of the way to a module (`gate`, `model.layers.0.mlp`), `*` in it any text;
    after `re:` a regular expression for the whole way; `Linear` means every module.
    """
    found = []
    for name in names:
        if name == "Linear":
            return re.compile("")
        if name.startswith("re:"):
            found.append(f"^(?:{name[3:]})")
            continue
        for other, ours in _SAME_MODULE:
            name = re.sub(other, ours, name)
        steps = re.escape(name).replace(r"\*", ".*")
        found.append(rf"(?:^|\.){steps}(?:\.|$)")
    return re.compile("|".join(found) or "(?!)")


def modules_of(model: Mapping[str, Any], at: str, has_experts: bool, is_beside: bool) -> list[Module]:
    """The weight matrices of the layer `at`, of a model in the keys of ModelSpec.

    One stands for a whole MLP, and for all experts. `is_beside`: the experts lie beside an MLP, not in it.
    """
    hidden, heads, size = model["hidden_size"], model["num_heads"], model["head_size"]
    mla, experts = model.get("mla"), model.get("experts", {})
    if mla:
        latent, values, narrow = mla["kv_lora_rank"], heads * mla["v_head_dim"], mla.get("q_lora_rank")
        attention = {
            "kv_a_proj_with_mqa": hidden * (latent + mla["qk_rope_head_dim"]),
            "kv_b_proj": latent * (heads * mla["qk_nope_head_dim"] + values),
            "o_proj": hidden * values,
        }
        queries = {"q_a_proj": hidden * narrow, "q_b_proj": narrow * heads * size} if narrow else {}
        attention |= queries or {"q_proj": hidden * heads * size}
    else:
        attention = dict.fromkeys(("q_proj", "o_proj"), hidden * heads * size)
        attention |= dict.fromkeys(("k_proj", "v_proj"), hidden * model["num_kv_heads"] * size)
    modules = [Module("attention", f"{at}self_attn.{name}", number) for name, number in attention.items()]
    if not has_experts:
        return [*modules, Module("mlp", f"{at}mlp.down_proj", 3 * hidden * model["intermediate_size"])]
    routed = 3 * hidden * experts["intermediate_size"] * experts["num_experts"]
    shared = 3 * hidden * experts["shared_intermediate_size"]
    names = ("experts", "mlp") if is_beside else ("mlp.experts", "mlp.shared_experts")
    modules.append(Module("experts", f"{at}{names[0]}.0.down_proj", routed))
    return [*modules, Module("shared_experts", f"{at}{names[1]}.down_proj", shared)] if shared else modules
