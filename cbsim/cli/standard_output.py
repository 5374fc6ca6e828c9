"""Standard output: closed, full, read by nobody any more, or of any encoding."""

from __future__ import annotations

import codecs
import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper

_PLAIN = {"≤": "<=", "≥": ">=", "±": "+-", "×": "x", "–": "-", "—": "-", "…": "...", "µ": "u"}
"""What is written where an encoding lacks a sign."""
_QUIET = "ignore::RuntimeWarning"


@contextmanager
def standard_output() -> Iterator[None]:
    """Everything a command writes goes out or is told in one line; raises `SystemExit` where it can't."""
    _open_closed()
    codecs.register_error("cbsim.plain", _in_plain_signs)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and not is_unicode(stream.encoding):
            stream.reconfigure(errors="cbsim.plain")
    # Last in line: whoever has asked for warnings, as tests do, still gets them. Workers take their options.
    warnings.filterwarnings("ignore", category=RuntimeWarning, append=True)
    if _QUIET not in sys.warnoptions:
        sys.warnoptions.insert(0, _QUIET)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:
            raise
        if error.errno != errno.EPIPE:
            with suppress(OSError):
                print(f"standard output: can't be written: {error.strerror}", file=sys.stderr, flush=True)
        _discard_the_rest()
        raise SystemExit(1) from None


def is_unicode(encoding: str | None) -> bool:
    """Whether an encoding has all signs; a stream without one, as `io.StringIO`, takes them all."""
    return encoding is None or codecs.lookup(encoding).name.startswith("utf")


def _in_plain_signs(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    wrong = error.object[error.start : error.end]
    return "".join(_PLAIN.get(sign, "?") for sign in wrong), error.end


def _open_closed() -> None:
    """Let nothing that is opened take the place of a stream that the caller has closed."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", newline="", closefd=False)  # noqa: SIM115 - for as long as all runs
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", newline="", closefd=False)  # noqa: SIM115


def _discard_the_rest() -> None:
    """Python itself would try again to write what is buffered, and complain."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
