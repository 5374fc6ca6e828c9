"""How far profiles are from kernels that they were not fitted to, and rooflines from profiles.

    python -m calibration.errors

It prints the table of README.md. For the last column steps of three kinds are priced by each profile and by a
roofline of the same model and GPUs, without the host: decodes alone, a prompt's chunk alone, and both
together. What it prints for each kind of GPU stands in `cbsim/cost/roofline.py`, for the notes of runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, get_args

import numpy as np

from cbsim.base.units import markdown_table
from cbsim.cost.costfile import CostFile, model_shape, read_cost_file, shipped_profiles
from cbsim.cost.profile import ProfileConfig, ProfileCost
from cbsim.cost.roofline import RooflineConfig, RooflineCost, is_module
from cbsim.cost.step_columns import Floats, StepColumns, StepShape
from cbsim.lab.calibrate.accuracy import Errors
from cbsim.lab.calibrate.named_spec import load_gpu, load_model
from cbsim.specs import GpuSpec, ModelSpec
from cbsim.specs.precision import WeightDtype

DECODES = (1, 4, 16, 64, 128, 256)
CONTEXTS = (256, 1024, 4096, 16_384)
CHUNKS = (128, 512, 2048, 8192)


def steps(model: ModelSpec) -> StepColumns:
    """The steps that are priced: 6 x 4 of decodes, 4 of a chunk, 6 x 4 of a chunk of 512 and decodes."""
    window = model.window or max(CONTEXTS)

    def shape(num_decodes: int, context: int, tokens: int) -> StepShape:
        chunks = ((tokens, 0),) if tokens else ()
        windowed = num_decodes * min(context, window)
        longest = context if num_decodes else 0
        return StepShape(chunks, len(chunks), num_decodes, num_decodes * context, longest, windowed)

    return StepColumns.from_shapes(
        [
            *(shape(n, context, 0) for n in DECODES for context in CONTEXTS),
            *(shape(0, 0, tokens) for tokens in CHUNKS),
            *(shape(n, context, 512) for n in DECODES for context in CONTEXTS),
        ]
    )


class Priced(NamedTuple):
    """A shipped profile, and seconds of the steps by it and by a roofline."""

    file: CostFile
    gpu: GpuSpec
    roofline_s: Floats
    profile_s: Floats


def priced_profiles() -> dict[str, Priced]:
    """All that are shipped, by name."""
    return {name: priced(name, read_cost_file(path)) for name, path in shipped_profiles().items()}


def priced(name: str, file: CostFile) -> Priced:
    """What the profile says of the steps, and what a roofline does."""
    gpu, model = load_gpu(name.split("/", maxsplit=1)[0]), model_of(file)
    profile = ProfileConfig(type="profile", profile=name, host="none")
    columns, sharing = steps(model), file.parallel
    return Priced(
        file,
        gpu,
        RooflineCost(RooflineConfig(type="roofline"), model, gpu, sharing).steps_s(columns),
        ProfileCost(profile, model, gpu, sharing).steps_s(columns),
    )


def model_of(file: CostFile) -> ModelSpec:
    """The model that was measured, its weights in the dtype that they had."""
    for dtype in (None, *get_args(WeightDtype)):
        model = load_model(str(file.model["name"]), weight_dtype=dtype)
        if model_shape(model) == file.model:
            return model
    raise ValueError(f"no dtype of weights makes {file.model['name']} the model that was measured")


def roofline_errors(profiles: Mapping[str, Priced]) -> dict[bool, tuple[list[str], Errors]]:
    """For modules and for cards: which GPUs were measured, and how far rooflines are off."""
    found: dict[bool, list[Priced]] = {}
    for each in profiles.values():
        found.setdefault(is_module(each.gpu), []).append(each)
    return {
        kind: (
            sorted({each.gpu.name for each in several}),
            Errors.of(
                np.concatenate([each.roofline_s for each in several]),
                np.concatenate([each.profile_s for each in several]),
            ),
        )
        for kind, several in found.items()
    }


KINDS = ("dense", "experts", "logits", "prefill", "decode")
HEADER = ("profile", "held out", "largest held out", "dense layer", "experts", "LM head", "prefill attention")


def row_of(name: str, profile: Priced) -> tuple[str, ...]:
    """A profile's row: errors of kernels held out, by kind, and of the roofline's steps, percent."""
    file = profile.file
    held_out, largest = file.accuracy["held_out"], file.accuracy["largest_held_out"]["all"]
    sharing = {"TP": file.tensor_parallel, "EP": file.expert_parallel, "DP": file.data_parallel}
    split = "".join(f", {word} {number}" for word, number in sharing.items() if number > 1)
    roofline = Errors.of(profile.roofline_s, profile.profile_s)
    return (
        f"`{name}`{split}",
        f"{_two(held_out['all'])} / {held_out['all']['worst_pct']:.0f}",
        f"{_two(largest)} / {largest['worst_pct']:.0f}",
        *(_two(held_out[kind]) if kind in held_out else "-" for kind in KINDS),
        f"{roofline.median_pct:.0f} / {roofline.p90_pct:.0f}",
    )


def _two(errors: Mapping[str, float]) -> str:
    return f"{errors['median_pct']:.1f} / {errors['p90_pct']:.1f}"


def main() -> None:
    """Print the table, then the errors of rooflines by kind of GPU."""
    header = (*HEADER, "decode attention", "roofline's steps")
    profiles = priced_profiles()
    print(markdown_table(header, [row_of(name, profile) for name, profile in profiles.items()]))
    for kind, (gpus, errors) in roofline_errors(profiles).items():
        print("modules" if kind else "cards", ", ".join(gpus), *errors.cells)


if __name__ == "__main__":
    main()
