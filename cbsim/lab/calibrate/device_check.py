"""What works on this machine and what does not, said before minutes are spent."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from cbsim.base.errors import CalibrationError
from cbsim.base.units import GIB, format_bytes, format_seconds
from cbsim.lab.calibrate.measurement import find_room, time_point
from cbsim.lab.calibrate.named_spec import gpu_of_device
from cbsim.lab.calibrate.nvidia_smi import CardState, card_states
from cbsim.lab.calibrate.timing_plan import PlanPoint
from cbsim.lab.kernels.device_facts import DeviceFacts, device_facts
from cbsim.lab.kernels.graph_capture import CaptureFailed, one_line
from cbsim.lab.kernels.layer_ops import TRITON_CAPABILITY
from cbsim.lab.kernels.shard import Shard
from cbsim.lab.kernels.timing import Device, DeviceLost, Timer, make_timer, open_device
from cbsim.specs import ModelSpec

Level = Literal["fine", "note", "stop"]
OLDEST_TORCH = (2, 11)
OLDEST_TRITON = (3, 6)
FP8_CAPABILITY, GROUPED_CAPABILITY = (8, 9), (9, 0)
"""NVIDIA's capabilities with FP8 units, and with grouped products of experts that need no help of the
host."""
USED_BYTES = GIB
"""Memory in use, from which on somebody else is on the card."""
BUSY_PCT = 5
COOL_SHARE = 0.5
TRIED_LAYERS, TRIED_VOCABULARY = 2, 1024
"""Of the model that kernels are tried with: its heads and widths, and little of the rest."""
TRIED = (
    PlanPoint("dense", tokens=64),
    PlanPoint("logits", num_logits=8),
    PlanPoint("decode", contexts=(200,) * 8),
    PlanPoint("prefill", chunks=((96, 0),)),
    PlanPoint("prefill", chunks=((48, 64), (16, 0))),
    PlanPoint("mixed", chunks=((48, 64),), contexts=(100,) * 4),
    PlanPoint("step", chunks=((48, 0),), contexts=(100,) * 4, tokens=52, num_logits=5),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    """`stop`: timing can't begin; `note`: something is missing, or figures will need words beside them."""
    text: str


fine, note, stop = (partial(Finding, level) for level in get_args(Level))


def check_device(kind: str, model: ModelSpec | None = None, tensor_parallel: int = 1) -> list[Finding]:
    """Everything that can be known of a device beforehand, and each kernel tried once if a model is named."""
    facts = device_facts(kind)
    findings = software_findings(facts) + device_findings(facts)
    if facts.kind == "cuda" and not facts.is_amd:
        findings += card_findings(card_states(), facts)
    if model is not None and all(each.level != "stop" for each in findings):
        opened = open_device(kind)
        findings += memory_findings(model, tensor_parallel, opened)
        if findings[-1].level != "stop":
            findings += kernel_findings(model, tensor_parallel, opened, make_timer(opened))
    return findings


def software_findings(facts: DeviceFacts) -> list[Finding]:
    """Of Python, torch and Triton."""
    found = [fine(f"Python {facts.python}, torch {facts.torch}, built for {facts.built_for}")]
    if _version(facts.torch) < OLDEST_TORCH:
        found.append(stop(f"torch {facts.torch} is too old: 2.11 or newer is needed"))
    found += [note(f"this torch has no {name}: others do its work") for name in facts.missing]
    if facts.kind == "cuda":
        if facts.triton is None:
            without = "with --backend sdpa decodes are far slower than an engine's"
            found.append(note(f"the package triton is missing: {without}"))
        elif _version(facts.triton) < OLDEST_TRITON:
            found.append(note(f"Triton {facts.triton} is older than 3.6, which was tried"))
        else:
            found.append(fine(f"Triton {facts.triton}"))
    return found


def device_findings(facts: DeviceFacts) -> list[Finding]:
    """Of the device as torch sees it."""
    if facts.kind != "cuda":
        return [fine("a CPU: kernels are timed by the clock, with a warm cache")]
    if facts.trouble:
        hint = ""
        if "CPUs alone" in facts.trouble:
            hint = "; install one for this GPU from pytorch.org"
        return [stop(f"no GPU can be used: {facts.trouble}{hint}")]
    memory = f"{format_bytes(facts.free_bytes)} of {format_bytes(facts.total_bytes)} free"
    found = [fine(f"{facts.name}, {memory}")]
    if facts.is_amd:
        found.append(
            note(
                "an AMD GPU: nothing here was tried on one; Triton's tiles are cut to 64 KiB of shared "
                "memory, and clocks, partitions and other processes are not looked at"
            )
        )
    if facts.capability is not None:
        found += _capability_findings(facts, facts.capability)
    if gpu_of_device(facts.name) is None:
        found.append(note("configs/gpus has no such GPU: without --gpu NAME no share of a peak is told"))
    if facts.total_bytes - facts.free_bytes > USED_BYTES:
        used = format_bytes(facts.total_bytes - facts.free_bytes)
        found.append(note(f"{used} of its memory are in use: somebody else is on the card"))
    return found


