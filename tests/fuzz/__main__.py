"""`python -m tests.fuzz`: bad inputs by seed, each given to the commands that read it; what they do wrong.

Wrong is a traceback or a warning; more than 5 s or 2 GB; and nonsense that is accepted: NaN, infinity, or
figures beyond what any machine has, without a note; and files that are left half written.

A campaign is split by seed, and goes on where it was stopped: `--seed 1 --cases 5000 --results DIR` in one
process, `--seed 2 ...` in another; `--cases 0 --results DIR` shows the findings of all seeds there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, NamedTuple

SECONDS, BYTES = 5.0, 2 * 2**30
"""What a case may take: of the CPU, as other processes may slow this one down, and of memory."""
NUM_AT_ONCE = 5000
"""Cases of a process: what it hoards is no case's."""
TOLD_EVERY_S = 30.0
MEMORY = "/dev/shm"
"""Folders of files in memory, where there are such: they come and go in no time."""
STALL_S = 60.0
"""A process that says nothing for so long hangs where no signal reaches it."""
NO_MACHINE = 1e12
"""No figure of a serving engine is larger, in SI units, but for FLOP, bytes and the like."""


class Finding(NamedTuple):
    case: int
    kind: str
    what: str
    told: str
    command: str


class _Hang(BaseException):
    """The case has taken too long."""


def _hang(number: int, frame: FrameType | None) -> None:
    raise _Hang


def kind_of(random: Random, kinds: list[str]) -> str:
    from tests.fuzz.inputs import KINDS

    return random.choices(kinds, [KINDS[kind][1] for kind in kinds])[0]


def run_cases(
    seed: int, first: int, last: int, kinds: list[str], folder: Path
) -> Iterator[tuple[int, str, list[Finding]]]:
    """Run cases one after the other in folders of their own; yields each with what was found."""
    from click.testing import CliRunner
    from matplotlib.figure import Figure

    from cbsim.base import registry
    from cbsim.base.binding import Compiled
    from cbsim.cli.command_line import main
    from cbsim.config.yaml_text import dump_yaml
    from cbsim.lab.calibrate import coefficients
    from tests.fuzz.inputs import KINDS, MADE, PLAIN

    signal.signal(signal.SIGPROF, _hang)
    Compiled._compile = _untimed(Compiled._compile)
    registry.entry_points = cache(registry.entry_points)
    fit = coefficients.least_squares
    coefficients.least_squares = lambda *given, **more: fit(*given, **more | {"max_nfev": FIT_STEPS})
    draw = Figure.savefig
    os.environ["CBSIM_CACHE_DIR"] = str(folder / "cache")
    os.chdir(folder)
    Path("e.yaml").write_text(dump_yaml(PLAIN))
    for left in folder.glob("case-*"):
        shutil.rmtree(left)
    needed = {"run_folder": ["run"], "study_folder": ["sweep", "capacity", "tune"]}
    for made in (name for kind in kinds for name in needed.get(kind, ())):
        if Path(f"made-{made}").exists():
            continue
        done = CliRunner().invoke(main, [*MADE[made], "--out", f"made-{made}"])
        assert done.exit_code == 0, (made, done.output, done.exception)
    resource.setrlimit(resource.RLIMIT_AS, (_bytes_now() + BYTES, resource.RLIM_INFINITY))
    for number in range(first, last):
        random = Random(f"{seed}/{number}")
        kind = kind_of(random, kinds)
        # Half of what a case takes that draws; what is drawn differs little.
        Figure.savefig = draw if number % DRAWN_EVERY == 0 else _draw_nothing
        case = folder / f"case-{number}"
        case.mkdir()
        os.chdir(case)
        found = []
        is_checked = False
        for command in KINDS[kind][0](random):
            what, told, did_pass = outcome(CliRunner(), main, command)
            if what is None and is_checked and command[0] == "run" and not did_pass and not _is_placed(told):
                what = "only in run"
            if what is None and (left := [path.name for path in case.rglob("*.partial")]):
                what, told = "litter", f"{left}\n{told}"
            is_checked = did_pass and command[0] == "check"
            if what is not None:
                found.append(Finding(number, kind, what, told[-1500:], " ".join(command)[:300]))
            if what is not None or not did_pass:
                break
        os.chdir(folder)
        if not found or os.environ.get("FUZZ_KEEP") is None:
            shutil.rmtree(case, ignore_errors=True)
        yield number, kind, found


