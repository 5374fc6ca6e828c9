"""TokenBook: the values of every request's tokens, and the random numbers it samples by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbsim.lab.kernels.sampling import SamplingParams
from cbsim.workload.request import Request

ANSWER_PREFIX = "o:"
PROMPTS, SAMPLES = 0, 1
"""Purposes that random streams are spawned by."""


@dataclass(slots=True)
class _Sequence:
    """A request's prompt and answer, as far as it is known."""

    tokens: NDArray[np.int64]
    """Zeros where nobody knows them yet."""
    num_prompt: int
    num_known: int
    uniforms: NDArray[np.float64]
    """A random number in [0, 1) for each token of the answer."""


class TokenBook:
    """Keeps prompts and answers by request, and makes up prompts for requests that only have lengths.

    Made-up tokens depend on the seed, the segment's name and the offset in it alone, so two prompts share
    exactly what their segments share. A segment `o:X` is the answer of request X as far as it is known when
    the prompt is first asked for. A request's random numbers depend on the seed and its id alone, never on
    what runs beside it.
    """

    def __init__(
        self, vocab_size: int, seed: int, sampling: SamplingParams | Mapping[str, SamplingParams]
    ) -> None:
        self._vocab_size = vocab_size
        self._seed = seed
        self._sampling = sampling
        self._sequences: dict[str, _Sequence] = {}

    def add_prompt(self, request: Request, prompt: Sequence[int] | None = None) -> None:
        """Give a request its prompt, or make one up from its segments."""
        num_prompt, num_output = request.num_prompt_tokens, request.num_output_tokens
        tokens = np.zeros(num_prompt + num_output, dtype=np.int64)
        tokens[:num_prompt] = self._made_up(request) if prompt is None else prompt
        uniforms = self._stream(SAMPLES, request.request_id).random(num_output)
        self._sequences[request.request_id] = _Sequence(tokens, num_prompt, num_prompt, uniforms)

    def slice(self, request: Request, first: int, count: int) -> NDArray[np.int64]:
        """`count` tokens from position `first`. Raises RuntimeError for tokens that nobody knows yet."""
        sequence = self._sequences[request.request_id]
        if first + count > sequence.num_known:
            raise RuntimeError(f"{request.request_id}: token {first + count - 1} is not known yet")
        return sequence.tokens[first : first + count]

    def append(self, request: Request, token: int) -> None:
        """A token was sampled for a request."""
        sequence = self._sequences[request.request_id]
        sequence.tokens[sequence.num_known] = token
        sequence.num_known += 1

    def answer(self, request_id: str) -> list[int]:
        """The tokens generated so far."""
        sequence = self._sequences[request_id]
        answer: list[int] = sequence.tokens[sequence.num_prompt : sequence.num_known].tolist()
        return answer

    def sampling_of(self, request: Request) -> SamplingParams:
        """How its next token is chosen."""
        if isinstance(self._sampling, SamplingParams):
            return self._sampling
        return self._sampling[request.request_id]

    def uniform(self, request: Request) -> float:
        """The random number in [0, 1) of its next token."""
        sequence = self._sequences[request.request_id]
        return float(sequence.uniforms[sequence.num_known - sequence.num_prompt])

    def _made_up(self, request: Request) -> NDArray[np.int64]:
        segments = request.prompt or ((f"p:{request.request_id}", request.num_prompt_tokens),)
        parts = [self._segment(name, count) for name, count in segments]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def _segment(self, name: str, count: int) -> NDArray[np.int64]:
        tokens = self._stream(PROMPTS, name).integers(0, self._vocab_size, count)
        answered = name.removeprefix(ANSWER_PREFIX)
        if name.startswith(ANSWER_PREFIX) and answered in self._sequences:
            known = self.answer(answered)[:count]
            tokens[: len(known)] = known
        return tokens

    def _stream(self, purpose: int, name: str) -> np.random.Generator:
        digest = hashlib.sha256(name.encode()).digest()
        words = tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))
        seeds = np.random.SeedSequence(self._seed, spawn_key=(purpose, *words))
        return np.random.Generator(np.random.PCG64(seeds))
