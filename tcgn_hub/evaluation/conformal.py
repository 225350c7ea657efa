"""Prediction intervals of each gene from the errors on held-out sections (split conformal prediction).

Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; Lei et al., "Distribution-Free Predictive
Inference for Regression", JASA 113, 1094 (2018). A measurement lies in ``prediction -+ interval_radius`` as often as
promised where it is exchangeable with those the radii come from. Spots of another section are not quite, which is
why coverage is checked section against section.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tcgn_hub.weights.info import INTERVAL_LEVEL

__all__ = ["coverage", "coverage_across", "interval_radius"]


def interval_radius(errors: np.ndarray, level: float = INTERVAL_LEVEL) -> np.ndarray:
    """Half of the width of each gene's interval: the ``ceil((n + 1) level)``-th smallest absolute error.

    Args:
        errors: Prediction less measurement of held-out spots, shape (spots, genes); NaN where nothing was measured.
        level: Share of the measurements that an interval is to hold.

    Returns:
        float64, shape (genes,), in the units of the errors; NaN for genes with too few spots for the level.
    """
    ordered = np.sort(np.abs(errors.astype(np.float64)), axis=0)  # NaN comes last
    number = (~np.isnan(ordered)).sum(axis=0)
    rank = np.array([math.ceil((n + 1) * level - 1e-9) for n in number])  # 70 * 0.7 is a little above 49
    enough = (rank <= number) & (number > 0)
    row = np.where(enough, rank - 1, 0)
    picked = np.take_along_axis(ordered, row[None], axis=0)[0] if len(ordered) else np.full(len(number), np.nan)
    return np.where(enough, picked, np.nan)


def coverage(errors: np.ndarray, radius: np.ndarray) -> float:
    """Share of the measurements that intervals of these radii hold, over spots and genes; NaN without any."""
    known = ~np.isnan(errors) & ~np.isnan(radius)
    return float((np.abs(errors) <= radius)[known].mean()) if known.any() else math.nan


def coverage_across(errors: Mapping[str, np.ndarray], level: float = INTERVAL_LEVEL) -> dict[str, float]:
    """Coverage in each section of intervals that come from the others; empty if there is only one."""
    return {
        name: coverage(own, interval_radius(_stack([e for other, e in errors.items() if other != name]), level))
        for name, own in errors.items()
        if len(errors) > 1
    }


def _stack(errors: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(errors))
