"""Ways to cut the decode kernel's work, ranked by a timer of known law."""

import math
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from calibration import reached_peaks
from calibration.reached_peaks import SIZES, all_tunings, compare_tunings, tunings_table
from cbsim.lab.kernels.triton_backend import DecodeTuning

KV_TOKEN_BYTES = 4096


@pytest.fixture
def rig(monkeypatch):
    monkeypatch.setattr(reached_peaks, "TritonBackend", lambda shard, device, tuning: tuning)
    shard = SimpleNamespace(layer_kv_token_bytes=KV_TOKEN_BYTES)
    return SimpleNamespace(shard=shard, device=None, backend="before")


def test_the_default_is_among_them_once():
    every = all_tunings()
    assert every[0] == DecodeTuning()
    assert len(set(every)) == len(every) == 36


def test_best_first_and_what_cannot_run_last(rig):
    """1 GB/s for each warp and stage; 5 stages of 128 tokens are too large, as on an L40S."""

    def seconds(point):
        tuning = rig.backend
        if tuning.tile * tuning.num_stages > 500:
            raise OutOfResources(10**6, 10**5, "shared memory")
        if tuning.num_stages == 2 and sum(point.contexts) > 262_143:
            raise MemoryError
        return sum(point.contexts) * KV_TOKEN_BYTES / (1e9 * tuning.num_warps * tuning.num_stages)

    choices = [
        DecodeTuning(tile, warps, stages) for tile in (64, 128) for warps in (4, 8) for stages in (2, 3, 5)
    ]
    seen = []
    ranked = compare_tunings(rig, seconds, choices, lambda *place: seen.append(place))
    assert rig.backend == "before"
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

    with pytest.raises(RuntimeError, match="illegal memory access"):
        compare_tunings(rig, seconds, [DecodeTuning()])
    assert rig.backend == "before"
