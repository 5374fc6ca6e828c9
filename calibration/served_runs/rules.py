"""What is wrong with rows of the sample: rules that put them right, and rules that leave them out.

Each rule is an entry: a name, a sentence with its evidence, and the rows it takes. They are applied in order,
and none looks at how well a run is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from calibration.served_runs.checkpoints import CHECKPOINTS

Rows = pd.DataFrame
"""The sample's columns, with `clients`, `tensor`, `data`, `expert`, `expert_tensor`, `origin`."""
Mask = pd.Series

INFERENCE_MAX = "InferenceMAX"
"""Where dated files and the database dump come from (github.com/InferenceMAX/InferenceMAX); the scripts there
say how servers and clients were set up."""
RUNNER = "aiconfigurator"
"""Where the others come from: its authors' own runs."""
AGGREGATED, APART = "agg", "disagg"
"""What the sample calls servers that compute prompts and decode, and those that leave one of it to others."""
SAME_CASE = ["model", "precision", "framework", "system", "isl", "osl", "clients", "tensor", "data", "expert"]
"""Columns that runs of one case have in common, whatever the release."""
SPECULATING = 0.87
"""Of two runs of one case the faster one drafts tokens if it takes less than this share of the other's TPOT.
Shares are 0.43 to 0.87, 0.64 at the median; without speculation twins differ by 1 to 6 %, and none lies
between 0.87 and 0.96."""
SHORTEST_SHARE = 0.8
"""InferenceMAX draws prompts and answers evenly between this share of the length and the whole of it
(`--random-range-ratio 0.8`)."""
WAITING, NEAR = 0.85, 0.03
"""Fewer of a worker's clients than this share have their answer decoded; so near is a number of seats."""
SPECULATORS = ("1.1.0rc2.post2", "1.2.0rc6.post3", "0.5.9")
"""Releases of TensorRT-LLM and of SGLang that drafted in some runs of DeepSeek-R1."""
STALLED_TTFT_MS = 5000.0


class Correction(NamedTuple):
    """Rows that say something that can be put right, and what their columns should hold."""

    name: str
    evidence: str
    takes: Callable[[Rows], Mask]
    values: Callable[[Rows], Mapping[str, object]]


class Exclusion(NamedTuple):
    """Rows that nothing can be predicted of, or nothing yet."""

    name: str
    evidence: str
    takes: Callable[[Rows], Mask]


def _all_gpus(rows: Rows) -> Mask:
    return rows["expert_tensor"] * rows["expert"]


def _is_r1(rows: Rows) -> Mask:
    return rows["model"] == "DeepSeek-R1"


def _was_split_by_script(rows: Rows) -> Mask:
    """DeepSeek-R1 by TensorRT-LLM while InferenceMAX's scripts chose how to split it; no image is named."""
    is_trtllm = (rows["framework"] == "trtllm") & (rows["origin"] == INFERENCE_MAX)
    return _is_r1(rows) & is_trtllm & rows["version"].isna() & (rows["tensor"] > 1)


def _had_experts_dealt_out(rows: Rows) -> Mask:
    """DeepSeek-R1 in nvfp4 by SGLang while InferenceMAX named no release."""
    is_scripted = (rows["framework"] == "sglang") & (rows["origin"] == INFERENCE_MAX) & rows["version"].isna()
    return _is_r1(rows) & is_scripted & (rows["precision"] == "fp4") & (rows["system"] == "b200_sxm")


def _split_by_script(rows: Rows) -> Mapping[str, object]:
    """How those scripts split it, by clients and lengths (`benchmarks/dsr1_*_trt_slurm.sh`)."""
    gpus, clients = rows["tensor"], rows["clients"]
    is_long, is_even = rows["isl"] == 8192, rows["isl"] == rows["osl"]
    is_fp4, is_h200 = rows["precision"] == "fp4", rows["system"] == "h200_sxm"
    of_eight = np.where(is_long, 32, np.where(is_even, 8, 16))
    whole_beyond = np.where(gpus == 4, np.where(is_long, 0, 32), of_eight)
    most_fp8 = np.where(is_h200, np.where(is_long, 32, 64), np.where(is_even, 32, 64))
    is_whole = ~is_fp4 | (clients > whole_beyond)
    with_ranks = clients > np.where(is_fp4, np.where(is_long, 32, 255), most_fp8)
    expert = np.where(is_whole, gpus, 1)
    return {
        "tensor": np.where(with_ranks, 1, gpus),
        "data": np.where(with_ranks, gpus, 1),
        "expert": expert,
        "expert_tensor": gpus // expert,
    }