def _untimed(compiling: Callable[..., Any]) -> Callable[..., Any]:
    """The same, in time that is no case's: whatever is compiled takes as long, and is kept."""

    def compile_untimed(*given: Any) -> Any:
        left_s, _ = signal.setitimer(signal.ITIMER_PROF, 0)
        try:
            return compiling(*given)
        finally:
            signal.setitimer(signal.ITIMER_PROF, left_s)

    return compile_untimed


FIT_STEPS = 3
"""Where a fit may take 200, and with them the seconds that it takes."""
DRAWN_EVERY = 5
"""Pictures of every so many cases are drawn."""


def _draw_nothing(figure: Any, into: Any, **given: Any) -> None:
    nothing = '<svg viewBox="0 0 1 1"></svg>'
    into.write(nothing) if hasattr(into, "write") else Path(into).write_text(nothing)


def outcome(runner: Any, main: Any, command: list[str]) -> tuple[str | None, str, bool]:
    """What is wrong with how a command ends, what it says, and whether it succeeds."""
    from cbsim.cli.command_line import OUT_OF_MEMORY

    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            result = runner.invoke(main, command)
        signal.setitimer(signal.ITIMER_PROF, 0)
    except _Hang as hang:
        return "hang", "".join(traceback.format_tb(hang.__traceback__)[-4:]), False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    told = result.output
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return "traceback", "".join(traceback.format_exception(result.exception)), False
    did_pass = result.exit_code == 0
    serious = [
        str(each.message) for each in warned if issubclass(each.category, RuntimeWarning | UserWarning)
    ]
    if serious:
        return "warning", f"{serious[0]}\n{told}", did_pass
    if result.exit_code not in (0, 1, 2):
        return "exit code", f"{result.exit_code}: {told}", False
    if not did_pass and f"{OUT_OF_MEMORY}: " in told:
        return "memory", told, False
    if not did_pass and (not told.strip() or "Traceback" in told):
        return "mute", told, False
    if did_pass and (nonsense := nonsense_in(command, result.stdout)):
        return "nonsense", nonsense, True
    return None, told, did_pass


def nonsense_in(command: list[str], stdout: str) -> str | None:
    """What a command's answer holds that can't be."""
    if command[0] == "from-vllm":
        return None  # It says what it was given.
    if "--json" not in command:
        large = "" if "no service" in stdout else r"|[\d.]+e\+?[2-9]\d+"
        words = re.search(rf"(?<![\w.'\"/-])(nan|-?inf|Infinity{large})\b", stdout)
        return f"{words[0]} in: {stdout[max(0, words.start() - 80) : words.end() + 80]}" if words else None
    try:
        answer = json.loads(stdout)
    except ValueError:
        return None
    notes = json.dumps(answer.get("notes", "")) if isinstance(answer, dict) else ""
    for path, value in _numbers(answer):
        if not math.isfinite(value):
            return f"{path}: {value}"
        is_large = abs(value) > NO_MACHINE and not re.search(r"flop|byte|param|seed|token", path)
        if is_large and "no service" not in notes:
            return f"{path}: {value}"
    return None


