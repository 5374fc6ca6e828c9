"""Who may import whom, and what a plain import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "cbsim"

LAYERS: list[set[str]] = [
    {"base"},
    {"errors", "units", "intervals", "pieces", "markdown"},
    {"culprit"},
    {"registry"},
    {"paths", "scratch"},
    {"config"},
    {"specs", "request"},
    {"kernels", "prefix_keys"},
    {"kvcache", "workload", "cost"},
    {"core"},
    {"schedulers"},
    {"observers"},
    {"experiment", "recorder"},
    {"gaps"},
    {"engine"},
    {"router"},
    {"world"},
    {"limits", "backlog"},
    {"metrics", "manifest", "latency"},
    {"tables"},
    {"output", "table_file"},
    {"result"},
    {"core_run"},
    {"run"},
    {"determined"},
    {"address", "labels", "pool"},
    {"sweep"},
    {"replicates", "capacity", "compare", "explain"},
    {"report"},
    {"calibrate", "live", "testing"},
    {"validate"},
    {"bench", "catalog", "command_group", "play", "preview", "progress", "workload_file"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
"""From the lowest; parts of one layer don't import each other."""
EXTRA_EDGES = {
    # `report` draws what `calibrate` fitted, in a picture that knows nothing of calibration.
    ("calibrate", "report"),
}
SPECIAL = {
    # `bench` holds its figures against a bare SimPy loop.
    "simpy": {"world", "bench"},
    "matplotlib": {"report"},
    "torch": {"kernels", "live"},
    "triton": {"kernels", "live"},
    "distributed": {"pool"},
}
"""Third-party packages that only these parts may import."""


def parts() -> dict[str, list[Path]]:
    """The modules and packages directly under `cbsim`, with their files."""
    root = Path(__file__).resolve().parent.parent / PACKAGE
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if relative.parts[0] == "_data":
            continue
        found.setdefault(relative.with_suffix("").parts[0], []).append(path)
    return found


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module a file imports, wherever in it, and whether only for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
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


def rank(part: str) -> int:
    for number, layer in enumerate(LAYERS):
        if part in layer:
            return number
    raise AssertionError(f"cbsim/{part} has no layer in tests/test_architecture.py")


PARTS = parts()


@pytest.mark.parametrize("part", [name for name in PARTS if name != "__init__"])
def test_a_part_imports_lower_ones_only(part: str) -> None:
    for path in PARTS[part]:
        for module, only_for_types in imports(path):
            names = module.split(".")
            if names[0] != PACKAGE or len(names) == 1 or names[1] == part:
                continue
            is_allowed = rank(names[1]) < rank(part) or (part, names[1]) in EXTRA_EDGES
            # Modules that never import each other may be named in annotations.
            assert is_allowed or only_for_types, f"{path.name} imports {module}"


@pytest.mark.parametrize("package", SPECIAL)
def test_only_its_own_part_imports_a_special_package(package: str) -> None:
    importing = {
        part
        for part, paths in PARTS.items()
        for path in paths
        for module, only_for_types in imports(path)
        if module.split(".")[0] == package and not only_for_types
    }
    assert importing <= SPECIAL[package]


def test_the_torch_stack_is_imported_by_calibrate_only_through_kernels() -> None:
    modules = {module for path in PARTS.get("calibrate", []) for module, _ in imports(path)}
    assert not any(module.split(".")[0] in ("torch", "triton") for module in modules)


HEAVY = (
    "pandas",
    "matplotlib",
    "torch",
    "pyarrow",
    "simpy",
    "scipy",
    "numpy",
    "distributed",
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


def test_running_loads_neither_pandas_nor_matplotlib() -> None:
    check = (
        "import cbsim.run, sys\nprint([name for name in ('pandas', 'matplotlib', 'torch', 'scipy', 'rich')"
        " if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_functions_stay_functions_when_the_modules_of_their_names_are_imported() -> None:
    check = (
        "import cbsim, importlib\n"
        "for name in ('run', 'sweep', 'capacity', 'compare'):\n"
        "    importlib.import_module(f'cbsim.{name}')\n"
        "    assert callable(getattr(cbsim, name)), name\n"
        "assert all(getattr(cbsim, name) is not None for name in cbsim.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
