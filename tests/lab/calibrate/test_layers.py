"""Layer timings of another profiler: what a layer adds up to, and every way a file can be wrong."""

from dataclasses import replace
from datetime import date

import pytest

from calibration.recorded_runs import PRODUCTS
from cbsim.base.errors import CalibrationError
from cbsim.lab.calibrate.layers import THEORY, LayerTimings
from cbsim.lab.calibrate.point import Point
from cbsim.specs import ModelSpec
from tests.specs.test_specs import load_gpu, load_model

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


def test_ops_of_the_servers_libraries_stand_in_place_of_the_layers_own(tmp_path):
    """At the layers' own token counts, where both were timed."""
    products = tmp_path / "products.csv"
    products.write_text("layer,tokens,time_us\nqkv_proj,4,52\nqkv_proj,12,60\n")
    said = replace(timings(tmp_path, dense=DENSE + "layernorm,9,3\nembedding,9,6.4\n"), products=products)
    dense = {point.tokens: point.t_median_s for point in said.points() if point.op == "dense"}
    assert dense == pytest.approx({8: 61.2e-6, 9: 63.2e-6})
    meta = said.meta("them", date(2026, 1, 1))
    assert "--products products.csv" in meta.command
    assert "qkv_proj are those of products.csv" in meta.warnings
    products.write_text("layer,tokens,time_us\nqkv_prj,4,52\n")
    with pytest.raises(CalibrationError, match=r"no op 'qkv_prj' in .*dense.csv; did you mean 'qkv_proj'"):
        replace(said, products=products).points()


@pytest.mark.parametrize("products", PRODUCTS.values(), ids=lambda path: path.stem)
def test_shipped_products_replace_ops_of_a_layer(tmp_path, products):
    """Of weights that memory holds: no faster than its bandwidth allows."""
    ops = {"qkv_proj": 6144 * 4096, "o_proj": 4096 * 4096, "down_proj": 4096 * 14_336}
    dense = "".join(f"{op},{tokens},9\n" for op in ops for tokens in (1, 64, 128, 2048))
    said = replace(timings(tmp_path, dense=f"layer,tokens,time_us\n{dense}"), products=products)
    taken = {point.tokens: point.t_median_s for point in said.points() if point.op == "dense"}
    assert set(taken) == {1, 64, 128, 2048}
    assert min(taken.values()) > 2 * sum(ops.values()) / said.gpu.memory_bytes_per_s
    assert taken[2048] > 2 * sum(ops.values()) * 2048 / said.gpu.peak_flop_per_s("bfloat16")


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


@pytest.mark.parametrize(("context", "stands_for"), [(60, 60), (127, 127), (128, 192), (1024, 1088)])
def test_beside_chunks_keys_are_read_by_blocks(tmp_path, context, stands_for):
    """1,024 tokens and the one computed now take nine blocks, as contexts of 1,088 do that end anywhere:
    known where unequal contexts were timed.
    """
    attention = ATTENTION + f"512,0,4,{context},90\n0,0,4,{context},20\n"
    plain = timings(tmp_path, attention=attention)
    *_, untouched, alone = plain.points()
    assert untouched.max_decode_context == alone.max_decode_context == context
    skew = tmp_path / "skew.csv"
    skew.write_text(SKEW)
    *_, mixed, alone, _, _ = replace(plain, skew=skew).points()
    assert (mixed.decode_context, mixed.max_decode_context) == (4 * stands_for, stands_for)
    assert (alone.decode_context, alone.max_decode_context) == (4 * context, context)


SKEW = """regime,n,nb,ratio,skew,pc,kp,kvs,kv_big,kv_mean,t_mean_us,t_max_us,t_skew_us,alpha
pure,4,1,0.25,4,0,0,256,1024,448,30,80,36,0.1
mixed,4,2,0.5,4,512,1000,256,1024,640,130,180,140,0.2
"""


def with_skew(folder, text: str = SKEW) -> LayerTimings:
    path = folder / "skew.csv"
    path.write_text(text)
    return replace(timings(folder), skew=path)


