"""points.csv: what is written is read, and every mistake in it is named with its line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.base.errors import CalibrationError
from cbsim.lab.calibrate.point import OPS, Point
from cbsim.lab.calibrate.pointsfile import USUAL_COLUMNS, append_point, read_points, write_points

HEADER = "op,chunks,B,KV,Kmax,T,S,t_median_s"
SECONDS = "allowed: seconds of one kernel or step, more than 0, at most 3,600"
SIZE = "allowed: a whole number from 0 to 100,000,000"
CHUNKS = "allowed: TOKENS+CONTEXT;..., each at most 100,000,000"


@st.composite
def points(draw) -> Point:
    op = draw(st.sampled_from(["dense", "logits", "prefill", "decode", "mixed"]))
    count = st.integers(1, 100_000)
    batch = draw(st.integers(1, 512)) if op in ("decode", "mixed") else 0
    context = draw(st.integers(1, 4096)) if batch else 0
    chunk = st.tuples(count, st.integers(0, 100_000))
    chunks = draw(st.lists(chunk, min_size=1, max_size=3)) if op in ("prefill", "mixed") else []
    return Point(
        op,
        draw(st.floats(1e-6, 10.0)),
        chunks=tuple(chunks),
        num_decodes=batch,
        decode_context=batch * context,
        max_decode_context=context,
        tokens=draw(count) if op == "dense" else 0,
        num_logits=draw(count) if op == "logits" else 0,
        graph=draw(st.booleans()),
        l2=draw(st.sampled_from(["cold", "warm"])),
        t_min_s=1e-6,
        t_p90_s=1e-5,
        order=draw(count),
        seed=draw(st.sampled_from([0, 2**62])),
        split=draw(st.sampled_from(["fit", "repeat", "unseen", "warm"])),
    )


@settings(max_examples=30, deadline=None)
@given(written=st.lists(points(), min_size=1, max_size=8))
def test_round_trip(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("points") / "points.csv"
    write_points(path, written)
    read = read_points(path)
    assert [point.key for point in read] == [point.key for point in written]
    for one, other in zip(read, written, strict=True):
        assert one.t_median_s == pytest.approx(other.t_median_s, rel=1e-5)
        assert (one.split, one.graph, one.l2, one.order, one.seed) == (
            other.split,
            other.graph,
            other.l2,
            other.order,
            other.seed,
        )
    assert [entry.name for entry in path.parent.iterdir()] == ["points.csv"]


def test_rows_are_appended_under_one_header(tmp_path):
    path = tmp_path / "points.csv"
    for tokens in (1, 2, 3):
        append_point(path, Point("dense", 1e-4, tokens=tokens))
    assert path.read_text().startswith(",".join(USUAL_COLUMNS) + "\n")
    assert [point.tokens for point in read_points(path)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("dense,,0,0,0,5,0,0", f"t_median_s: got 0; {SECONDS}"),
        ("dense,,0,0,0,5,0,-1e-3", f"t_median_s: got -1e-3; {SECONDS}"),
        ("dense,,0,0,0,5,0,nan", f"t_median_s: got nan; {SECONDS}"),
        ("dense,,0,0,0,5,0,inf", f"t_median_s: got inf; {SECONDS}"),
        ("dense,,0,0,0,5,0,soon", f"t_median_s: got soon; {SECONDS}"),
        ("dense,,0,0,0,5,0,", f"t_median_s: got nothing; {SECONDS}"),
        ("dens,,0,0,0,5,0,1e-3", f"op: got dens; allowed: {', '.join(OPS)}"),
        ("dense,,0,0,0,-5,0,1e-3", f"T: got -5; {SIZE}"),
        ("dense,,0,0,0,0,0,1e-3", "T: a dense point needs tokens"),
        ("logits,,0,0,0,0,0,1e-3", "S: a logits point needs rows"),
        ("prefill,,0,0,0,0,0,1e-3", "chunks: a prefill point needs some"),
        ("prefill,12,0,0,0,0,0,1e-3", f"chunks: got 12; {CHUNKS}"),
        ("prefill,0+5,0,0,0,0,0,1e-3", f"chunks: got 0+5; {CHUNKS}"),
        ("decode,,0,0,0,0,0,1e-3", "B: a decode point needs decodes"),
        ("decode,,4,3,1,0,0,1e-3", "KV: 3 tokens of context for 4 decodes"),
        ("decode,,4,8,9,0,0,1e-3", "Kmax: expected 1 to KV = 8, got 9"),
        ("dense,,0,0,0,5", "got 6 columns (dense,,0,0,0,5); allowed: 8"),
        (",,0,0,0,5,0,1", f"op: got nothing; allowed: {', '.join(OPS)}"),
        ("dense,,0,0,0,5,0,5400", f"t_median_s: got 5400; {SECONDS}"),
        ("dense,,0,0,0,200000000,0,1e-3", f"T: got 200000000; {SIZE}"),
        (f"dense,,0,0,0,{'9' * 5000},0,1e-3", f"T: got {'9' * 40}...; {SIZE}"),
        ("prefill,8+999999999,0,0,0,0,0,1", f"chunks: got 8+999999999; {CHUNKS}"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, row, problem):
    path = tmp_path / "points.csv"
    path.write_text(f"{HEADER}\ndense,,0,0,0,5,0,1e-3\n{row}\n")
    with pytest.raises(CalibrationError) as caught:
        read_points(path)
    assert caught.value.problems == (f"{path}:3: {problem}",)


def test_all_mistakes_are_told_up_to_a_limit(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text(HEADER + "\n" + "dense,,0,0,0,0,0,-1\n" * 50)
    with pytest.raises(CalibrationError) as caught:
        read_points(path)
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == f"{path}: ... and 30 more"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file; allowed: a CSV header"),
        (
            b"name,seconds\nx,1\n",
            "not a points file: without columns op, chunks, B, KV, Kmax, T, S, t_median_s",
        ),
        (HEADER.encode() + b",op\n", ":1: op: got this column 2 times; allowed: once"),
        (HEADER.encode() + b"\n", "holds no points"),
        (b"\xff\xfe\x00", "got UTF-16 text; allowed: UTF-8"),
    ],
)
def test_no_points_file_at_all(tmp_path, content, message):
    path = tmp_path / "points.csv"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        read_points(path)
    with pytest.raises(CalibrationError, match="No such file"):
        read_points(tmp_path / "absent.csv")


def test_unequal_contexts_have_columns_of_their_own(tmp_path):
    """And other files none for them."""
    usual = [Point("dense", 1e-4, tokens=5)]
    unequal = Point("unequal", 3e-5, (), 4, 1792, 1024, num_longest=1, t_equal_s=2e-5)
    path = tmp_path / "points.csv"
    write_points(path, [*usual, unequal])
    assert "longest,t_equal_s" in path.read_text().splitlines()[0]
    assert repr(read_points(path)[1]) == repr(unequal)
    write_points(path, usual)
    assert "longest" not in path.read_text()
