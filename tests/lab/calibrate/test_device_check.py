"""What is said of machines before anything is timed: this one, and many that are only described."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

import torch

from calibration.fake_card import FakeTimer, fake_device
from cbsim.base.units import GIB
from cbsim.cli import main
from cbsim.lab.calibrate import device_check
from cbsim.lab.calibrate.device_check import (
    Finding,
    card_findings,
    check_device,
    device_findings,
    kernel_findings,
    memory_findings,
    software_findings,
    told,
    worst,
)
from cbsim.lab.calibrate.nvidia_smi import CardState, OtherProcess, card_states
from cbsim.lab.calibrate.timing_plan import PlanPoint
from cbsim.lab.kernels import device_facts as facts_of
from cbsim.lab.kernels.device_facts import DeviceFacts, device_facts
from cbsim.lab.kernels.graph_capture import CaptureFailed
from cbsim.lab.kernels.timing import DeviceLost, MakeCalls, Timing
from tests.lab.kernels.references import load_model

H200 = DeviceFacts(
    "cuda",
    "3.12.3",
    "2.11.0+cu130",
    "CUDA 13.0",
    "3.6.0",
    (),
    "",
    "NVIDIA H200",
    "1234-abcd",
    (9, 0),
    ("sm_80", "sm_90", "compute_120"),
    140 * GIB,
    139 * GIB,
)
STATE = CardState("580.1", "GPU-1234-abcd", "Disabled", 1980, 1980, (), 41, 0, ())
XML = """<?xml version="1.0" ?>
<nvidia_smi_log>
  <driver_version>580.159.03</driver_version>
  <gpu id="00000000:01:00.0">
    <product_name>NVIDIA H200</product_name>
    <uuid>GPU-1234-abcd</uuid>
    <mig_mode><current_mig>Enabled</current_mig></mig_mode>
    <temperature><gpu_temp>84 C</gpu_temp></temperature>
    <utilization><gpu_util>97 %</gpu_util></utilization>
    <clocks><sm_clock>345 MHz</sm_clock></clocks>
    <max_clocks><sm_clock>1980 MHz</sm_clock></max_clocks>
    <{kind}s>
      <{kind}_gpu_idle>Active</{kind}_gpu_idle>
      <{kind}_sw_power_cap>Active</{kind}_sw_power_cap>
      <{kind}_hw_slowdown>Not Active</{kind}_hw_slowdown>
    </{kind}s>
    <processes>
      <process_info>
        <pid>4321</pid><process_name>vllm</process_name><used_memory>2048 MiB</used_memory>
      </process_info>
      <process_info>
        <pid>{own}</pid><process_name>python3</process_name><used_memory>N/A</used_memory>
      </process_info>
    </processes>
  </gpu>
  <gpu id="00000000:02:00.0"><uuid>GPU-ffff</uuid></gpu>