def test_unequal_contexts_stand_beside_equal_ones(tmp_path):
    """Launch by launch: the sum of contexts, the longest, how many have it, and both times."""
    said = with_skew(tmp_path)
    alone, mixed = said.points()[-2:]
    assert (alone.op, alone.chunks, alone.num_decodes, alone.decode_context) == ("unequal", (), 4, 1792)
    assert (alone.max_decode_context, alone.num_longest) == (1024, 1)
    assert (alone.t_median_s, alone.t_equal_s) == pytest.approx((36e-6, 30e-6))
    assert (mixed.chunks, mixed.decode_context, mixed.num_longest) == (((512, 1000),), 2560, 2)
    meta = said.meta("a profiler", date(2026, 1, 2))
    assert "--skew skew.csv" in meta.command
    assert meta.assumptions == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            SKEW.replace("t_mean_us", "mean"),
            "column t_mean_us is missing among .*--column t_mean",
        ),
        (SKEW.replace("kvs,", "short,"), "column kv_others is missing among"),
        (SKEW.replace("pure,4,1,", "pure,4,4,").replace("4,2,0.5", "4,0,0.5"), "no launch in which some"),
        (SKEW.replace(",36,", ",-36,"), r"skew.csv:2: t_skew_us: got -36; allowed: a time from 1e-06"),
    ],
)
def test_skews_that_say_nothing(tmp_path, text, message):
    with pytest.raises(CalibrationError, match=message):
        with_skew(tmp_path, text).points()


def test_where_they_come_from(tmp_path):
    meta = timings(tmp_path).meta("somebody's profiler", date(2026, 1, 2))
    assert (meta.gpu, meta.date, meta.source) == ("rtxpro6000", "2026-01-02", "somebody's profiler")
    assert "--attention attention.csv" in meta.command


def test_usual_names_and_units_are_understood(tmp_path):
    """The same timings as another profiler writes them, repeats and a p90 included."""
    renamed = timings(
        tmp_path,
        dense=DENSE.replace("layer,tokens,time_us", "Op,Num Tokens,Latency (us)"),
        per_sequence="batch_size,op,median_ms,p90_ms\n"
        "1,lm_head,0.7,9\n1,sampler,0.024,9\n1,sampler,0.025,9\n1,sampler,0.4,9\n"
        "2,lm_head,0.71,9\n2,sampler,0.026,9\n",
        attention=ATTENTION.replace(
            "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us",
            "chunk_size,prefill_context,num_decodes,decode_kv_len,us",
        ),
    ).points()
    expected = timings(tmp_path).points()
    assert [point.shape for point in renamed] == [point.shape for point in expected]
    assert [point.t_median_s for point in renamed] == pytest.approx([point.t_median_s for point in expected])


def test_names_nobody_knows_can_be_said(tmp_path):
    changed = {"dense": DENSE.replace("tokens", "T").replace("layernorm", "gain")}
    with pytest.raises(CalibrationError, match=r"column tokens is missing among layer, T, time_us.*--column"):
        timings(tmp_path, **changed).points()
    said = replace(timings(tmp_path, **changed), columns={"tokens": "T"}, ops={"gain": "twice"})
    assert said.points() == timings(tmp_path).points()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"columns": {"tokens": "tokns"}}, "no column 'tokns' for tokens; did you mean 'tokens'"),
        ({"columns": {"time": "layer"}}, "column layer has no unit at its end"),
        ({"ops": {"layernrom": "twice"}}, "no op 'layernrom'; did you mean 'layernorm'"),
    ],
)
def test_what_is_said_must_be_there(tmp_path, said, message):
    with pytest.raises(CalibrationError, match=message):
        replace(timings(tmp_path), **said).points()


def test_an_op_that_lacks_a_size_is_interpolated(tmp_path):
    dense = "layer,tokens,time_us\na,1,10\na,3,20\na,9,50\nb,1,100\nb,9,180\n"
    points = timings(tmp_path, dense=dense).points()
    seconds = {point.tokens: point.t_median_s for point in points if point.op == "dense"}
    assert seconds == pytest.approx({1: 110e-6, 3: 140e-6, 9: 230e-6})


