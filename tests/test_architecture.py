"""Which rooms the package has, who may import whom, and what a plain import costs."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cbsim"
README = PACKAGE / "README.md"
TOP = {"__init__", "__main__"}
"""Modules that lie in no room, and names that every room may have."""

ROOMS = {
    "base": "what every room stands on: mistakes, units, registries of parts by name, paths, text files",
    "config": "from an experiment file to typed sections, and from a mistake to a line to act on",
    "specs": "models and GPUs: what is served, and on what",
    "workload": "where requests come from: traces, generators, sessions; a request itself",
    "cost": "what a step costs: a constant, a roofline, a profile of measured kernels",
    "core": "what happens inside replicas, written once: records, verbs, pools, queues, the step loop",
    "schedulers": "which requests run in each step: the ladder, one file a rung, with its settings",
    "observers": "who watches a run: hooks, logs, metrics, memory",
    "cluster": "replicas behind a router, with arrivals and clients, in the SimPy world; the record",
    "results": "what a run gives: figures, where the time went, tables, the run folder",
    "studies": "questions: an experiment, one run, sweeps, capacity, comparisons, explanations, intervals",
    "show": "what a reader sees: tables, pictures, the HTML report, the Perfetto timeline",
    "lab": "the real world: kernels, calibration, the live engine, validation, the simulator's own speed",
    "testing": "the conformance kit for schedulers",
    "cli": "the command line: every command, `play` included",
}
"""The rooms, lowest first, each with what is in it; a room imports itself and lower ones only."""

SPECIAL = {
    # The benchmark holds its figures against a bare SimPy loop.
    "simpy": ("cluster/", "lab/bench/"),
    "matplotlib": ("show/",),
    "torch": ("lab/kernels/", "lab/live/"),
    "triton": ("lab/kernels/", "lab/live/"),
    "optuna": ("studies/tune/sampler.py",),
    "distributed": ("studies/worker_pool.py",),
    "click": ("cli/",),
}
"""Third-party packages, and where alone they may be imported."""


def modules() -> list[Path]:
    """Every module of the package, from its root."""
    return sorted(
        path.relative_to(PACKAGE)
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] != "_data"
    )


@cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """Every module a file imports, wherever in it, and whether only for type checking."""
    return list(_imports(path))


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in for_types
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or "", id(node) in for_types


def rooms_imported(path: Path) -> set[str]:
    """The other rooms that a file imports from, for annotations too."""
    names = [module.split(".") for module, _ in imports(path)]
    return {name[1] for name in names if name[0] == PACKAGE.name and len(name) > 1} - {path.parts[0]}


# Rooms


def test_the_root_holds_rooms_alone() -> None:
    loose = {path.stem for path in modules() if len(path.parts) == 1}
    assert loose == TOP
    assert {path.parts[0] for path in modules() if len(path.parts) > 1} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_lower_ones_only(room: str) -> None:
    lower = list(ROOMS)[: list(ROOMS).index(room)]
    for path in modules():
        if path.parts[0] == room:
            assert rooms_imported(path) <= set(lower), f"{path} imports a higher room"


@pytest.mark.parametrize("package", SPECIAL)
def test_a_special_package_is_imported_in_its_place_only(package: str) -> None:
    importing = {
        str(path)
        for path in modules()
        for module, only_for_types in imports(path)
        if module.split(".")[0] == package and not only_for_types
    }
    assert [path for path in sorted(importing) if not path.startswith(SPECIAL[package])] == []


def test_no_two_modules_have_one_name() -> None:
    folders = {folder for path in modules() for folder in path.parents if len(folder.parts) > 1}
    names = Counter([path.stem for path in modules() if path.stem not in TOP])
    names.update(folder.name for folder in folders)
    assert [name for name, count in names.items() if count > 1] == []


def test_rooms_are_one_level_deep() -> None:
    assert [path for path in modules() if len(path.parts) > 3] == []


# What cbsim/README.md says of them

START, END = "<!-- written by `make generated` -->", "<!-- as far as here -->"


def rooms_text() -> str:
    """The rooms as a list, and as a diagram of the imports that no others imply."""
    listed = [f"* [{name}]({name}/README.md): {text}" for name, text in ROOMS.items()]
    nodes = [f'    {name}["{name}"]' for name in reversed(ROOMS)]
    arrows = [f"    {room} --> {lower}" for room in reversed(ROOMS) for lower in direct_imports(room)]
    return "\n".join([*listed, "", "```mermaid", "flowchart TD", *nodes, *arrows, "```"])


def direct_imports(room: str) -> list[str]:
    """The rooms that a room imports from and that are not below another such room, in their order."""
    below = imports_of_rooms()
    implied = {far for near in below[room] for far in all_below(near)}
    return [name for name in ROOMS if name in below[room] - implied]


def all_below(room: str) -> set[str]:
    """The rooms that a room imports from, directly or not."""
    below = imports_of_rooms()[room]
    return below.union(*(all_below(each) for each in below))


@cache
def imports_of_rooms() -> dict[str, set[str]]:
    """The rooms that each room imports from."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in modules():
        if path.parts[0] in found:
            found[path.parts[0]] |= rooms_imported(path)
    return found


