"""Sampling: greedy, and frequencies against the distributions that define temperature, top-k and top-p."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from cbsim.base.errors import ConfigError
from cbsim.lab.kernels.sampling import SamplingParams, sample

LOGITS = torch.log(torch.tensor([0.05, 0.4, 0.1, 0.25, 0.2]))


def draw(params: SamplingParams, count: int = 2000) -> np.ndarray:
    """Tokens at evenly spaced random numbers: frequencies are then exact to 1 / count."""
    uniforms = ((np.arange(count) + 0.5) / count).tolist()
    return sample(LOGITS.expand(count, -1), [params] * count, uniforms).numpy()


def frequencies(params: SamplingParams) -> np.ndarray:
    tokens = draw(params)
    return np.bincount(tokens, minlength=5) / len(tokens)


def test_greedy_takes_the_most_likely() -> None:
    assert set(draw(SamplingParams())) == {1}


def test_temperature() -> None:
    weights = np.array([0.05, 0.4, 0.1, 0.25, 0.2])
    for temperature in (0.5, 1.0, 2.0):
        wanted = weights ** (1 / temperature)
        got = frequencies(SamplingParams(temperature))
        np.testing.assert_allclose(got, wanted / wanted.sum(), atol=1e-3)


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(1.0, top_k=2), [1, 3]),
        (SamplingParams(1.0, top_k=1), [1]),
        (SamplingParams(1.0, top_p=0.6), [1, 3]),
        (SamplingParams(1.0, top_p=0.7), [1, 3, 4]),
        (SamplingParams(1.0, top_p=0.01), [1]),
        (SamplingParams(1.0, top_k=3, top_p=0.5), [1, 3]),
        (SamplingParams(1.0, top_k=100), [0, 1, 2, 3, 4]),
    ],
)
def test_top_k_and_top_p(params: SamplingParams, kept: list[int]) -> None:
    weights = np.zeros(5)
    weights[kept] = np.array([0.05, 0.4, 0.1, 0.25, 0.2])[kept]
    np.testing.assert_allclose(frequencies(params), weights / weights.sum(), atol=1e-3)


def test_a_row_depends_on_its_own_number_alone() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.standard_normal((40, 300))).float()
    kinds = [
        SamplingParams(),
        SamplingParams(0.8),
        SamplingParams(1.2, top_k=20),
        SamplingParams(1.0, top_p=0.5),
    ]
    params = [kinds[i % 4] for i in range(40)]
    uniforms = rng.random(40).tolist()
    together = sample(logits, params, uniforms).tolist()
    alone = [sample(logits[i : i + 1], [params[i]], [uniforms[i]]).item() for i in range(40)]
    assert together == alone


def test_the_largest_random_number_stays_within_what_is_kept() -> None:
    params = SamplingParams(1.0, top_k=3)
    tokens = sample(LOGITS[None], [params], [float(np.nextafter(1.0, 0.0))])
    assert tokens.item() in (1, 3, 4)


def test_values_outside_what_is_allowed() -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingParams(-1.0, top_k=-2, top_p=0.0)
    assert caught.value.problems == (
        "temperature: got -1.0; allowed: 0 (greedy) or more",
        "top_k: got -2; allowed: 0 (all) or more",
        "top_p: got 0.0; allowed: more than 0, at most 1",
    )
