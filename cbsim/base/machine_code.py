"""Machine code of compiled rules: run without numba, kept in files, loaded by LLVM."""

from __future__ import annotations

import ctypes
import hashlib
import marshal
import pickle
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESULTS: dict[str, Any] = {"int64": ctypes.c_int64, "float64": ctypes.c_double}
"""Types of results by numba's names for them; any other result is `None`."""
WORD_BYTES = 8
Array = NDArray[Any]
SUCCESSES = (0, -2)
"""What the code returns, as numba's calling convention has it, unless it raises something."""
HELPER = re.compile(rb"\0((?:numba|NRT)_\w+)")
"""Functions of numba's own that code may call."""
MATHS = ("frexp", "ldexp")
"""Those among them that the C library has too."""


class Raised(ctypes.Structure):
    """Where a pickled exception lies: its class, its arguments, and the line that raised it."""

    _fields_ = (("pickled", ctypes.c_void_p), ("size", ctypes.c_int32))


class MachineCode:
    """A function in memory: its `name` in the object code, and the type of its result in numba's words."""

    def __init__(self, name: str, result: str, code: bytes) -> None:
        import llvmlite.binding as llvm

        library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
        for function in MATHS:
            address = ctypes.cast(getattr(library, function), ctypes.c_void_p).value
            llvm.add_symbol(f"numba_{function}", address)
        if set(HELPER.findall(code)) - {f"numba_{function}".encode() for function in MATHS}:
            from numba.core.registry import cpu_target

            assert cpu_target.target_context  # making it tells LLVM where they are
        self._result = RESULTS.get(result)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self._function = ctypes.CFUNCTYPE(ctypes.c_int32)(self._engine.get_function_address(name))

    def bound_to(self, arguments: tuple[Any, ...]) -> Callable[[], Any]:
        """The function as one without arguments; it raises what the code does."""
        result = (self._result or ctypes.c_int64)()
        raised = ctypes.POINTER(Raised)()
        kept: list[Array] = []
        words = [ctypes.byref(result), ctypes.byref(raised)]
        for argument in arguments:
            words += passed(argument, kept)

        alive = (arguments, kept)

        def call() -> Any:
            assert alive  # as long as words point into them
            if self._function(*words) not in SUCCESSES:
                found = raised.contents
                error, values, _ = pickle.loads(ctypes.string_at(found.pickled, found.size))
                raise error(*values)
            return result.value if self._result else None

        return call


def passed(value: Any, kept: list[Array]) -> Iterator[Any]:
    """An argument as the words in which numba's code takes it; what these point to is added to `kept`."""
    if isinstance(value, list) or hasattr(value, "_fields"):
        kept.append(laid_out([value], kept))
        yield ctypes.c_int64(kept[-1].ctypes.data)
    elif isinstance(value, tuple):
        for item in value:
            yield from passed(item, kept)
    elif isinstance(value, np.ndarray):
        described = (0, 0, value.size, value.itemsize, value.ctypes.data, *value.shape, *value.strides)
        yield from map(ctypes.c_int64, described)
    elif isinstance(value, float):
        yield ctypes.c_double(value)
    else:
        yield from map(ctypes.c_int64, words_of(value, kept))


def laid_out(values: Sequence[Any], kept: list[Array]) -> Array:
    """The words of several values of one kind, one after the other."""
    return np.array([word for value in values for word in words_of(value, kept)], dtype=np.int64)


def words_of(value: Any, kept: list[Array]) -> Iterator[int]:
    """A value as the words that stand for it in a named tuple: arrays and records by where they lie.

    A list holds named tuples of one kind, however many: their number, and where they lie one after the
    other. What the words point to is added to `kept`.
    """
    if isinstance(value, list):
        kept.append(laid_out(value, kept))
        yield from (len(value), kept[-1].ctypes.data)
    elif isinstance(value, tuple):
        for item in value:
            yield from words_of(item, kept)
    elif isinstance(value, np.ndarray):
        yield from (value.ctypes.data, *value.shape, *value.strides)
    elif isinstance(value, np.void):
        yield np.frombuffer(value, np.uint8).ctypes.data
    else:
        yield int(np.float64(value).view(np.int64)) if isinstance(value, float) else int(value)


def kind_of(value: Any) -> str:
    """The type of an argument, as far as machine code depends on it."""
    if isinstance(value, list):
        return f"[{kind_of(value[0])}]"
    if isinstance(value, tuple):
        return f"{type(value).__name__}({', '.join(map(kind_of, value))})"
    if isinstance(value, (np.ndarray, np.void)):
        flags = value.flags
        return f"{_text_of(value.dtype)} {value.ndim} {flags.c_contiguous} {flags.writeable} {flags.aligned}"
    return "float" if isinstance(value, float) else "int"


@cache
def _text_of(dtype: np.dtype[Any]) -> str:
    return repr(dtype)


def read_code(path: Path) -> tuple[str, str, bytes] | None:
    """What `write_code` has kept there; `None` if nothing, or if the file is damaged."""
    with suppress(OSError):
        kept = path.read_bytes()
        if hashlib.sha256(kept[32:]).digest() == kept[:32]:
            found: tuple[str, str, bytes] = marshal.loads(kept[32:])
            return found
    return None


def write_code(path: Path, code: tuple[str, str, bytes]) -> None:
    """Keep machine code in a file, whole or not at all, where the folder can be written."""
    content = marshal.dumps(code)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(content).digest() + content)
        Path(file.name).replace(path)


@cache
def host() -> str:
    """This machine's kind of processor: code for one may not run on another."""
    import llvmlite.binding as llvm

    return f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"


@cache
def _machine() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(jit=True)