def with_rooms(page: str) -> str:
    """A page with what stands between the two marks written anew."""
    before, _, rest = page.partition(START)
    after = rest.partition(END)[2]
    return f"{before}{START}\n\n{rooms_text()}\n\n{END}{after}"


def test_the_page_lists_the_rooms() -> None:
    page = README.read_text(encoding="utf-8")
    assert page == with_rooms(page), "stale: run `make generated` and commit what it writes"


def life_of_a_request() -> list[str]:
    """The steps of the page's chapter on the life of a request."""
    chapter = (
        README.read_text(encoding="utf-8").partition("## The life of a request")[2].partition("\n## ")[0]
    )
    return re.findall(r"^\d+\. (.*(?:\n   .*)*)", chapter, re.MULTILINE)


def functions(text: str) -> list[str]:
    """Everything in backticks that has dots in it: `module.function` or `module.Class.method`."""
    return re.findall(r"`(\w+(?:\.\w+)+)`", text)


def exists(name: str) -> bool:
    """Whether there is such a function, by a module's name alone or with the folders it lies in."""
    parts = name.split(".")
    for path in modules():
        dotted = path.with_suffix("").parts
        for length in range(1, len(parts)):
            if dotted[-length:] == tuple(parts[:length]):
                found: object = importlib.import_module(".".join((PACKAGE.name, *dotted)))
                for part in parts[length:]:
                    found = getattr(found, part, None)
                return callable(found)
    return False


def test_the_life_of_a_request_has_ten_steps_with_a_function_each() -> None:
    steps = life_of_a_request()
    assert len(steps) == 10
    assert all(functions(step) for step in steps)


@pytest.mark.parametrize("name", [name for step in life_of_a_request() for name in functions(step)])
def test_each_function_of_it_exists(name: str) -> None:
    assert exists(name)


def test_what_does_not_exist_is_noticed() -> None:
    assert exists("simpy_world.World.run")
    assert not exists("simpy_world.World.walk")
    assert not exists("nowhere.World.run")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("README.md")), ids=lambda path: str(path.parent.name))
def test_readmes_name_modules_that_exist(path: Path) -> None:
    known = {module.name for module in modules()} | {each.name for each in ROOT.rglob("tests/**/*.py")}
    named = set(re.findall(r"`(?:[\w/]+/)?(\w+\.py)`", path.read_text(encoding="utf-8")))
    assert named <= known


# What imports cost

HEAVY = (
    "pandas",
    "matplotlib",
    "torch",
    "pyarrow",
    "simpy",
    "scipy",
    "numpy",
    "distributed",
    "optuna",
    "rich",
    "pydantic",
)


@pytest.mark.parametrize(
    "code",
    [
        "import cbsim",
        "import cbsim; dir(cbsim); cbsim.__version__",
        "from click.testing import CliRunner; from cbsim.cli import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0",
    ],
    ids=["import", "version", "help"],
)
def test_a_plain_import_and_the_help_load_nothing_heavy(code: str) -> None:
    check = f"{code}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_running_and_saving_load_neither_pandas_nor_matplotlib(tmp_path: Path) -> None:
    """pyarrow imports pandas by itself in `to_numpy` and for a scalar of None."""
    workload = {
        "type": "synthetic",
        "num_requests": 3,
        "arrivals": {"type": "all_at_once"},
        "prompt_tokens": {"type": "fixed", "value": 8},
        "output_tokens": {"type": "fixed", "value": 4},
    }
    parts = {"scheduler": {"type": "vllm"}, "cost_model": {"type": "roofline"}}
    settings = {"model": "llama-3-8b", "gpu": "h200", "workload": workload, **parts}
    check = (
        f"import cbsim, sys\ncbsim.run({settings!r}, out={str(tmp_path / 'run')!r})\n"
        "heavy = ('pandas', 'matplotlib', 'torch', 'scipy', 'rich')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_public_names_stay_what_they_are_when_the_modules_behind_them_are_imported() -> None:
    check = (
        "import cbsim, importlib\n"
        "for name in ('run', 'sweep', 'capacity', 'compare', 'tune'):\n"
        "    importlib.import_module(f'cbsim.studies.{name}')\n"
        "    assert callable(getattr(cbsim, name)), name\n"
        "assert all(getattr(cbsim, name) is not None for name in cbsim.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


if __name__ == "__main__":
    README.write_text(with_rooms(README.read_text(encoding="utf-8")), encoding="utf-8")