</nvidia_smi_log>
"""


def notes(findings: list[Finding]) -> list[str]:
    return [finding.text for finding in findings if finding.level != "fine"]


def test_a_card_as_it_should_be() -> None:
    found = software_findings(H200) + device_findings(H200) + card_findings([STATE], H200)
    assert notes(found) == []
    assert told(found).splitlines() == [
        "  Python 3.12.3, torch 2.11.0+cu130, built for CUDA 13.0",
        "  Triton 3.6.0",
        "  NVIDIA H200, 139 GiB of 140 GiB free",
        "  driver 580.1, clock 1980 of at most 1980 MHz, 41 degrees",
    ]


@pytest.mark.parametrize(
    ("changes", "level", "said"),
    [
        ({"torch": "2.9.1"}, "stop", "torch 2.9.1 is too old: 2.11 or newer is needed"),
        ({"triton": None}, "note", "the package triton is missing"),
        ({"triton": "3.4.0"}, "note", "Triton 3.4.0 is older than 3.6"),
        ({"missing": ("torch._scaled_mm",)}, "note", "this torch has no torch._scaled_mm"),
    ],
)
def test_software(changes: dict[str, object], level: str, said: str) -> None:
    found = software_findings(replace(H200, **changes))  # type: ignore[arg-type]
    assert [text for text in notes(found) if text.startswith(said)]
    assert worst(found) == level


@pytest.mark.parametrize(
    ("changes", "level", "said"),
    [
        (
            {"trouble": "this torch is built for CPUs alone"},
            "stop",
            "no GPU can be used: this torch is built for",
        ),
        (
            {"capability": (7, 5)},
            "stop",
            "this torch has no kernels for sm_75: it has sm_80, sm_90, compute_120",
        ),
        (
            {"capability": (7, 5), "architectures": ("sm_75",)},
            "note",
            "sm_75: Triton needs sm_80 and bfloat16 has no units here",
        ),
        ({"capability": (8, 6)}, "note", "sm_86: no FP8"),
        ({"capability": (8, 9)}, "note", "sm_89: torch computes experts with the host's help"),
        ({"name": "NVIDIA GeForce 9999"}, "note", "configs/gpus has no such GPU"),
        ({"free_bytes": 100 * GIB}, "note", "40.0 GiB of its memory are in use"),
        (
            {"capability": None, "built_for": "ROCm 6.4", "name": "AMD Instinct MI300X"},
            "note",
            "an AMD GPU: nothing here was tried on one",
        ),
    ],
)
def test_devices(changes: dict[str, object], level: str, said: str) -> None:
    found = device_findings(replace(H200, **changes))  # type: ignore[arg-type]
    assert [text for text in notes(found) if text.startswith(said)], told(found)
    assert worst(found) == level


def test_a_newer_card_is_served_by_what_its_driver_translates() -> None:
    blackwell = replace(H200, capability=(12, 1), name="NVIDIA B200")
    assert notes(device_findings(blackwell)) == []
    assert worst(device_findings(replace(blackwell, architectures=("sm_90a",)))) == "stop"
    assert worst(device_findings(replace(H200, capability=(9, 0), architectures=("sm_90a",)))) == "fine"


@pytest.mark.parametrize("kind", ["clocks_event_reason", "clocks_throttle_reason"])
def test_what_the_driver_says(kind: str, tmp_path: Path) -> None:
    (tmp_path / "log.xml").write_text(XML.format(kind=kind, own=os.getpid()))
    states = card_states(("cat", str(tmp_path / "log.xml")))
    assert states[0] == CardState(
        "580.159.03",
        "GPU-1234-abcd",
        "Enabled",
        345,
        1980,
        ("sw_power_cap",),
        84,
        97,
        (OtherProcess(4321, "vllm", 2 * GIB), OtherProcess(os.getpid(), "python3", 0)),
    )
    assert states[1].uuid == "GPU-ffff"
    assert (states[1].sm_clock_mhz, states[1].processes) == (None, ())
    found = card_findings(states, H200)
    assert found[0].text.endswith("clock 345 of at most 1980 MHz (idle), 84 degrees")
    assert notes(found) == [
        "MIG is on: this is a slice of a card, with other peaks than in configs/gpus",
        "its clocks are held down now: sw power cap",
        "another process is on the card: 4321 vllm, 2.00 GiB",
        "it is busy 97 % of the time with others' work",
    ]


@pytest.mark.parametrize("command", [("nowhere-to-be-found",), ("false",), ("echo", "no xml")])
def test_without_a_driver_to_ask(command: tuple[str, ...]) -> None:
    assert card_states(command) == []
    assert notes(card_findings([], H200))[0].startswith("nvidia-smi says nothing of this card")


def test_memory() -> None:
    tiny, large = load_model("tiny"), load_model("llama-3-8b")
    assert memory_findings(tiny, 1, fake_device())[0].level == "fine"
    (short,) = memory_findings(large, 1, replace(fake_device(), free_bytes=GIB))
    assert (short.level, short.text[:21]) == ("stop", "model llama-3-8b need")
    (latent,) = memory_findings(load_model("deepseek-v3"), 1, fake_device())[:1]
    assert latent.level == "stop"


def test_each_kernel_is_tried_once() -> None:
    model = load_model("tiny-experts")
    found = kernel_findings(model, 1, fake_device(), FakeTimer())
    assert notes(found) == []
    assert [finding.text.partition(" ")[0] for finding in found] == [
        *("dense", "logits", "decode", "prefill", "prefill", "mixed", "step", "experts")
    ]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NotImplementedError("no such thing\nframes"), ["decode fails: NotImplementedError: no such thing"]),
        (
            CaptureFailed(RuntimeError("not permitted")),
            [
                "decode can't be captured into a CUDA graph: RuntimeError: not permitted",
                "nothing else was tried: captures that fail spoil a process",
            ],
        ),
        (DeviceLost("illegal access"), ["decode makes the device fail: illegal access"]),
    ],
)
def test_kernels_that_fail(error: Exception, said: list[str]) -> None:
    class Failing(FakeTimer):
        def _time(self, make_calls: MakeCalls, what: object, as_graph: bool) -> Timing:
            assert isinstance(what, PlanPoint)
            if what.op == "decode":
                raise error
            return super()._time(make_calls, what, as_graph)

    assert notes(kernel_findings(load_model("tiny"), 1, fake_device(), Failing(runs=False))) == said


def test_this_machine() -> None:
    facts = device_facts("cpu")
    assert facts.torch == torch.__version__
    assert worst(check_device("cpu", load_model("tiny"))) in ("fine", "note")
    if not torch.cuda.is_available():
        assert worst(check_device("cuda", load_model("tiny"))) == "stop"
        assert device_facts("cuda").trouble


def test_a_gpu_as_torch_describes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, uuid, major, minor, total_memory = "NVIDIA H200", "1234-abcd", 9, 0, 140 * GIB

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    monkeypatch.setattr(facts_of, "free_bytes", lambda device: 139 * GIB)
    facts = device_facts("cuda")
    assert (facts.name, facts.capability, facts.architectures) == ("NVIDIA H200", (9, 0), ("sm_90",))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert (device_facts("cuda").is_amd, device_facts("cuda").capability) == (True, None)

    def broken(device: object) -> None:
        raise RuntimeError("CUDA driver initialization failed\nframes")

    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    assert device_facts("cuda").trouble == "RuntimeError: CUDA driver initialization failed"


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*words: str) -> tuple[int, str]:
        ended = CliRunner().invoke(main, ["calibrate", *words])
        return ended.exit_code, ended.output

    code, output = run("--check", "--device", "cpu")
    assert (code, output.splitlines()[1]) == (0, "  a CPU: kernels are timed by the clock, with a warm cache")
    monkeypatch.setattr(device_check, "device_facts", lambda kind: replace(H200, trouble="none is here"))
    code, output = run("--check", "--device", "cuda", "--model", "tiny")
    assert code == 2
    assert "X no GPU can be used: none is here" in output
    assert run("--check")[0] == 2
