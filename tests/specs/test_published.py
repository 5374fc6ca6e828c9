"""Parameters of models against those their makers publish: shipped files, and configurations of a package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from cbsim.base.errors import ConfigError
from cbsim.specs import ModelSpec
from cbsim.specs.huggingface import read, translate


class Published(NamedTuple):
    """What a model's maker says of it."""

    total: float
    """Parameters: where whole, the tensors of the published safetensors added up; else within 1 %."""
    active: str = ""
    """Those active for a token, 1e9, with the digits that the maker gives."""
    num_tables: int = 2
    """Of embedding and LM head, how many the maker counts as active."""


PUBLISHED = {
    "llama-2-7b": Published(6_738_415_616),
    "llama-2-70b": Published(68_976_648_192),
    "llama-3-8b": Published(8_030_261_248),
    "llama-3-70b": Published(70_553_706_496),
    "llama-3.1-8b": Published(8_030_261_248),
    "llama-3.1-70b": Published(70_553_706_496),
    "llama-3.1-405b": Published(405_853_388_800),
    "llama-3.2-1b": Published(1_235_814_400),
    "llama-3.3-70b": Published(70_553_706_496),
    "llama-4-scout": Published(108.64e9, "17"),
    "llama-4-maverick": Published(401.58e9, "17"),
    "mistral-7b": Published(7_248_023_552),
    "mistral-nemo-12b": Published(12_247_782_400),
    "mistral-small-24b": Published(23_572_403_200),
    "mixtral-8x7b": Published(46_702_792_704, "12.9"),
    "mixtral-8x22b": Published(141e9, "39"),
    "qwen2.5-7b": Published(7_615_616_512),
    "qwen2.5-32b": Published(32_763_876_352),
    "qwen2.5-72b": Published(72_706_203_648),
    "qwen3-0.6b": Published(596_049_920),
    "qwen3-4b": Published(4_022_468_096),
    "qwen3-8b": Published(8_190_735_360),
    "qwen3-14b": Published(14_768_307_200),
    "qwen3-32b": Published(32_762_123_264),
    "qwen3-30b-a3b": Published(30_532_122_624, "3.3"),
    "qwen3-235b-a22b": Published(235_093_634_560, "22"),
    "qwen3-coder-480b-a35b": Published(480_154_875_392, "35"),
    "qwen3-vl-235b-a22b": Published(235.1e9, "22"),
    "gemma-2-9b": Published(9.24e9),
    "gemma-3-12b": Published(11.8e9),
    "gemma-3-27b": Published(27.0e9),
    "gemma-4-26b-a4b": Published(25.2e9, "3.8"),
    "gemma-4-31b": Published(30.7e9),
    "phi-3-mini": Published(3_821_079_552),
    "phi-4": Published(14_659_507_200),
    "deepseek-v2-lite": Published(15_706_484_224, "2.4", 1),
    "deepseek-v3": Published(671e9, "37", 1),
    "deepseek-r1": Published(671e9, "37", 1),
    "kimi-k2": Published(1.03e12, "32", 1),
    "gpt-oss-20b": Published(20.91e9, "3.61", 1),
    "gpt-oss-120b": Published(116.83e9, "5.13", 1),
    "glm-4.5": Published(355e9, "32", 0),
    "glm-4.5-air": Published(106e9, "12", 0),
    "minimax-m2": Published(230e9, "10", 0),
    "mimo-v2-flash": Published(309e9, "15"),
    "step-3.7-flash": Published(196e9, "11"),
}
"""By the beginning of a name, as in `configs/models`."""

MODELS = sorted((Path(__file__).parents[2] / "configs" / "models").glob("*.yaml"))
PACKAGE = importlib.util.find_spec("aiconfigurator_core")
OTHERS = Path(PACKAGE.origin).parent / "model_configs" if PACKAGE and PACKAGE.origin else Path("nowhere")
CONFIGS = sorted(set(OTHERS.glob("*_config.json")) - set(OTHERS.glob("*_hf_quant_config.json")))
REFUSED = {
    "linear attention (linear_num_key_heads)": ("Qwen3.5", "Qwen3.6"),
    "linear attention (linear_attn_config)": ("Kimi-K3",),
    "sparse attention (index_topk)": ("DeepSeek-V3.2", "DeepSeek-V4", "GLM-5"),
    "sparse attention (sparse_attention_config)": ("MiniMax-M3",),
    "Mamba layers (mamba_num_heads)": ("Nemotron-3", "Nemotron-3.5", "Nemotron-H"),
    "layers that differ one by one (block_configs)": ("Llama-3_3-Nemotron-Super-49B",),
}
"""Reason -> the models of the package that are refused for it."""