def test_a_head_among_the_dense_ops_counts_by_rows(tmp_path):
    """And attention among them, which has its own table, not at all."""
    dense = DENSE + "lm_head,1,700\nlm_head,8,720\nattention,1,5000\nattention,8,9000\n"
    alone = replace(timings(tmp_path, dense=dense), per_sequence=None).points()
    dense_points = [point for point in timings(tmp_path).points() if point.op == "dense"]
    assert [point for point in alone if point.op == "dense"] == dense_points
    logits = {point.num_logits: point.t_median_s for point in alone if point.op == "logits"}
    assert logits == pytest.approx({1: 700e-6, 8: 720e-6})
    with pytest.raises(CalibrationError, match="no LM head in it"):
        replace(timings(tmp_path), per_sequence=None).points()


def test_all_reduces_that_were_not_timed_are_estimated(tmp_path):
    """Ring: 2 (n - 1) / n of 8 x 4096 bf16 numbers over what PCIe measures, 15 GB/s and 8.7 us, twice in each
    of 32 layers and once for the embedding.
    """
    two = replace(timings(tmp_path), tensor_parallel=2)
    seconds = {point.tokens: point.t_median_s for point in two.points() if point.op == "collectives"}
    assert seconds[8] == pytest.approx(65 / 32 * (8.7e-6 + 8 * 4096 * 2 / 15e9))
    meta = two.meta("x", date(2026, 1, 2))
    assert meta.estimates == ["collectives"]
    assert meta.assumptions[0].startswith(
        "all-reduces of 2 GPUs were NOT TIMED: estimated by the link's measured 15 GB/s and 8.70 us each, "
        "of a layer outside attention 37 % at 8 tokens; over PCIe measured ones took 0.4 to 10 times"
    )
    assert "--collectives-of vllm" in meta.assumptions[0]
    timed = {"dense": DENSE + "all_reduce,1,12\nall_reduce,8,13\n"}
    assert replace(timings(tmp_path, **timed), tensor_parallel=2).meta("x", date(2026, 1, 2)).assumptions == [
        THEORY
    ]


def test_all_reduces_of_another_source_take_the_place_of_the_estimate(tmp_path):
    reduces = (Point("collectives", 2e-5, tokens=1), Point("collectives", 9e-5, tokens=512))
    two = replace(timings(tmp_path), tensor_parallel=2, reduces=reduces, reduces_source="vllm/0.19.0")
    assert tuple(point for point in two.points() if point.op == "collectives") == reduces
    meta = two.meta("x", date(2026, 1, 2))
    assert meta.assumptions == [THEORY]
    assert meta.estimates == []
    assert meta.command.endswith("--collectives-of vllm/0.19.0")
    timed = timings(tmp_path, dense=DENSE + "all_reduce,1,12\nall_reduce,8,13\n")
    with pytest.raises(CalibrationError, match=r"collectives were timed there; take those of vllm/0.19.0 or"):
        replace(timed, tensor_parallel=2, reduces=reduces, reduces_source="vllm/0.19.0").points()


def test_experts_and_collectives_are_points_of_their_own(tmp_path):
    """Experts in three of four layers; an all-reduce twice a layer, an all-to-all once."""
    model = ModelSpec.model_validate(
        {
            **load_model("llama-3-8b").model_dump(),
            "num_layers": 4,
            "experts": {
                "num_experts": 8,
                "num_experts_per_token": 2,
                "intermediate_size": 14_336,
                "num_layers": 3,
            },
        }
    )
    dense = DENSE + "all_reduce,1,10\nall_reduce,8,20\nAllToAll-dispatch,1,1\nAllToAll-dispatch,8,2\n"
    with pytest.raises(CalibrationError, match="no routed experts in it; --op NAME=experts"):
        replace(timings(tmp_path, dense=dense), model=model).points()
    dense += "block_sparse,1,400\nblock_sparse,8,800\n"
    own = replace(
        timings(tmp_path, dense=dense), model=model, tensor_parallel=2, ops={"block_sparse": "experts"}
    )
    seconds = {(point.op, point.tokens): point.t_median_s for point in own.points()}
    assert seconds["experts", 8] == pytest.approx(0.75 * 800e-6)
    assert seconds["collectives", 8] == pytest.approx(2 * 20e-6 + 2e-6)
    assert "once a layer with experts: block_sparse" in own.meta("x", date(2026, 1, 2)).warnings[0]


