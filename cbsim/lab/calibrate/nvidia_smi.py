"""What the driver says of a card: clocks, what slows them, MIG, who else is on it. Nothing is changed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from cbsim.base.units import MIB

COMMAND = ("nvidia-smi", "-q", "-x")
HARMLESS = ("gpu_idle", "applications_clocks_setting", "display_clocks_setting")
"""Reasons for low clocks that say nothing of a card at work."""


@dataclass(frozen=True, slots=True)
class OtherProcess:
    """A process that has memory on the card."""

    pid: int
    name: str
    used_bytes: int


@dataclass(frozen=True, slots=True)
class CardState:
    """One card as its driver sees it; None or nothing where the driver doesn't say."""

    driver: str
    uuid: str
    mig: str
    """`Enabled`, `Disabled` or what else the driver says."""
    sm_clock_mhz: int | None
    max_sm_clock_mhz: int | None
    slowed_by: tuple[str, ...]
    """Reasons for clocks below their highest that hold now: `sw_power_cap`, `hw_thermal_slowdown` ..."""
    temperature_c: int | None
    utilisation_pct: int | None
    processes: tuple[OtherProcess, ...]


def card_states(command: tuple[str, ...] = COMMAND) -> list[CardState]:
    """Every card of this machine; none where there is no such program or it says nothing that can be read."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return [_state(ran.stdout, card) for card in ElementTree.fromstring(ran.stdout).iter("gpu")]
    except (OSError, subprocess.SubprocessError, ElementTree.ParseError):
        return []


def _state(text: str, card: ElementTree.Element) -> CardState:
    reasons = next((found for tag in ("event", "throttle") if (found := _reasons(card, tag))), ())
    driver = re.search(r"<driver_version>([^<]*)<", text)
    return CardState(
        driver=driver[1] if driver else "unknown",
        uuid=card.findtext("uuid", ""),
        mig=card.findtext("mig_mode/current_mig", ""),
        sm_clock_mhz=_number(card.findtext("clocks/sm_clock")),
        max_sm_clock_mhz=_number(card.findtext("max_clocks/sm_clock")),
        slowed_by=tuple(reason for reason in reasons if reason not in HARMLESS),
        temperature_c=_number(card.findtext("temperature/gpu_temp")),
        utilisation_pct=_number(card.findtext("utilization/gpu_util")),
        processes=tuple(_processes(card)),
    )


def _reasons(card: ElementTree.Element, kind: str) -> tuple[str, ...]:
    """Reasons that hold; newer drivers call them events, older ones throttling."""
    prefix = f"clocks_{kind}_reason"
    found = card.find(f"{prefix}s")
    active = [] if found is None else [each for each in found if (each.text or "").strip() == "Active"]
    return tuple(each.tag.removeprefix(f"{prefix}_") for each in active)


def _processes(card: ElementTree.Element) -> Iterator[OtherProcess]:
    for each in card.iter("process_info"):
        used = _number(each.findtext("used_memory"))
        yield OtherProcess(
            _number(each.findtext("pid")) or 0,
            each.findtext("process_name", "unknown"),
            (used or 0) * MIB,
        )


def _number(text: str | None) -> int | None:
    """The whole number that a text such as `1980 MHz` begins with."""
    found = re.match(r"\s*(\d+)", text or "")
    return int(found[1]) if found else None
