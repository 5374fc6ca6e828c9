"""The one command on a card of made-up times: to its report, through failures, kills and deadlines."""

from __future__ import annotations

import math
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

from calibration import gpu_session
from calibration.fake_card import FakeTimer
from cbsim.cost.costfile import read_cost_file
from cbsim.lab.calibrate import coefficients, fit
from cbsim.lab.calibrate.pointsfile import read_meta, read_points
from cbsim.lab.calibrate.timing_plan import PlanPoint
from cbsim.lab.kernels.graph_capture import CaptureFailed
from cbsim.lab.kernels.timing import DeviceLost, MakeCalls, Timing
from tests.lab.kernels.references import CONFIGS

SCRIPT = CONFIGS.parent / "calibration" / "run_on_gpu.py"
CHAPTERS = (
    "What the kernels reach:",
    "### Paged decode: TB/s",
    "### Prefill attention: TFLOP/s",
    "### Dense layer",
    "### Own over NVIDIA's table",
    "### Is the sum the sum?",
    "### Whole steps against the prediction",
    "### Kernels against the fit",
    "### What to do with it",
    "### Decode kernel, ways to cut its work",
)
FILES = {"points.csv", "meta.json", "cost.json", "report.md", "kernels.json", "sums.json", "tunings.md"}


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits are quick, and a test's process is told no signals."""
    monkeypatch.setattr(coefficients, "NUM_STARTS", 1)
    monkeypatch.setattr(fit, "NUM_FOLDS", 2)
    monkeypatch.setattr(signal, "signal", lambda *_: None)


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The script in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert isinstance(ended.value.code, int)
    return ended.value.code


def names() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


class Walk(FakeTimer):
    """Runs nothing, counts, and raises what `errors` has for a count of points."""

    errors: dict[int, BaseException]

    def _time(self, make_calls: MakeCalls, what: object, as_graph: bool) -> Timing:
        self.count = getattr(self, "count", 0) + isinstance(what, PlanPoint)
        error = self.errors.get(self.count)
        if error is not None and (as_graph or not isinstance(error, CaptureFailed)):
            raise error
        return super()._time(make_calls, what, as_graph)


def trouble(monkeypatch: pytest.MonkeyPatch, errors: dict[int, BaseException]) -> None:
    monkeypatch.setattr(Walk, "errors", errors, raising=False)
    monkeypatch.setattr(gpu_session, "FakeTimer", lambda: Walk(runs=False))


def test_killed_failing_and_resumed_to_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--fake", "--gpu", "h200", "--plan", "quick", "--out", str(tmp_path), "--worker", "inf"]
    folder = tmp_path / "tiny"
    # While kernels are chosen; then in the plan: a kill, a lost device, a capture that fails.
    for errors, code, said in (
        ({20: KeyboardInterrupt()}, 130, "interrupted; the same command goes on from here"),
        ({90: KeyboardInterrupt()}, 130, "interrupted"),
        ({30: DeviceLost("an illegal memory access")}, 3, "made the device fail"),
        ({9: CaptureFailed(RuntimeError("not permitted"))}, 3, "can't be captured into a CUDA graph"),
    ):
        trouble(monkeypatch, errors)
        assert command(monkeypatch, *words) == code
        assert said in capsys.readouterr().err
        assert not (folder / "cost.json").exists()
    before = (folder / "points.csv").read_bytes()
    trouble(monkeypatch, {4: ValueError("an odd shape")})
    assert command(monkeypatch, *words) == 0
    out = capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == FILES | {"left_out.csv"}
    assert (folder / "points.csv").read_bytes().startswith(before)
    report = (folder / "report.md").read_text()
    for chapter in CHAPTERS:
        assert chapter in report
        assert chapter in out
    assert re.search(r"took (0\.99|1\.00|1\.01) times the sum of its parts timed apart, at", report)
    assert "2 of 132 points failed and were left out" in report
    assert "was timed without CUDA graphs, launch times included" in report
    assert "attained here by a large copy" in report
    assert f"mv {folder} calibration/profiles/h200-torch/tiny" in report
    meta, cost = read_meta(folder / "meta.json"), read_cost_file(folder / "cost.json")
    assert (meta.gpu, meta.device) == ("h200", "a fake card, of which nothing was measured")
    assert meta.command.startswith("python3 ")
    assert cost.accuracy["held_out"]["all"]["median_pct"] < 2
    assert (tmp_path / "check.txt").read_text().startswith("  tiny: 1.62 MiB of weights")
    # Once more: nothing is timed, and the same is told.
    trouble(monkeypatch, {1: AssertionError("timed again")})
    assert command(monkeypatch, *words) == 0
    again = (folder / "report.md").read_text()
    assert re.sub(r"20\d\d-[\d-]+T\S+", "", again) == re.sub(r"20\d\d-[\d-]+T\S+", "", report)


