"""ProfileCost: step times from a form fitted to measured kernels, with the host's share on top."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from cbsim.base.errors import CalibrationError, ConfigError
from cbsim.config.section import ComponentConfig
from cbsim.cost.collectives import Link, hops_s
from cbsim.cost.cost_model import CostModel
from cbsim.cost.costfile import find_cost_file, read_cost_file
from cbsim.cost.costrules import MAX_DECODES, MAX_TOKENS, CostRules, price
from cbsim.cost.form import StepForm
from cbsim.cost.kernel_errors import KernelErrors
from cbsim.cost.profile_record import Hops, profile_record, with_errors
from cbsim.cost.profile_step import Host, HostTime, added_s, hidden_s, profile_step_s
from cbsim.cost.run_errors import StepError, profile_error
from cbsim.cost.step_columns import Floats, Ints, StepColumns
from cbsim.specs import GpuSpec, ModelSpec, ParallelSpec

VLLM_GRAPH_BATCH_SIZES = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)]
"""Batch sizes that vLLM V1 captures CUDA graphs for by default."""

NO_SKEW = {"chain_s_per_token": 0.0, "timed": None}
"""Of decodes that lose nothing by unequal contexts."""

LEAST_MAX_CONTEXT = 32_768
"""Tokens of context up to which errors of mixed steps are drawn at least, whatever the model was made for."""


class ProfileConfig(ComponentConfig):
    """Which measured profile to use, and how the host runs beside the GPU."""

    profile: str
    """`GPU/MODEL` of `calibration/profiles` (`h200/llama-3-8b`), or the path of a profile's folder."""
    host: Host = "async"
    """`async`: the host prepares the next step while the GPU works (vLLM's default), and a step takes the
    longer of the two and a gap; `sync`: the host's time adds to the GPU's; `none`: GPU time alone."""
    host_step_s: float = Field(default=1e-3, ge=0)
    """Host seconds of a step."""
    host_request_s: float = Field(default=1e-5, ge=0)
    """Host seconds more for each request in the step."""
    host_gap_s: float = Field(default=1.5e-4, ge=0)
    """With `async`, seconds from the end of a step on the GPU to the start of the next (0 to 0.3 ms seen)."""
    attention: Literal["measured", "formula", "sum"] = "measured"
    """`measured`: by the tables of a profile that has them, else by its formula; `formula`: never by tables;
    `sum`: chunks and decodes of a step as if each were launched alone."""
    unequal_contexts: bool = True
    """Whether tables add what decodes of unequal context lose."""
    cuda_graph_batch_sizes: list[int] = VLLM_GRAPH_BATCH_SIZES
    """Batch sizes with a CUDA graph: a pure decode step is padded to the next one; `[]` for none."""
    mixed_graph_tokens: int = Field(default=512, ge=0)
    """Tokens up to which a step with chunks has CUDA graphs, between attention: of vLLM 512, or twice
    `max_num_seqs` if that is less; 0 for engines that capture decodes alone. Told by `eager_step_s`."""
    eager_step_s: float = Field(default=0.0, ge=0)
    """Least seconds of a step without a CUDA graph, whose kernels the host launches one by one: with chunks
    and more than `mixed_graph_tokens` tokens, or with more decodes than any batch size above. 0 for none;
    TensorRT-LLM on 4 and 8 GPUs looked like 15 ms in 177 served runs (calibration/README.md)."""
    sort_logit_s: float = Field(default=0.0, ge=0)
    """Seconds more for each logit of the vocabulary and row sampled, where the sampler sorts them (top-k,
    top-p). 0 for none; vLLM took 1.4e-10 (1.1 ms for 64 and 2.4 ms for 128 rows of 131,072, by its pull
    request 40376)."""

    uncertainty: bool = False
    """Whether step times carry an error, drawn from the seed, as large as runs of that kind of profile and
    its held-out kernels showed it: intervals over replicates then include what the cost model may be wrong
    by."""
    step_error_pct: float | None = Field(default=None, ge=0, le=1000)
    """Percent that a run's steps may take more or less than predicted, in 9 of 10 cases; null takes what runs
    with that kind of profile showed. The intervals of the run's latencies come from it; 0 gives none."""

    def missing_files(self) -> Iterator[tuple[str, str]]:
        """See `ComponentConfig.missing_files`."""
        try:
            find_cost_file(self.profile)
        except CalibrationError as error:
            yield "profile", error.problems[0]

    @field_validator("cuda_graph_batch_sizes")
    @classmethod
    def _sizes_rise(cls, sizes: list[int]) -> list[int]:
        if any(size < 1 for size in sizes) or sorted(set(sizes)) != sizes:
            raise ValueError("batch sizes must be positive and rise")
        return sizes