CORRECTIONS = (
    Correction(
        "products of parallelism",
        "the file's reader multiplied what describes the same GPUs: TP 64 with experts split 8 x 8 is 8 GPUs "
        "with EP 8, as 60 rows show whose twins in another file say so",
        lambda rows: (
            rows["has_data"]
            & (rows["expert"] > 1)
            & (rows["expert"] == rows["expert_tensor"])
            & (rows["tensor"] * rows["data"] == _all_gpus(rows))
        ),
        lambda rows: {
            "tensor": np.where(rows["data"] > 1, 1, rows["expert"]),
            "data": np.where(rows["data"] > 1, rows["expert"], 1),
            "expert_tensor": 1,
        },
    ),
    Correction(
        "attention's ranks counted twice",
        "TP 4, DP 4 and EP 16 are 4 GPUs: a node of 8 has no 16, and the run's name says tp4, ep4. Runs that "
        "say so with DP 1 have TTFT and TPOT within 1 % of these, and one file has these very ones with DP 1",
        lambda rows: (
            (rows["data"] > 1)
            & (rows["tensor"] == rows["data"])
            & (_all_gpus(rows) == rows["tensor"] * rows["data"])
        ),
        lambda rows: {"expert": rows["data"], "expert_tensor": 1, "data": 1},
    ),
    Correction(
        "ranks of attention left out",
        "vLLM's Qwen3-235B with TP 1 and experts split in 2 has 2 GPUs, each with its own requests",
        lambda rows: ~rows["has_data"] & rows["has_experts"] & (rows["tensor"] < _all_gpus(rows)),
        lambda rows: {"data": _all_gpus(rows) // rows["tensor"]},
    ),
    Correction(
        "experts of dense models",
        "a dense model's columns of expert parallelism say 0, 1 or nothing",
        lambda rows: (
            ~rows["has_experts"] & ((rows["expert"] != 1) | (rows["expert_tensor"] != rows["tensor"]))
        ),
        lambda rows: {"expert": 1, "expert_tensor": rows["tensor"]},
    ),
    Correction(
        "DeepSeek-R1 split by a script",
        "until December 2025 InferenceMAX's scripts for TensorRT-LLM chose experts' and attention's ranks by "
        "clients and lengths, and the file says EP 1 of all; 17 runs on H200s have the TPOT, within 1 %, of "
        "later ones that say EP 8",
        _was_split_by_script,
        _split_by_script,
    ),
    Correction(
        "SGLang's experts dealt out by a script",
        "while no release is named InferenceMAX's script for DeepSeek-R1 in nvfp4 on B200s asked SGLang to "
        "deal out whole experts (`--enable-ep-moe` in `benchmarks/dsr1_fp4_b200_docker.sh`), and the file "
        "says EP 1; of later releases it says EP 4 and 8",
        _had_experts_dealt_out,
        lambda rows: {"expert": rows["tensor"], "expert_tensor": 1},
    ),
    Correction(
        "clients of several servers",
        "outside InferenceMAX the number of clients may be that of a front end before several servers, or of "
        "one rank; `batch_size` is what one rank had",
        lambda rows: (rows["origin"] == RUNNER) & (rows["clients"] != rows["batch_size"] * rows["data"]),
        lambda rows: {"clients": rows["batch_size"] * rows["data"]},
    ),
)


def _release(*names: str) -> Callable[[Rows], Mask]:
    return lambda rows: rows["version"].isin(names)


def _of_slowest(rows: Rows) -> Mask:
    """TPOT over that of the slowest run of the same case; SGLang's first ones in nvfp4 tell nothing, since
    later ones are 1 to 21 % faster, with prompts and answers of any length.
    """
    telling = rows["tpot_ms"].where(~_had_experts_dealt_out(rows))
    return rows["tpot_ms"] / telling.groupby([rows[column] for column in SAME_CASE]).transform("max")


def _has_no_twin(rows: Rows) -> Mask:
    return rows.groupby(SAME_CASE)["tpot_ms"].transform("size") == 1


def _may_speculate(rows: Rows) -> Mask:
    sglang = rows["framework"] == "sglang"
    may = ~sglang | ((rows["system"] == "b200_sxm") & (rows["precision"] == "fp8"))
    may &= _release(*SPECULATORS)(rows) & _has_no_twin(rows)
    return _is_r1(rows) & (may | (rows["origin"] == RUNNER))


EXCLUSIONS = (
    Exclusion(
        "the same measurement again",
        "TTFT and TPOT agree to 10 us, as one file rounds them; DeepSeek-V3's rows are mostly R1's runs, in "
        "another file",
        lambda rows: rows.assign(ttft=rows["ttft_ms"].round(2), tpot=rows["tpot_ms"].round(2)).duplicated(
            ["system", "clients", "isl", "osl", "ttft", "tpot"]
        ),
    ),
    Exclusion(
        "prefill and decode apart",
        "they are compared by themselves (`--apart`)",
        lambda rows: rows["mode"] != AGGREGATED,
    ),
    Exclusion(
        "prompts that were not computed",
        "vLLM 0.12's Llama-8B in FP8: prompts pass one H200 at up to 118,000 tokens a second, 95 % of its "
        "peak, with decodes beside; its prefix cache is on by default, and it must have known them",
        lambda rows: rows["model_path"] == "nvidia/Llama-3.1-8B-Instruct-FP8",
    ),
    Exclusion(
        "attention not modelled",
        "Qwen3.5 (linear attention in turn) and GLM-5 (sparse attention)",
        lambda rows: rows["model"].isna(),
    ),
    Exclusion(
        "more than 8 GPUs",
        "aggregated runs on GB200 with TP 12 to 72 are misread, and links between nodes were not measured",
        lambda rows: rows["tensor"] * rows["data"] > 8,
    ),
    Exclusion(
        "parallelism that contradicts itself",
        "experts on other GPUs than attention",
        lambda rows: rows["has_experts"] & (rows["tensor"] * rows["data"] != _all_gpus(rows)),
    ),
    Exclusion(
        "perhaps speculation",
        "DeepSeek-R1 by these releases, where no run of the same case tells, and in Dynamo's images, whose "
        "configurations for it draft tokens",
        _may_speculate,
    ),
    Exclusion(
        "speculation, unlabelled",
        "DeepSeek-R1: runs of one case differ by release, the faster takes 0.43 to 0.87 of the slower's "
        "TPOT: TensorRT-LLM 1.2.0rc6.post3, half of 1.1.0rc2.post2, some of SGLang 0.5.9; 1.2.0rc6.post2 "
        "without it is up to 19 % faster than 1.1",
        lambda rows: _is_r1(rows) & _release(*SPECULATORS)(rows) & (_of_slowest(rows) < SPECULATING),
    ),
    Exclusion(
        "TTFT of 5 to 9 s whatever the load",
        "SGLang's DeepSeek-R1 in nvfp4 on B200s without a release: 4 clients with prompts of 8192 tokens "
        "wait as long as 128 with 1024, for something that isn't in a step",
        lambda rows: (
            _is_r1(rows)
            & (rows["framework"] == "sglang")
            & (rows["precision"] == "fp4")
            & (rows["system"] == "b200_sxm")
            & rows["version"].isna()
            & (rows["ttft_ms"] > STALLED_TTFT_MS)
            & (rows["clients"] <= 128)
        ),
    ),
    Exclusion(
        "SGLang 0.5.10 on B300s, prompts of 8192 tokens",
        "128 clients take 3.5 times what kernels do and 4 clients 1.8 times, shorter prompts nothing of it",
        lambda rows: (
            rows["version"].fillna("").str.startswith("0.5.10")
            & (rows["system"] == "b300_sxm")
            & (rows["isl"] == 8192)
        ),
    ),
    Exclusion(
        "gpt-oss on H100s with 512 clients",
        "vLLM 0.11.2 answers 512 clients with a TPOT of 4 to 10 ms and a TTFT of 20 to 460 s: a few seats "
        "were taken, how many is not said",
        lambda rows: (
            (rows["model"] == "gpt-oss-120b") & (rows["system"] == "h100_sxm") & (rows["clients"] == 512)
        ),
    ),
    Exclusion(
        "Dynamo's Qwen3-32B in bf16 on GB200s",
        "TPOT is 8 ms with one client, 94 ms with 4 and 72 ms with 32: the front end, not the server",
        lambda rows: (rows["model"] == "Qwen3-32B") & (rows["system"] == "gb200") & rows["precision"].isna(),
    ),
)


def _is_early_sglang(rows: Rows) -> Mask:
    return (rows["framework"] == "sglang") & (rows["version"] == "0.5.5.post2")


def _decoding(rows: Rows) -> Mask:
    """Requests that a worker decodes at a time by Little's law: TTFT holds prompt and queues."""
    answer = rows["osl"] * np.where(rows["origin"] == INFERENCE_MAX, (1 + SHORTEST_SHARE) / 2, 1.0)
    decoding_ms = answer * rows["tpot_ms"]
    return rows["clients"] / rows["decode_workers"] * decoding_ms / (rows["ttft_ms"] + decoding_ms)


def _power_of_two(counts: Mask) -> Mask:
    """The nearest one."""
    return 2 ** np.round(np.log2(counts))


APART_CORRECTIONS = (
    Correction(
        "tensor parallelism called ranks of attention",
        "SGLang 0.5.5.post2 on four GPUs a worker, said to have DP 4 with experts sliced in 4: later "
        "releases with as many workers, clients and tokens say TP 4, and TPOT of five such pairs is within "
        "5 %, three of them on GB300s for GB200s",
        lambda rows: _is_early_sglang(rows) & (rows["data"] == 4) & (rows["expert_tensor"] == 4),
        lambda rows: {"tensor": 4, "data": 1, "prefill_tensor": 4, "prefill_data": 1},
    ),
    Correction(
        "wide ranks' experts called sliced",
        "SGLang 0.5.5.post2 with DP 32, experts sliced in 32: of an FP8 expert's 2048 that leaves half a "
        "block of 128; later releases with as many workers, clients and tokens say EP 32, and EP 4 or 8 for "
        "prefill",
        lambda rows: _is_early_sglang(rows) & (rows["data"] == 32) & (rows["expert_tensor"] == 32),
        lambda rows: {
            "expert": 32,
            "expert_tensor": 1,
            "prefill_expert": rows["prefill_data"],
            "prefill_expert_tensor": 1,
        },
    ),
    Correction(
        "fewer seats than clients",
        "`decode_batch_size` is clients by workers. By Little's law some workers with 2 to 80 clients decode "
        "1, 2, 4, 8, 16, 32 or 64 requests at a time, within 3 %, while others wait: TTFT jumps to seconds "
        "and TPOT stands still. TensorRT-LLM's workers are told how many (`max_batch_size`)",
        lambda rows: (
            (rows["data"] == 1)
            & (_decoding(rows) < WAITING * rows["clients"] / rows["decode_workers"])
            & (np.abs(_decoding(rows) / _power_of_two(_decoding(rows)) - 1) < NEAR)
        ),
        lambda rows: {"seats": _power_of_two(_decoding(rows))},
    ),
)
APART_EXCLUSIONS = (
    EXCLUSIONS[0],
    Exclusion(
        "workers not told",
        "neither how many there are nor, mostly, their ranks of attention; some draft tokens, unlabelled",
        lambda rows: rows["decode_workers"].isna(),
    ),
    Exclusion(
        "clients not told",
        "Dynamo's Qwen3-32B and Qwen3-235B of January 2026: `decode_batch_size` is what was asked for",
        lambda rows: rows["clients"].isna(),
    ),
    Exclusion(
        "attention not modelled",
        "GLM-5 (sparse attention)",
        lambda rows: rows["model"].isna(),
    ),
    Exclusion(
        "layers over more than 8 GPUs",
        "TP 16 over two nodes of H100s or four trays of GB200s: no such all-reduce was timed",
        lambda rows: (rows["tensor"] > 8) | (rows["prefill_tensor"] > 8),
    ),
)
"""Of servers that prefill and decode apart."""


def model_of(rows: Rows) -> Mask:
    """The name of each row's model, none where it isn't modelled."""
    keys = zip(rows["model_path"], rows["precision"].fillna("bf16"), strict=True)
    names = [CHECKPOINTS[key].model if key in CHECKPOINTS else None for key in keys]
    return pd.Series(names, index=rows.index, dtype=object)
