"""Spreadsheets: texts in CSV files that one would take for formulas, and run."""

from __future__ import annotations

import re
from typing import Any

ESCAPED = r"^'('*[=+\-@\t\r])"
"""What `escaped` writes, as RE2 and Python find it; the first group is what was there."""
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def escaped(value: Any) -> Any:
    """A cell for a CSV file: a text that begins as a formula does begins with a quote instead.

    So does one that begins with quotes before that, so that `ESCAPED` finds what was there.
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value