@pytest.mark.parametrize(
    ("model", "seconds", "code"),
    [("tiny", 900.0, 0), ("tiny:fp8:fp8", 20.0, 2), ("tiny-experts", 300.0, 0)],
)
def test_what_is_there_at_the_deadline_is_fitted(
    model: str,
    seconds: float,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each timing takes 2 s of a clock that goes no other way."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(gpu_session, "fit_cost_file", lambda *_: pytest.fail("there is no time for this"))

    class Slow(FakeTimer):
        def _time(self, make_calls: MakeCalls, what: object, as_graph: bool) -> Timing:
            now[0] += 2.0
            return super()._time(make_calls, what, as_graph)

    monkeypatch.setattr(gpu_session, "FakeTimer", lambda: Slow(runs=False))
    monkeypatch.setattr(gpu_session, "REPORT_S", 1000.0)
    monkeypatch.setattr(gpu_session, "EXTRAS_S", 1000.0)
    words = ["--fake", "--models", model, "--out", str(tmp_path), "--worker", str(seconds)]
    assert command(monkeypatch, *words) == code
    told = capsys.readouterr()
    assert now[0] < seconds + 10
    assert "points were not reached: time was up" in told.out
    assert re.search(r"\[ *\d+ s left\] ", told.out)
    folder = tmp_path / model.replace(":fp8:fp8", "-fp8-kv-fp8")
    assert (folder / "points.csv").exists()
    if code:
        assert "too few points to fit" in told.err or "no timings yet of" in told.err
        assert "the same command goes on from here" in told.err
        assert not (folder / "cost.json").exists()
        return
    report = (folder / "report.md").read_text()
    assert "Not told: time was up." in report
    assert ("as the fitted form has them, at the median" in report) is (seconds > 500)
    form = read_cost_file(folder / "cost.json").form
    assert (form.experts is not None) is (model == "tiny-experts")
    assert len(read_points(folder / "points.csv")) > 60


def test_extras_that_fail_cost_no_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the report can do without is tried once: another process goes on behind it."""
    words = ["--fake", "--plan", "quick", "--out", str(tmp_path), "--worker", repr(time.time() + 1e5)]

    def failing(error: Exception) -> Callable[..., Any]:
        def fail(*_: object) -> None:
            raise error

        return fail

    trouble(monkeypatch, {})
    monkeypatch.setattr(gpu_session, "REPORT_S", 1e6)
    monkeypatch.setattr(gpu_session, "attainable_flop_per_s", failing(ValueError("no such product")))
    monkeypatch.setattr(gpu_session, "additivity", failing(CaptureFailed(RuntimeError("not permitted"))))
    monkeypatch.setattr(gpu_session, "compare_tunings", failing(DeviceLost("an illegal memory access")))
    for code, said in ((3, "mixed attention and its parts"), (3, "ways to cut decodes"), (0, "")):
        assert command(monkeypatch, *words) == code
        assert said in capsys.readouterr().err
    report = (tmp_path / "tiny" / "report.md").read_text()
    assert "as the fitted form has them, at the median" in report
    assert report.endswith("They could not be timed.\n")
    assert "attained here" not in report
    assert read_cost_file(tmp_path / "tiny" / "cost.json").accuracy == {}


def test_what_one_model_leaves_of_its_time_goes_to_another(tmp_path: Path) -> None:
    """The first is cut off at its half; the second needs nothing, as it is on disk."""
    options = names()["parse_options"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["x", "--fake", "--models", "tiny", "tiny", "--out", str(tmp_path)])
        session = gpu_session.Session(options(), math.inf)
    asked: list[int] = []

    def measure(model: object, num_left: int) -> Any:
        asked.append(num_left)
        return type("Measured", (), {"num_unreached": 5 if len(asked) == 1 else 0})

    session.measure = measure  # type: ignore[method-assign]
    session.check = session.attainable = lambda: None  # type: ignore[method-assign,assignment]
    session.report = session.compare_tunings = lambda *_: None  # type: ignore[method-assign]
    session.run()
    assert asked == [2, 1, 1]


def codes(*given: int) -> Callable[[], int]:
    """Processes that end with these codes, one after another."""
    left = iter(given)
    return lambda: next(left)


def test_another_process_goes_on_where_one_can_do_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    script = names()
    supervise, spent, crashed = script["supervise"], script["SPENT"], -signal.SIGSEGV
    assert supervise(codes(spent, crashed, 0), math.inf) == 0
    assert capsys.readouterr().out.splitlines() == [
        "the process can time nothing more: going on in a new one",
        "the process has died: going on in a new one",
    ]
    for code in (0, 2, 130, -signal.SIGKILL):
        assert supervise(codes(code), math.inf) == code
    assert supervise(codes(spent), time.time() + 5) == spent
    assert "too little time is left for another process" in capsys.readouterr().err
    assert supervise(codes(*[spent] * script["MAX_STARTS"]), math.inf) == 2
    assert "gave up after 12 processes" in capsys.readouterr().err


def test_a_process_of_its_own_ends_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM reaches the process that works, which ends as on Ctrl-C. It needs the packages named alone."""
    for name in ("simpy", "click", "rich", "numba", "pandas", "matplotlib", "distributed"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not on a bare machine')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = ("--fake", "--plan", "quick", "--seconds", "300", "--out", str(tmp_path / "out"))
    begun = tmp_path / "out" / "check.txt"
    with subprocess.Popen([sys.executable, str(SCRIPT), *words], stderr=subprocess.PIPE, text=True) as ran:
        until = time.time() + 120
        while not begun.exists() and time.time() < until and ran.poll() is None:
            time.sleep(0.05)
        ran.terminate()
        _, error = ran.communicate(timeout=120)
    assert ran.returncode == 130
    assert "interrupted; the same command goes on from here" in error
    assert begun.exists()


def test_it_lists_the_packages_to_bring(capsys: pytest.CaptureFixture[str]) -> None:
    script = names()
    assert script["list_wheels"]([]) == 0
    assert script["list_wheels"](["pydantic", "scipy"]) == 2
    assert "--dest wheels pydantic scipy" in capsys.readouterr().out


def test_names_are_checked_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--device cpu --models tiny llama-3-8 --gpu h2000 --out {tmp_path} --worker inf".split()
    assert command(monkeypatch, *words) == 2
    assert capsys.readouterr().err == (
        "no gpu 'h2000'; did you mean 'h200'?\nno model 'llama-3-8'; did you mean 'llama-3-8b'?\n"
    )
    assert list(tmp_path.iterdir()) == []
    assert command(monkeypatch, "--seconds", "0", "--fake") == 2
    assert "--seconds: got 0; allowed: more than 0" in capsys.readouterr().err


def test_a_model_that_cannot_fit_stops_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--fake --models llama-3.1-405b tiny --out {tmp_path} --worker inf".split()
    assert command(monkeypatch, *words) == 2
    assert "model llama-3.1-405b needs " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["check.txt"]
