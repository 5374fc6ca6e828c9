"""Surrogate: a Gaussian process over settings, which tells a figure of settings not tried, and how surely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular

Values = NDArray[np.float64]
_NUM_DRAWN = 60
"""Length scales that are tried for each dimension, together."""
_LENGTHS = (0.1, 4.0)
"""The shortest and the longest, as shares of a range."""
_NOISES = (1e-4, 1e-2)
"""Of the variance: what neighbouring settings differ by for no reason, at least and at most."""


class Surrogate:
    """Interpolates a figure between settings: a Gaussian process with a Matérn 5/2 kernel.

    Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, ch. 2 and 5. Of length scales drawn
    at random, an own one for each dimension, those of the highest marginal likelihood are taken.
    """

    def __init__(self, places: Values, figures: Sequence[float], random: np.random.Generator) -> None:
        """`places` are settings as points of the unit cube, a row each; `figures` belong to the rows."""
        self._places = places
        known = np.array(figures, dtype=np.float64)
        self._mean, self._scale = float(known.mean()), float(known.std()) or 1.0
        known = (known - self._mean) / self._scale
        drawn = log_uniform(random, _LENGTHS, (_NUM_DRAWN, places.shape[1]))
        noises = log_uniform(random, _NOISES, (_NUM_DRAWN, 1))[:, 0].tolist()
        fits = [self._fit(known, *each) for each in zip(drawn, noises, strict=True)]
        _, self._lengths, self._factor, self._weights = max(fits, key=lambda fit: fit[0])

    def _fit(self, known: Values, lengths: Values, noise: float) -> tuple[float, Values, Any, Values]:
        """The logarithm of the marginal likelihood, and what predictions need."""
        covariance = _matern(self._places, self._places, lengths) + noise * np.eye(len(known))
        factor = cho_factor(covariance, lower=True)
        weights = cho_solve(factor, known)
        likelihood = -0.5 * known @ weights - float(np.log(np.diag(factor[0])).sum())
        return float(likelihood), lengths, factor, weights

    def predict(self, places: Values) -> tuple[Values, Values]:
        """The figure expected at each place, and its standard deviation."""
        covariance = _matern(places, self._places, self._lengths)
        explained = solve_triangular(self._factor[0], covariance.T, lower=True)
        variance = np.maximum(1 - (explained**2).sum(axis=0), 1e-12)
        return self._mean + self._scale * (covariance @ self._weights), self._scale * np.sqrt(variance)


def log_uniform(random: np.random.Generator, ends: tuple[float, float], size: tuple[int, int]) -> Values:
    """Numbers between two ends, every factor as likely."""
    return np.exp(random.uniform(math.log(ends[0]), math.log(ends[1]), size))


def _matern(first: Values, second: Values, lengths: Values) -> Values:
    difference = (first[:, None, :] - second[None, :, :]) / lengths
    distance = np.sqrt(5.0 * (difference**2).sum(axis=2))
    covariance: Values = (1 + distance + distance**2 / 3) * np.exp(-distance)
    return covariance


def expected_gain(mean: Values, deviation: Values, best: float) -> Values:
    """By how much a figure is expected to exceed the best: "expected improvement" (Jones et al., 1998)."""
    from scipy.special import ndtr

    ahead = (mean - best) / deviation
    density = np.exp(-0.5 * ahead**2) / math.sqrt(2 * math.pi)
    gain: Values = deviation * (ahead * ndtr(ahead) + density)
    return gain


def chance_above(mean: Values, deviation: Values, limit: float) -> Values:
    """The chance of a figure to exceed a limit."""
    from scipy.special import ndtr

    chance: Values = ndtr((mean - limit) / deviation)
    return chance
