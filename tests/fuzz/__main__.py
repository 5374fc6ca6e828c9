"""`python -m tests.fuzz`: bad inputs by seed, each given to the commands that read it; what they do wrong.

Wrong is a traceback or a warning; more than 5 s or 2 GB; and nonsense that is accepted: NaN, infinity, or
figures beyond what any machine has, without a note.
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
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, NamedTuple

SECONDS, BYTES = 5.0, 2 * 2**30
"""What a case may take: of the CPU, as other processes may slow this one down, and of memory."""
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

    from cbsim.cli.command_line import main
    from cbsim.config.yaml_text import dump_yaml
    from tests.fuzz.inputs import KINDS, MADE, PLAIN

    signal.signal(signal.SIGPROF, _hang)
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
        case = folder / f"case-{number}"
        case.mkdir()
        os.chdir(case)
        found = []
        is_checked = False
        for command in KINDS[kind][0](random):
            what, told, did_pass = outcome(CliRunner(), main, command)
            if what is None and is_checked and command[0] == "run" and not did_pass and not _is_placed(told):
                what = "only in run"
            is_checked = did_pass and command[0] == "check"
            if what is not None:
                found.append(Finding(number, kind, what, told[-1500:], " ".join(command)[:300]))
            if what is not None or not did_pass:
                break
        os.chdir(folder)
        if not found or os.environ.get("FUZZ_KEEP") is None:
            shutil.rmtree(case, ignore_errors=True)
        yield number, kind, found


def outcome(runner: Any, main: Any, command: list[str]) -> tuple[str | None, str, bool]:
    """What is wrong with how a command ends, what it says, and whether it succeeds."""
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
        tail = traceback.format_exception(result.exception)
        return "memory" if isinstance(result.exception, MemoryError) else "traceback", "".join(tail), False
    did_pass = result.exit_code == 0
    serious = [
        str(each.message) for each in warned if issubclass(each.category, RuntimeWarning | UserWarning)
    ]
    if serious:
        return "warning", f"{serious[0]}\n{told}", did_pass
    if result.exit_code not in (0, 1, 2):
        return "exit code", f"{result.exit_code}: {told}", False
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
        words = re.search(r"(?<![\w.'\"/-])(nan|-?inf|Infinity|[\d.]+e\+?[2-9]\d+)\b", stdout)
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


def campaign(seed: int, num_cases: int, kinds: list[str]) -> tuple[Counter[str], list[Finding]]:
    """Run cases in a process beside this one, which is started anew after a case that it does not survive."""
    counts: Counter[str] = Counter()
    findings: list[Finding] = []
    first = 0
    with tempfile.TemporaryDirectory() as folder:
        while first < num_cases:
            command = [sys.executable, "-m", "tests.fuzz", "--seed", str(seed), "--kinds", ",".join(kinds)]
            worker = subprocess.Popen(
                [*command, "--worker", f"{first}:{num_cases}:{folder}"], stdout=subprocess.PIPE, text=True
            )
            assert worker.stdout is not None
            while True:
                ready, _, _ = select.select([worker.stdout], [], [], STALL_S)
                line = worker.stdout.readline() if ready else ""
                if not line:
                    break
                number, kind, found = json.loads(line)
                first = number + 1
                counts[kind] += 1
                for each in found:
                    findings.append(Finding(*each))
                    print(*Finding(*each), sep="\n    ", flush=True)
            if worker.poll() == 1:
                raise SystemExit("the folders that cases damage can't be made")
            if first < num_cases:
                worker.kill()
                kind = kind_of(Random(f"{seed}/{first}"), kinds)
                told = f"the process ends with {worker.wait()}" if ready else "no signal reaches it"
                findings.append(Finding(first, kind, "death" if ready else "hang", told, ""))
                print(*findings[-1], sep="\n    ", flush=True)
                counts[kind] += 1
                first += 1
            worker.wait()
    return counts, findings


def main() -> int:
    from tests.fuzz.inputs import KINDS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
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
    began = time.perf_counter()
    counts, findings = campaign(given.seed, given.cases, kinds)
    wrong = Counter((each.kind, each.what) for each in findings)
    for kind in kinds:
        told = ", ".join(f"{number} x {what}" for (of, what), number in sorted(wrong.items()) if of == kind)
        print(f"{kind:14} {counts[kind]:6,} cases: {told or 'nothing found'}")
    took_s = time.perf_counter() - began
    print(f"{sum(counts.values()):,} cases in {took_s:.0f} s, seed {given.seed}: {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
