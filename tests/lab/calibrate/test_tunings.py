"""Ways to cut the decode kernel's work, and kernels for chunks, ranked by a timer of known law."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from calibration.gpu_session import all_tunings
from calibration.reached_peaks import tunings_table
from cbsim.base.errors import CalibrationError
from cbsim.lab.calibrate import kernel_tuning
from cbsim.lab.calibrate.kernel_tuning import (
    SIZES,
    choose_kernels,
    chunk_sizes,
    compare_tunings,
    decode_sizes,
    first_tunings,
    name_of,
)
from cbsim.lab.calibrate.timing_plan import Limits
from cbsim.lab.kernels.kernel_choice import (
    DecodeTuning,
    KernelChoice,
    PrefillChoice,
    read_choice,
    save_choice,
)

KV_TOKEN_BYTES = 4096


class Backend:
    """Something to choose, and no kernels."""

    prefill_names = ("flash", "long", "paged")

    def __init__(self, choice):
        self.choice = choice

    def with_choice(self, choice):
        return Backend(choice)


class Rig(SimpleNamespace):
    def use(self, backend):
        self.backend = backend


@pytest.fixture
def rig():
    shard = SimpleNamespace(layer_kv_token_bytes=KV_TOKEN_BYTES)
    return Rig(shard=shard, backend=Backend(KernelChoice(DecodeTuning())))


def test_the_default_is_among_them_once():
    every, first = all_tunings(), first_tunings()
    assert every[0] == DecodeTuning()
    assert every[: len(first)] == first
    assert len(first) == 12
    assert len(set(every)) == len(every)


def law(rig):
    """1 GB/s for each warp and stage; 5 stages of 128 tokens are too large, as on an L40S."""

    def seconds(point):
        tuning = rig.backend.choice.decode
        if tuning.tile * tuning.num_stages > 500:
            return math.nan
        if tuning.num_stages == 2 and sum(point.contexts) > 262_143:
            return math.nan
        return sum(point.contexts) * KV_TOKEN_BYTES / (1e9 * tuning.num_warps * tuning.num_stages)

    return seconds


def test_best_first_and_what_cannot_run_last(rig):
    choices = [
        DecodeTuning(tile, warps, stages) for tile in (64, 128) for warps in (4, 8) for stages in (2, 3, 5)
    ]
    seen, before = [], rig.backend
    ranked = compare_tunings(rig, law(rig), choices, lambda *place: seen.append(place))
    assert rig.backend is before
    assert seen[-1] == (len(choices), len(choices))
    assert ranked[0].tuning == DecodeTuning(64, 8, 5)
    assert ranked[0].score == pytest.approx(40e9)
    scores = [row.score for row in ranked if not math.isnan(row.score)]
    assert scores == sorted(scores, reverse=True)
    assert all(math.isnan(row.score) for row in ranked[len(scores) :])
    table = tunings_table(ranked)
    assert table.splitlines()[0].startswith(f"| the best of {len(choices)} | 64 x 4,096 |")
    assert "| tile 64, 8 warps, 5 stages, 4 programs | 0.04 | 0.04 | 0.04 |" in table
    assert "3 stages, 4 programs (default) | 0.012 |" in table
    assert len(ranked[0].bytes_per_s) == len(SIZES)


def test_other_errors_are_not_swallowed(rig):
    def seconds(point):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    before = rig.backend
    with pytest.raises(RuntimeError, match="illegal memory access"):
        compare_tunings(rig, seconds, [DecodeTuning()])
    assert rig.backend is before


def chunk_law(rig):
    """`paged` needs no copy of a context, `long` is for long chunks alone, `flash` is never the fastest."""
    decode_s = law(rig)

    def seconds(point):
        if point.op == "decode":
            return decode_s(point)
        ((tokens, context),) = point.chunks
        name = rig.backend.choice.prefill.ranked(tokens, context)[0]
        if name == "long":
            return math.nan if context else 1000.0 + tokens
        return (1.5 if name == "flash" else 1.2) * tokens + 100.0 + (context if name == "flash" else 0)

    return seconds


def test_kernels_are_chosen_by_size(rig, tmp_path):
    before = rig.backend
    choice = choose_kernels(rig, chunk_law(rig), Limits())
    assert rig.backend is before
    assert choice.decode == DecodeTuning(128, 8, 3)
    assert [choice.prefill.ranked(tokens, 0)[0] for tokens in (3, 700, 9000)] == ["paged", "paged", "long"]
    assert choice.prefill.ranked(9000, 100)[0] == "paged"
    assert "long for 8192+0" in choice.told()
    save_choice(choice, tmp_path / "kernels.json")
    assert read_choice(tmp_path / "kernels.json") == choice
    assert read_choice(tmp_path / "absent.json") is None
    without = choose_kernels(rig, chunk_law(rig), Limits(), without=["paged", name_of(choice.decode)])
    assert without.decode == DecodeTuning(64, 8, 3)
    assert without.prefill.ranked(3, 0)[0] == "flash"


def test_choosing_ends_when_its_time_is_up(rig, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(kernel_tuning.time, "monotonic", lambda: now[0])
    timed = chunk_law(rig)

    def seconds(point):
        now[0] += 1.0
        return timed(point)

    choice = choose_kernels(rig, seconds, Limits(), until_s=20.0)
    assert now[0] < 24
    assert choice.decode == DecodeTuning(128, 8, 3), "the best of the four there was time for"
    assert 1 <= len(choice.prefill.timed) <= 4
    rig.backend.choice = None
    assert choose_kernels(rig, seconds, Limits()) is None


@pytest.mark.parametrize("text", ["", "[]", '{"decode": {"tiles": 3}, "prefill": {"timed": []}}'])
def test_a_file_of_something_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "kernels.json").write_text(text)
    with pytest.raises(CalibrationError, match=r"kernels\.json: not a choice of kernels; remove it"):
        read_choice(tmp_path / "kernels.json")


def test_without_a_timing_nothing_is_preferred():
    assert PrefillChoice().ranked(5, 5) == []
    assert KernelChoice(DecodeTuning()).told().endswith("prefill by size (tokens + context): not timed")


def test_sizes_are_those_that_a_device_has_room_for():
    assert decode_sizes(Limits()) == list(SIZES)
    small = Limits(2048, 2048, 2048, 32 * 2048, 16 * 2048, max_decodes=128)
    assert decode_sizes(small) == [(64, 1024), (16, 2048), (128, 512)]
    assert len(chunk_sizes(Limits())) == 15
    sizes = chunk_sizes(small)
    assert (16, 2032) in sizes
    assert max(map(sum, sizes)) == 2048
    assert len(set(sizes)) == len(sizes) < 12