def test_experts_and_collectives_in_files_of_their_own(tmp_path):
    """All-reduces by bytes run twice a layer, at the tokens that their sizes stand for: 8,192 bytes each."""
    moe, collectives = tmp_path / "moe.csv", tmp_path / "collectives.csv"
    moe.write_text("tokens,time_us\n1,100\n64,300\n")
    collectives.write_text("message_bytes,time_us\n8192,10\n16384,12\n1048576,50\n")
    experts = {"num_experts": 8, "num_experts_per_token": 2, "intermediate_size": 14_336}
    model = ModelSpec.model_validate({**load_model("llama-3-8b").model_dump(), "experts": experts})
    own = replace(timings(tmp_path), model=model, tensor_parallel=2, moe=moe, collectives=collectives)
    seconds = {(point.op, point.tokens): point.t_median_s for point in own.points()}
    assert seconds["experts", 64] == pytest.approx(300e-6)
    assert {size: seconds["collectives", size] for size in (1, 2, 128)} == pytest.approx(
        {1: 20e-6, 2: 24e-6, 128: 100e-6}
    )
    meta = own.meta("x", date(2026, 1, 2))
    assert "--moe moe.csv --collectives collectives.csv" in meta.command
    assert meta.assumptions == [THEORY]
    collectives.write_text("tokens,time_us\n1,10\n64,30\n")
    assert {p.tokens: p.t_median_s for p in own.points() if p.op == "collectives"} == pytest.approx(
        {1: 10e-6, 64: 30e-6}
    )
    collectives.write_text("tkens,time_us\n1,10\n")
    with pytest.raises(CalibrationError, match="column tokens is missing among tkens"):
        own.points()


def test_timings_that_can_not_be_are_told(tmp_path):
    """436 MB of weights can't be read in 34 us: an op is missing. In 34 ns: the unit is another."""
    warnings = timings(tmp_path).meta("x", date(2026, 1, 2)).warnings
    assert any(
        "a layer outside attention, 1 tokens: 0.0341 ms, but at least 0.27" in line for line in warnings
    )
    assert "twice a layer: layernorm; once a step: embedding" in warnings[0]
    wrong = {"dense": DENSE.replace("time_us", "time_ns")}
    with pytest.raises(CalibrationError, match="is the unit of time another"):
        timings(tmp_path, **wrong).meta("x", date(2026, 1, 2))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"dense": "what,tokens,time_us\n"},
            "column layer is missing among what, tokens, time_us; expected layer",
        ),
        ({"dense": ""}, "dense.csv: got an empty file; allowed: a CSV header"),
        ({"dense": DENSE.splitlines()[0]}, "dense.csv: holds no timings"),
        (
            {"attention": ATTENTION + "0,0,4,100,0\n"},
            "attention.csv:6: time_us: got 0; allowed: a time from 1e-06 to 3.6e",
        ),
        (
            {"attention": ATTENTION + "0,0,-4,100,9\n"},
            "attention.csv:6: n_decode: got -4; allowed: a whole number from 0",
        ),
        (
            {"per_sequence": PER_SEQUENCE + "sampler,4,soon\n"},
            "per_sequence.csv:6: time_us: got soon; allowed",
        ),
    ],
)
def test_mistakes(tmp_path, changed, message):
    with pytest.raises(CalibrationError, match=message):
        timings(tmp_path, **changed).points()
