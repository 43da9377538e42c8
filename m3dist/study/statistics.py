"""Paired comparisons over the same users: bootstrap intervals, tests, and correction for many comparisons.

Seeds are averaged per user first, so that a user, not a training run, is what is resampled; the spread over seeds is
shown beside. SciPy and statsmodels do the statistics.

Shapes: S seeds, n users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

from m3dist.seeding import numpy_rng

RESAMPLES = 2000


@dataclass(frozen=True)
class Comparison:
    """Mean of a - b over users with a 95 % bootstrap interval, and the p-value of the paired t test."""

    difference: float
    low: float
    high: float
    p: float


def compare(a_Sn: np.ndarray, b_Sn: np.ndarray) -> Comparison:
    """Two rows over the same users; their numbers of seeds may differ."""
    d = a_Sn.mean(0) - b_Sn.mean(0)
    if len(d) < 2 or not np.any(d):
        return Comparison(float(d.mean()), float(d.mean()), float(d.mean()), 1.0)
    low, high = _interval((d,), np.mean)
    return Comparison(float(d.mean()), low, high, float(stats.ttest_rel(a_Sn.mean(0), b_Sn.mean(0)).pvalue))


def mean(a_Sn: np.ndarray) -> tuple[float, float, float]:
    """Mean over users with its 95 % bootstrap interval."""
    a = a_Sn.mean(0)
    if len(a) < 2 or np.all(a == a[0]):
        return float(a.mean()), float(a.mean()), float(a.mean())
    return float(a.mean()), *_interval((a,), np.mean)


def drop(inside_Sn: np.ndarray, shifted_Sn: np.ndarray) -> tuple[float, float, float]:
    """Relative drop 1 - mean(shifted) / mean(inside) over the same users, with its 95 % bootstrap interval."""
    a, b = inside_Sn.mean(0), shifted_Sn.mean(0)
    if not a.any():
        return float("nan"), float("nan"), float("nan")

    def statistic(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return 1 - b.mean(axis) / np.maximum(a.mean(axis), 1e-12)

    low, high = _interval((a, b), statistic)
    return float(statistic(a, b)), low, high


def _interval(data: tuple[np.ndarray, ...], statistic) -> tuple[float, float]:
    found = stats.bootstrap(
        data, statistic, n_resamples=RESAMPLES, paired=len(data) > 1, vectorized=True, batch=100,
        method="percentile", rng=numpy_rng(0, "bootstrap"),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction of a family of p-values."""
    return [float(x) for x in multipletests(list(p), method="holm")[1]] if len(p) else []