def _numbers(data: Any, path: str = "") -> Iterator[tuple[str, float]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{path}.{key}", value
        else:
            yield from _numbers(value, f"{path}.{key}")


def _is_placed(told: str) -> bool:
    """Whether some line names a file and line, an option, or a dotted key."""
    return re.search(r"\.\w+:\w*\d|--\w+|\b[a-z_]+\.[a-z_]+\b|^[a-z_]+: ", told, re.MULTILINE) is not None


def _bytes_now() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


class Campaign:
    """The cases of a seed that were run, and what was found; kept in a file, if one is given."""

    def __init__(self, seed: int, kinds: list[str], path: Path | None = None) -> None:
        """Goes on where the file ends."""
        self.seed, self.kinds, self._path = seed, kinds, path
        self.num_done = 0
        self.counts: Counter[str] = Counter()
        self.findings: list[Finding] = []
        if path is not None and path.exists():
            with path.open() as file:
                self.kinds = json.loads(next(file))
                for line in file:
                    self._count(*json.loads(line))
        if self.kinds != kinds:
            raise SystemExit(f"{path}: holds cases of {','.join(self.kinds)}; --kinds must name the same")

    def run(self, num_cases: int) -> None:
        """Run what is left of so many cases, in one process until it dies, then in another."""
        began, before, told_at = time.perf_counter(), self.num_done, time.perf_counter()
        with tempfile.TemporaryDirectory(dir=MEMORY if Path(MEMORY).is_dir() else None) as folder:
            while self.num_done < num_cases:
                for done in self._process(min(num_cases, self.num_done + NUM_AT_ONCE), folder):
                    self.add(*done)
                    now = time.perf_counter()
                    if now - told_at > TOLD_EVERY_S:
                        told_at, each_s = now, (now - began) / (self.num_done - before)
                        told = f"{self.num_done:,} of {num_cases:,} cases, {len(self.findings)} findings"
                        left_s = each_s * (num_cases - self.num_done)
                        print(f"seed {self.seed}: {told}, {left_s:.0f} s to go", file=sys.stderr, flush=True)

    def add(self, number: int, kind: str, found: list[Any]) -> None:
        """One more case."""
        for each in found:
            print(*Finding(*each), sep="\n    ", flush=True)
        self._count(number, kind, found)
        if self._path is not None:
            is_new = not self._path.exists()
            with self._path.open("a") as file:
                file.writelines(f"{json.dumps(row)}\n" for row in ([self.kinds] if is_new else []))
                file.write(json.dumps([number, kind, found]) + "\n")

    def _count(self, number: int, kind: str, found: list[Any]) -> None:
        self.num_done = number + 1
        self.counts[kind] += 1
        self.findings += [Finding(*each) for each in found]

    def _process(self, last: int, folder: str) -> Iterator[tuple[int, str, list[Any]]]:
        """Cases up to `last`, as far as one process comes; the one that it dies of is a finding."""
        given = ["--seed", str(self.seed), "--kinds", ",".join(self.kinds)]
        command = [sys.executable, "-m", "tests.fuzz", *given, "--worker", f"{self.num_done}:{last}:{folder}"]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert worker.stdout is not None
        while True:
            ready, _, _ = select.select([worker.stdout], [], [], STALL_S)
            line = worker.stdout.readline() if ready else ""
            if not line:
                break
            yield tuple(json.loads(line))
        if worker.poll() == 1:
            raise SystemExit("the folders that cases damage can't be made")
        if self.num_done < last:
            worker.kill()
            number, kind = self.num_done, kind_of(Random(f"{self.seed}/{self.num_done}"), self.kinds)
            told = f"the process ends with {worker.wait()}" if ready else "no signal reaches it"
            yield number, kind, [Finding(number, kind, "death" if ready else "hang", told, "")]
        worker.wait()


def show(campaigns: list[Campaign]) -> int:
    """Print the findings by kind of input; returns how many there are."""
    counts = sum((each.counts for each in campaigns), Counter[str]())
    findings = [found for each in campaigns for found in each.findings]
    wrong = Counter((each.kind, each.what) for each in findings)
    for kind in dict.fromkeys(kind for each in campaigns for kind in each.kinds):
        told = ", ".join(f"{number} x {what}" for (of, what), number in sorted(wrong.items()) if of == kind)
        print(f"{kind:14} {counts[kind]:6,} cases: {told or 'nothing found'}")
    seeds = ", ".join(str(each.seed) for each in campaigns)
    print(f"{sum(counts.values()):,} cases of seed {seeds}: {len(findings)} findings")
    return len(findings)


def main() -> int:
    from tests.fuzz.inputs import KINDS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=2000, help="of the seed, those there already included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--results", type=Path, metavar="DIR", help="keeps what was found, a file a seed")
    parser.add_argument("--case", type=int, help="one case alone, in ./fuzz-case, which stays")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    kinds = given.kinds.split(",")
    if given.case is not None:
        os.environ["FUZZ_KEEP"] = "1"
        shutil.rmtree("fuzz-case", ignore_errors=True)
        Path("fuzz-case").mkdir()
        for _, _, found in run_cases(
            given.seed, given.case, given.case + 1, kinds, Path("fuzz-case").resolve()
        ):
            for each in found:
                print(*each, sep="\n")
        return 0
    if given.worker:
        first, last, folder = given.worker.split(":")
        for done in run_cases(given.seed, int(first), int(last), kinds, Path(folder)):
            print(json.dumps(done), flush=True)
        return 0
    if given.results is None:
        campaigns = [Campaign(given.seed, kinds)]
        campaigns[0].run(given.cases)
    else:
        given.results.mkdir(parents=True, exist_ok=True)
        if given.cases:
            Campaign(given.seed, kinds, given.results / f"seed-{given.seed}.jsonl").run(given.cases)
        files = {path: int(path.stem.rpartition("-")[2]) for path in given.results.glob("seed-*.jsonl")}
        campaigns = [
            Campaign(seed, kinds, path) for path, seed in sorted(files.items(), key=lambda of: of[1])
        ]
    return 1 if show(campaigns) else 0


if __name__ == "__main__":
    sys.exit(main())