def _capability_findings(facts: DeviceFacts, capability: tuple[int, int]) -> list[Finding]:
    """What NVIDIA's older GPUs lack."""
    major, minor = capability
    name = f"sm_{major}{minor}"
    found = []
    kernels_for = {text.rstrip("af") for text in facts.architectures}
    same = {f"sm_{major}{lower}" for lower in range(minor + 1)}
    newer = {f"compute_{a}{b}" for a in range(major + 1) for b in range(10) if (a, b) <= capability}
    if facts.architectures and not kernels_for & (same | newer):
        listed = ", ".join(facts.architectures)
        found.append(stop(f"this torch has no kernels for {name}: it has {listed}"))
    if capability < TRITON_CAPABILITY:
        found.append(
            note(
                f"{name}: Triton needs sm_80 and bfloat16 has no units here: take --backend sdpa and a model "
                "in float16"
            )
        )
    if capability < FP8_CAPABILITY:
        found.append(note(f"{name}: no FP8: no weights and no KV cache in fp8"))
    if capability < GROUPED_CAPABILITY:
        found.append(note(f"{name}: torch computes experts with the host's help: without CUDA graphs"))
    return found


def card_findings(states: Sequence[CardState], facts: DeviceFacts) -> list[Finding]:
    """Of the card as its driver sees it."""
    mine = [state for state in states if facts.uuid and facts.uuid.removeprefix("GPU-") in state.uuid]
    if not mine and len(states) == 1:
        mine = list(states)
    if not mine:
        text = "nvidia-smi says nothing of this card: clocks, MIG and other processes are unknown"
        return [note(text)]
    (state,) = mine
    found = [fine(f"driver {state.driver}{_clocks(state)}")]
    if state.mig == "Enabled":
        found.append(note("MIG is on: this is a slice of a card, with other peaks than in configs/gpus"))
    if state.slowed_by:
        slowed = ", ".join(reason.replace("_", " ") for reason in state.slowed_by)
        found.append(note(f"its clocks are held down now: {slowed}"))
    others = [each for each in state.processes if each.pid != os.getpid()]
    for each in others:
        used = f", {format_bytes(each.used_bytes)}" if each.used_bytes else ""
        found.append(note(f"another process is on the card: {each.pid} {each.name}{used}"))
    if state.utilisation_pct is not None and state.utilisation_pct > BUSY_PCT:
        found.append(note(f"it is busy {state.utilisation_pct} % of the time with others' work"))
    return found


def _clocks(state: CardState) -> str:
    told = ""
    if state.sm_clock_mhz is not None and state.max_sm_clock_mhz is not None:
        told += f", clock {state.sm_clock_mhz} of at most {state.max_sm_clock_mhz} MHz"
        if state.sm_clock_mhz < COOL_SHARE * state.max_sm_clock_mhz:
            told += " (idle)"
    if state.temperature_c is not None:
        told += f", {state.temperature_c} degrees"
    return told


def memory_findings(model: ModelSpec, tensor_parallel: int, device: Device) -> list[Finding]:
    """Whether a model fits, and how much KV cache beside it; where there are no kernels for it, which."""
    try:
        shard = Shard(model, tensor_parallel)
        room = find_room(device, shard)
    except CalibrationError as error:
        return [stop(problem) for problem in error.problems]
    weights = format_bytes(shard.weight_bytes)
    kv_tokens = room.limits.max_step_kv_tokens
    return [fine(f"{model.name}: {weights} of weights, whole steps over {kv_tokens:,} tokens of KV")]


def kernel_findings(model: ModelSpec, tensor_parallel: int, device: Device, timer: Timer) -> list[Finding]:
    """Every kind of work tried once, with the model's heads and widths; the last finding may be a failure."""
    tried = PlanPoint("experts", tokens=64)
    points = [*TRIED, tried] if model.experts is not None else list(TRIED)
    small = small_model(model)
    found: list[Finding] = []
    try:
        shard = Shard(small, tensor_parallel)
        rig = find_room(device, shard).rig(shard, device)
    except Exception as error:
        return [stop(f"kernels can't be set up: {one_line(error)}")]
    wrong: dict[str, str] = getattr(rig.backend, "wrong", {})
    found += [note(f"chunks can't go by {name}: {why}") for name, why in wrong.items()]
    for point in points:
        try:
            seconds = time_point(rig, timer, point).median_s
        except CaptureFailed as error:
            found.append(note(f"{point.op} can't be captured into a CUDA graph: {error}"))
            found.append(note("nothing else was tried: captures that fail spoil a process"))
            break
        except DeviceLost as error:
            found.append(stop(f"{point.op} makes the device fail: {error}"))
            break
        except Exception as error:
            found.append(note(f"{point.op} fails: {one_line(error)}"))
        else:
            found.append(fine(f"{point.op} works ({format_seconds(seconds)})"))
    return found


def small_model(model: ModelSpec) -> ModelSpec:
    """A model of the same heads and widths with few layers and tokens, which loads in a moment."""
    changes: dict[str, object] = {
        "num_layers": TRIED_LAYERS,
        "vocab_size": TRIED_VOCABULARY,
        "num_sliding_layers": 0,
        "sliding_window": None,
    }
    if model.experts is not None:
        changes["experts"] = model.experts.model_copy(update={"num_layers": TRIED_LAYERS})
    return model.model_copy(update=changes)


def worst(findings: Sequence[Finding]) -> Level:
    """The most serious level found."""
    levels: tuple[Level, ...] = ("stop", "note", "fine")
    return next((level for level in levels if any(each.level == level for each in findings)), "fine")


def told(findings: Sequence[Finding]) -> str:
    """One line each, those that need attention marked."""
    marks = {"fine": "  ", "note": "! ", "stop": "X "}
    return "\n".join(f"{marks[each.level]}{each.text}" for each in findings)


def _version(text: str) -> tuple[int, ...]:
    numbers = text.partition("+")[0].split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdigit()) or (sys.maxsize,)
