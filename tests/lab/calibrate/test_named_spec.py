"""Which GPU of `configs/gpus` a device is, by what it calls itself."""

import json

import pytest

from calibration.variants import load_variant, variant_name
from cbsim.base.errors import CalibrationError
from cbsim.lab.calibrate.named_spec import gpu_of_device, load_gpu, load_model


@pytest.mark.parametrize(
    ("device", "gpu"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtxpro6000"),
        ("NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA L4", "l4"),
        ("Tesla T4", "t4"),
        ("AMD Instinct MI300X", "mi300x"),
        # The same chip with less memory, bandwidth or power, or another chip.
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A100-PCIE-40GB", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H20-3e", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA L40", None),
        ("AMD EPYC 7763", None),
        ("", None),
    ],
)
def test_devices(device: str, gpu: str | None) -> None:
    assert gpu_of_device(device) == gpu


def test_files_and_names(tmp_path) -> None:
    assert load_gpu("h200").name == "h200"
    with pytest.raises(CalibrationError, match="no model 'llama-3-8'; did you mean 'llama-3-8b'"):
        load_model("llama-3-8")
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nnum_layers: 0\n")
    with pytest.raises(CalibrationError) as caught:
        load_model(str(path))
    assert f"{path}: num_layers: Input should be greater than or equal to 1" in caught.value.problems
    assert f"{path}: hidden_size: Field required" in caught.value.problems


def test_a_model_of_hugging_face(tmp_path) -> None:
    config = {"model_type": "phi3", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128}
    config |= {"num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 256}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_model(str(tmp_path)) == load_model(str(tmp_path / "config.json"))
    assert load_model(str(tmp_path)).num_kv_heads == 4


def test_variants_of_a_model() -> None:
    for text, dtypes, name in (
        ("tiny", (None, None), "tiny"),
        ("tiny:fp8", ("fp8", None), "tiny-fp8"),
        ("tiny:fp8:fp8", ("fp8", "fp8"), "tiny-fp8-kv-fp8"),
        ("tiny:float32", ("float32", None), "tiny"),
    ):
        model = load_variant(text)
        assert (model.name, model.weight_dtype, model.kv_dtype) == ("tiny", *dtypes)
        assert variant_name(model) == name
    with pytest.raises(CalibrationError, match="model 'tiny:fp8:fp8:fp8': expected NAME, NAME:WEIGHTS or"):
        load_variant("tiny:fp8:fp8:fp8")
    with pytest.raises(CalibrationError, match="weight_dtype: "):
        load_variant("tiny:fp7")