class ProfileCost(CostModel):
    """A fitted `StepForm` and a host model.

    Raises `CalibrationError` for a profile that can't be read, `ConfigError` for one of another model, GPU or
    degree of tensor parallelism.
    """

    Config = ProfileConfig
    config: ProfileConfig

    def __init__(
        self, config: ProfileConfig, model: ModelSpec, gpu: GpuSpec, parallel: ParallelSpec | int = 1
    ) -> None:
        super().__init__(config, model, gpu, parallel)
        self._path = find_cost_file(config.profile)
        self._file = read_cost_file(self._path)
        differs = self._file.mismatch(model, self.parallel)
        if self._file.gpu is not None and self._file.gpu != gpu.name:
            differs.append(f"gpu {self._file.gpu}, not {gpu.name}")
        if differs:
            raise ConfigError(
                f"cost_model.profile: '{config.profile}' was measured with {', '.join(differs)}"
            )
        sizes = config.cuda_graph_batch_sizes
        up_to_last = range(sizes[-1] + 1) if sizes else ()
        self._padded_tokens = [sizes[bisect_left(sizes, count)] for count in up_to_last]
        self._form = _chosen(self._file.form, config)
        eager = {"eager_s": config.eager_step_s, "graph_tokens": config.mixed_graph_tokens}
        host = config.host_step_s, config.host_request_s, config.host_gap_s
        self._host = HostTime.of(config.host, *host, **eager)
        self._sort_row_s = config.sort_logit_s * model.vocab_size
        self._errors: KernelErrors | None = None
        self._hops: Hops | None = None
        if self.parallel.pipeline > 1:
            fixed_s, token_s = hops_s(model, self.parallel, Link.of(gpu))
            self._hops = Hops(fixed_s, token_s / self.parallel.data)
        self._max_context = max(model.max_model_len, LEAST_MAX_CONTEXT)

    @property
    def uses_seed(self) -> bool:
        """With `uncertainty`."""
        return self.config.uncertainty

    @property
    def step_error(self) -> StepError:
        """By what was timed, and how many GPUs share the model."""
        found = profile_error(
            self._file.accuracy,
            has_collectives=self._file.form.collectives is not None
            and "collectives" not in self._file.accuracy.get("estimated", {}),
            num_gpus=self.parallel.tensor * self.parallel.data,
            has_experts=self.model.experts is not None,
        )
        return found.given(self.config.step_error_pct)

    @property
    def alternative(self) -> tuple[str, ProfileCost] | None:
        """What decodes of unequal contexts lose: GPUs and kernels differ in it more than in anything else."""
        grid = self._form.grid
        skews = [part.skew for part in (grid.decode, grid.mixed) if part is not None] if grid else []
        if not self.config.unequal_contexts or not any(
            skew.timed or skew.chain_s_per_token for skew in skews
        ):
            return None
        how = "as timed or estimated" if any(skew.timed for skew in skews) else "by theory"
        config = self.config.model_copy(update={"unequal_contexts": False})
        without = ProfileCost(config, self.model, self.gpu, self.parallel)
        return f"what decodes of unequal contexts lose, {how} (cost_model.unequal_contexts)", without

    def drawn(self, seed: int) -> ProfileCost:
        """With `uncertainty` the model with a seed's errors; `CalibrationError` if the profile has none."""
        if not self.config.uncertainty:
            return self
        drawn = copy(self)
        for made in ("inherited_rules", "_by_rules"):
            vars(drawn).pop(made, None)
        drawn._errors = KernelErrors.read(self._file.accuracy, self._path, self.step_error.sigma, seed)
        return drawn

    def rules(self, max_tokens: int = MAX_TOKENS, max_decodes: int = MAX_DECODES) -> CostRules:
        """The rule of all profiles, and the record of this one."""
        record = profile_record(
            self._form,
            self._padded_tokens,
            self._host,
            max_tokens,
            max_decodes,
            self._hops,
            self._sort_row_s,
        )
        if self._errors is not None:
            record = with_errors(record, self._errors, self._max_context)
        return CostRules(profile_step_s, record)

    def host_s(self, step_s: Floats, num_requests: Ints, columns_of: Callable[[Ints], StepColumns]) -> Floats:
        """Seconds by which steps would be shorter without the host: a gap, or all beyond the GPU's time."""
        added: Floats = added_s(self._host, num_requests)
        least_s = np.maximum(hidden_s(self._host, num_requests), self._host.eager_s)
        is_bound = np.flatnonzero(step_s <= least_s + added)
        rules = self.inherited_rules
        if len(is_bound) and rules is not None:
            without_host = CostRules(rules.step_s, rules.record._replace(host=HostTime()))
            added[is_bound] = step_s[is_bound] - price(without_host, columns_of(is_bound))
        return added

    def notes(self, steps: Mapping[str, NDArray[Any]] | None = None) -> list[str]:
        """What the profile takes for granted, and how many steps of a run lay beyond what was measured."""
        sentences, box = list(self._file.assumptions), self._file.box
        if self.config.uncertainty:
            sentences.append(
                "step times carry errors drawn from the seed, as large as those of its held-out kernels and, "
                f"in common, {self.step_error.pct:.3g}% in 9 of 10 cases"
            )
        if steps is not None and (num_outside := box.num_outside(steps)):
            sentences.append(
                f"{num_outside:,} of {len(steps['num_logits']):,} steps lay outside the calibrated range "
                f"(up to {box.max_tokens:,} tokens, {box.max_decodes:,} decodes, "
                f"{box.max_context_tokens:,} tokens of context), with times extrapolated"
            )
        return [f"profile {self.config.profile}: {sentence}" for sentence in sentences]

    def inputs(self) -> list[Path]:
        """The profile's file."""
        return [self._path]


def _chosen(form: StepForm, config: ProfileConfig) -> StepForm:
    """The form with the parts that the configuration asks for."""
    grid = form.grid
    if config.attention != "measured" or grid is None:
        apart = {"fused": None, "beside": None} if config.attention == "sum" else {}
        return form.model_copy(update={"grid": None, **apart})
    if not config.unequal_contexts:
        parts = {"decode": grid.decode, "mixed": grid.mixed}
        equal = {
            name: part.model_copy(update={"skew": part.skew.model_copy(update=NO_SKEW)})
            for name, part in parts.items()
            if part is not None
        }
        return form.model_copy(update={"grid": grid.model_copy(update=equal)})
    return form
