"""The slice log against the same slices in a list."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.cluster.engine.slice_log import SliceLog, Slices


def unfolded(slices: Slices) -> set[tuple[int, int]]:
    """`(request, step)` of every decode."""
    runs = zip(
        *(slices.decodes[name].tolist() for name in ("request", "first_step", "last_step")), strict=True
    )
    return {(request, step) for request, first, last in runs for step in range(first, last + 1)}


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sets(st.integers(0, 4)), max_size=12))
def test_runs_of_decodes_unfold_to_what_was_taken_down(steps: list[set[int]]) -> None:
    """Each step decodes a set of requests."""
    log = SliceLog()
    for number, requests in enumerate(steps):
        for request in requests:
            log.decode(number, request)
    for request in range(5):
        log.close(request)
    slices = log.slices(3)
    taken = {(request, number) for number, requests in enumerate(steps) for request in requests}
    assert unfolded(slices) == taken
    # As few as there are: no two of them touch.
    assert len(slices.decodes["request"]) == sum((r, n - 1) not in taken for r, n in taken)
    assert set(slices.decodes["replica"].tolist()) <= {3}


def test_slices_of_replicas_stand_one_behind_the_other() -> None:
    logs = [SliceLog(), SliceLog()]
    logs[0].prefill(0, 7, 100, 28, emits=True)
    logs[1].prefill(0, 8, 64, 0, emits=False)
    logs[1].decode(1, 9)
    logs[1].close(9)
    joined = Slices.joined([log.slices(replica) for replica, log in enumerate(logs)])
    assert {name: column.tolist() for name, column in joined.prefills.items()} == {
        "replica": [0, 1],
        "step": [0, 0],
        "request": [7, 8],
        "num_tokens": [100, 64],
        "num_computed_tokens": [28, 0],
        "emits": [1, 0],
    }
    assert {name: column.tolist() for name, column in joined.decodes.items()} == {
        "replica": [1],
        "request": [9],
        "first_step": [1],
        "last_step": [1],
    }
