"""What this machine's processor is called."""

from __future__ import annotations

import platform
import re
from pathlib import Path


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as the kernel tells it, else what Python knows."""
    told = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    found = re.search(r"^model name\s*:(.*)$", told, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