def check(model: ModelSpec, name: str) -> bool:
    """Hold a model against what is published; whether anything is."""
    known = [key for key in PUBLISHED if name.startswith(key)]
    if not known:
        return False
    published = PUBLISHED[max(known, key=len)]
    assert model.num_parameters == pytest.approx(published.total, rel=0.01)
    assert isinstance(published.total, float) or model.num_parameters == published.total
    if published.active:
        # Some round and some cut: a unit of the last digit either way, or 1 %.
        unit = 10.0 ** -len(published.active.partition(".")[2])
        table = model.vocab_size * model.hidden_size
        num_active = model.num_active_parameters - (2 - published.num_tables) * table
        active = float(published.active)
        assert num_active / 1e9 == pytest.approx(active, abs=unit / 2 if active > 30 else unit, rel=0.01)
    return True


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_shipped_model_has_as_many_parameters_as_published(path: Path) -> None:
    model = ModelSpec.model_validate(yaml.safe_load(path.read_text()))
    assert check(model, path.stem) or path.stem.startswith("tiny")


def test_quantized_weights_weigh_what_their_files_do() -> None:
    """Total sizes of the published safetensors, which hold 4-bit experts with their scales."""
    for name, num_bytes in (("gpt-oss-20b", 13.76e9), ("gpt-oss-120b", 65.25e9)):
        path = next(path for path in MODELS if path.stem == name)
        model = ModelSpec.model_validate(yaml.safe_load(path.read_text()))
        assert model.weight_bytes == pytest.approx(num_bytes, rel=0.01)


@pytest.mark.skipif(not CONFIGS, reason="aiconfigurator-core is not installed")
@pytest.mark.parametrize("path", CONFIGS or [Path("none")], ids=lambda path: path.name)
def test_a_configuration_is_read_or_refused_in_one_line(path: Path) -> None:
    name = path.name.partition("--")[2].removesuffix("_config.json")
    reason = next((why for why, names in REFUSED.items() if any(each in name for each in names)), None)
    if reason is not None:
        with pytest.raises(ConfigError, match=r"^[A-Za-z0-9_]+ can't be modelled: ") as refused:
            translate(read(path))
        assert refused.value.problems[0].endswith(reason)
        assert len(refused.value.problems) == 1
        return
    model = ModelSpec.model_validate(translate(read(path)))
    known = check(model, name.lower().removeprefix("meta-"))
    assert known or name.startswith(("MiMo-7B", "Qwen3-1.7B", "Qwen3-VL"))
    is_quantized = "quantization_config" in path.read_text()
    assert (model.weight_dtype is not None) == (is_quantized or "NVFP4" in name or "FP8" in name)


@pytest.mark.skipif(not CONFIGS, reason="aiconfigurator-core is not installed")
def test_shipped_models_are_what_their_configurations_say() -> None:
    shipped = {
        "deepseek-v3": "deepseek-ai--DeepSeek-V3",
        "gpt-oss-120b": "openai--gpt-oss-120b",
        "kimi-k2": "moonshotai--Kimi-K2-Instruct",
        "llama-3.1-70b": "meta-llama--Meta-Llama-3.1-70B",
        "mixtral-8x7b": "mistralai--Mixtral-8x7B-v0.1",
        "qwen3-8b": "Qwen--Qwen3-8B",
        "qwen3-235b-a22b": "Qwen--Qwen3-235B-A22B",
    }
    for name, config in shipped.items():
        path = next(path for path in MODELS if path.stem == name)
        ours = ModelSpec.model_validate(yaml.safe_load(path.read_text()))
        theirs = ModelSpec.model_validate(translate(read(OTHERS / f"{config}_config.json")))
        assert theirs.model_copy(update={"name": name, "sources": ours.sources}) == ours
