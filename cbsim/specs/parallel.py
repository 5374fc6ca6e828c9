"""ParallelSpec: how the GPUs of a replica share a model."""

from __future__ import annotations

from pydantic import Field, model_validator

from cbsim.config.section import Section


class ParallelSpec(Section):
    """How a replica's GPUs share the model: `tensor x pipeline x data` GPUs in all."""

    tensor: int = Field(default=1, ge=1)
    """GPUs that share each layer."""
    pipeline: int = Field(default=1, ge=1)
    """Stages, each of which has its share of the layers; a step passes them one after the other, and the next
    step follows a stage behind."""
    expert: int = Field(default=1, ge=1)
    """Groups of GPUs among which the experts of a layer are dealt out; with 1 every GPU has a slice of each
    expert. It divides `tensor x data`."""
    data: int = Field(default=1, ge=1)
    """Ranks that each have their own requests and KV cache and all of the attention, and share the experts;
    a step lasts as long as its slowest rank's."""

    @model_validator(mode="after")
    def _experts_divide(self) -> ParallelSpec:
        if self.num_expert_gpus % self.expert:
            raise ValueError(
                f"got expert: {self.expert} with tensor x data = {self.num_expert_gpus}; expected a divisor"
            )
        return self

    @property
    def num_gpus(self) -> int:
        """GPUs of a replica."""
        return self.tensor * self.pipeline * self.data

    @property
    def num_rank_gpus(self) -> int:
        """GPUs of one rank of data parallelism."""
        return self.tensor * self.pipeline

    @property
    def num_expert_gpus(self) -> int:
        """GPUs that share the experts of a layer."""
        return self.tensor * self.data

    @property
    def expert_tensor(self) -> int:
        """GPUs that share each expert."""
        return self.num_expert_gpus // self.expert


ONE_GPU = ParallelSpec()
