"""Models and GPUs: parameter counts against the published ones, sizes by hand, mistakes refused."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from cbsim.specs import GpuSpec, ModelSpec

CONFIGS = Path(__file__).parents[2] / "configs"


def load_model(name: str) -> ModelSpec:
    return ModelSpec.model_validate(yaml.safe_load((CONFIGS / "models" / f"{name}.yaml").read_text()))


def load_gpu(name: str) -> GpuSpec:
    return GpuSpec.model_validate(yaml.safe_load((CONFIGS / "gpus" / f"{name}.yaml").read_text()))


def test_parameters_tensor_by_tensor():
    """The count of Qwen3-0.6B from the shapes of its tensors: per-head norms, tied head."""
    model = load_model("qwen3-0.6b")
    layer = [
        (1024,),  # input norm
        (16 * 128, 1024),
        (8 * 128, 1024),
        (8 * 128, 1024),
        (128,),  # query norm
        (128,),  # key norm
        (1024, 16 * 128),
        (1024,),  # norm before the MLP
        (3072, 1024),
        (3072, 1024),
        (1024, 3072),
    ]
    count = 0
    for shape in layer * 28 + [(151936, 1024), (1024,)]:
        size = 1
        for extent in shape:
            size *= extent
        count += size
    assert model.num_parameters == count


def test_kv_bytes_by_hand():
    """Llama-3-8B: 32 layers x 2 x 8 heads x 128 x 2 bytes = 128 KiB a token; Llama-2-7B: 512."""
    assert load_model("llama-3-8b").kv_bytes_per_token == 131_072
    assert load_model("llama-2-7b").kv_bytes_per_token == 524_288
    assert load_model("qwen3-8b").kv_bytes_per_token == 147_456


def test_flop_by_hand():
    model = load_model("llama-3-8b")
    assert model.dense_flop_per_token == 2 * 32 * 218_103_808
    assert model.logits_flop == 2 * 4096 * 128_256
    (kind,) = model.attention_kinds
    assert kind.num_layers * kind.flop_per_pair == 4 * 32 * 32 * 128


@pytest.mark.parametrize("path", sorted((CONFIGS / "models").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_model_file_names_itself_and_its_source(path):
    model = load_model(path.stem)
    assert model.name == path.stem
    assert model.sources


@pytest.mark.parametrize("path", sorted((CONFIGS / "gpus").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_gpu_figure_has_a_source(path):
    gpu = load_gpu(path.stem)
    assert gpu.name == path.stem
    figures = {name for name, figure in gpu if figure is not None} - {"name", "sources"}
    assert figures <= gpu.sources.keys()


def test_gpu_units_are_decimal_for_rates_and_binary_for_memory():
    gpu = load_gpu("h200")
    assert gpu.memory_bytes_per_s == 4.8e12
    assert gpu.peak_flop_per_s("bfloat16") == 989.4e12
    assert gpu.peak_flop_per_s("fp8") == 1978.9e12
    assert gpu.peak_flop_per_s("float32") == 67e12
    # torch sees a little less than the 143,771 MiB of nvidia-smi.
    assert gpu.memory_bytes == pytest.approx(143_771 * 2**20, rel=5e-3)
    assert load_gpu("a100-80g").peak_flop_per_s("fp8") == 312e12


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_heads", 30, "multiple of num_kv_heads"),
        ("num_layers", 0, "greater than or equal to 1"),
        ("num_layers", 32.5, "integer"),
        ("num_layerz", 32, "not permitted"),
        ("rope_theta", float("nan"), "finite"),
    ],
)
def test_mistakes_are_refused(key, value, message):
    figures = load_model("llama-3-8b").model_dump() | {key: value}
    with pytest.raises(ValidationError, match=message):
        ModelSpec.model_validate(figures)
