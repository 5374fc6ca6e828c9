"""Layer timings of another profiler: what a layer adds up to, and every way a file can be wrong."""

from datetime import date

import pytest

from cbsim.calibrate.layers import LayerTimings
from cbsim.errors import CalibrationError
from tests.test_specs import load_gpu, load_model

DENSE = """layer,tokens,time_us
qkv_proj,1,30
layernorm,1,2
embedding,1,3.2
qkv_proj,8,40
layernorm,8,2.5
embedding,8,6.4
qkv_proj,9,41
"""
PER_SEQUENCE = "layer,sequences,time_us\nlm_head,1,700\nsampler,1,25\nlm_head,2,710\nsampler,2,26\n"
ATTENTION = """prefill_chunk,kv_prefill,n_decode,kv_decode,time_us
0,0,4,100,12
512,1000,0,0,80
512,1000,4,100,100
0,0,128,16384,5654
"""


def timings(folder, **changed) -> LayerTimings:
    texts = {"dense": DENSE, "per_sequence": PER_SEQUENCE, "attention": ATTENTION} | changed
    paths = {name: folder / f"{name}.csv" for name in texts}
    for name, text in texts.items():
        paths[name].write_text(text)
    return LayerTimings(**paths, model=load_model("llama-3-8b"), gpu=load_gpu("rtxpro6000"))


def test_what_a_layer_adds_up_to(tmp_path):
    """Norms run twice a layer, the embedding once in 32 layers; sizes where an op lacks say nothing."""
    dense = [point for point in timings(tmp_path).points() if point.op == "dense"]
    assert [point.tokens for point in dense] == [1, 8]
    assert [point.t_median_s for point in dense] == pytest.approx([34.1e-6, 45.2e-6])


def test_head_and_sampler_add_up(tmp_path):
    logits = [point for point in timings(tmp_path).points() if point.op == "logits"]
    assert {point.num_logits: point.t_median_s for point in logits} == pytest.approx({1: 725e-6, 2: 736e-6})


def test_attention_is_told_apart(tmp_path):
    """2 M tokens of 128 KiB are more than 96 GB hold: nothing to fit."""
    points = [point for point in timings(tmp_path).points() if point.op not in ("dense", "logits")]
    assert [(point.op, point.chunks, point.num_decodes, point.decode_context) for point in points] == [
        ("decode", (), 4, 400),
        ("prefill", ((512, 1000),), 0, 0),
        ("mixed", ((512, 1000),), 4, 400),
        ("decode", (), 128, 128 * 16_384),
    ]
    assert [point.split for point in points] == ["fit", "fit", "fit", "unseen"]
    assert points[2].t_median_s == pytest.approx(100e-6)


def test_where_they_come_from(tmp_path):
    meta = timings(tmp_path).meta("somebody's profiler", date(2026, 1, 2))
    assert (meta.gpu, meta.date, meta.source) == ("rtxpro6000", "2026-01-02", "somebody's profiler")
    assert "--attention attention.csv" in meta.command


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"dense": "op,tokens,us\n"},
            "dense.csv:1: column layer is missing; expected layer, tokens, time_us",
        ),
        ({"dense": ""}, "dense.csv: can't be read"),
        ({"attention": ATTENTION + "0,0,4,100,0\n"}, "attention.csv: expected .* times > 0 in lines 6"),
        ({"attention": ATTENTION + "0,0,-4,100,9\n"}, "expected counts >= 0 .* in lines 6"),
        ({"per_sequence": PER_SEQUENCE + "sampler,4,soon\n"}, "per_sequence.csv: expected .* in lines 6"),
    ],
)
def test_mistakes(tmp_path, changed, message):
    with pytest.raises(CalibrationError, match=message):
        timings(tmp_path, **changed).points()
