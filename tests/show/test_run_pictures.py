from concurrent.futures import BrokenExecutor, Executor, Future

import pytest

from cbsim.show.run_pictures import RUN_PICTURES, draw_points
from cbsim.studies.sweep import sweep
from tests.sweep_parts import EVEN

NAMES = [f"{name}.png" for name in RUN_PICTURES]
CONFIG = EVEN | {"sweep": {"workload.interval_s": [0.1, 1.0]}}


class Other(Executor):
    """Stands for another process; `fails` says where it breaks, if it does."""

    def __init__(self, fails=""):
        self.fails, self.drawn = fails, []

    def submit(self, draw, *arguments):
        if self.fails == "early":
            raise BrokenExecutor
        future = Future()
        if self.fails == "late":
            future.set_exception(BrokenExecutor())
        else:
            self.drawn = draw(*arguments)
            future.set_result(self.drawn)
        return future


@pytest.fixture(scope="module")
def drawn_here(tmp_path_factory):
    """A sweep folder, its points, and the files that this process draws of them."""
    folder = tmp_path_factory.mktemp("sweep")
    points = dict(zip("ab", sweep(CONFIG, out=folder)["point"], strict=True))
    assert draw_points(points, {}, folder) == NAMES
    return folder, points, pictures(folder)


def pictures(folder):
    """The pictures in a folder, which are then removed."""
    return {path.name: (path.read_bytes(), path.unlink())[0] for path in sorted(folder.glob("*.[ps][nv]g"))}


@pytest.mark.parametrize("fails", ["", "early", "late"])
def test_pictures_are_the_same_whoever_draws_them(drawn_here, fails):
    folder, points, expected = drawn_here
    other = Other(fails)
    assert draw_points(points, {}, folder, other) == NAMES
    assert pictures(folder) == expected
    assert len(expected) == 2 * len(NAMES)
    assert {*other.drawn} == ({"latency_cdfs.png", "utilization.png"} if not fails else set())
