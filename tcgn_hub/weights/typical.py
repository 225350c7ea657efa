"""What weights predict for the tissue that they were trained on, to compare other predictions with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcgn_hub.correlation import centred, standardised
from tcgn_hub.weights.arrays import from_text, to_text

__all__ = ["Typical", "describe_predictions"]

_TAIL = 0.01
_MOST_AXES = 8
_NORMAL_TAIL = 2.326  # standard deviations that 1 % of a normal distribution lie above
_PER_GENE = ("mean", "sd", "low", "high")


@dataclass(frozen=True, eq=False)
class Typical:
    """Predictions for training tissue: each gene by itself, and the few axes along which all of them differ.

    Attributes:
        mean: Of each gene, in the units of the prediction, float32, shape (genes,).
        sd: Standard deviation over the spots; 0 of a gene whose prediction never differs.
        low: What 1 % of the spots are below.
        high: What 1 % of the spots are above.
        axes: Principal axes of the standardised predictions, the longest first, orthonormal rows in which most genes
            are positive, float32, shape (k, genes).
        shares: Of the variance of the standardised predictions that lies along each axis, shape (k,).
        effective_rank: How many axes there are in effect, see `tcgn_hub.evaluation.skill.effective_rank`.
        to_depth: Log10 of a spot's counts at the middle of the axes, and how much it rises along each, shape (k + 1,);
            None if the counts are not known.
    """

    mean: np.ndarray
    sd: np.ndarray
    low: np.ndarray
    high: np.ndarray
    axes: np.ndarray
    shares: np.ndarray
    effective_rank: float
    to_depth: np.ndarray | None = None

    def z(self, values: np.ndarray) -> np.ndarray:
        """Predictions in standard deviations from the mean of training tissue, like ``values``, shape (n, genes).

        NaN of genes whose prediction never differed there.
        """
        sd = np.where(self.sd > 0, self.sd, np.nan)
        return ((values - self.mean) / sd).astype(np.float32)

    def modules(self, values: np.ndarray) -> np.ndarray:
        """Places along the axes, float32, shape (n, k); mean 0 and standard deviation 1 over training tissue.

        Args:
            values: Predictions of all genes, shape (n, genes).
        """
        spread = np.sqrt(self.shares * max(int((self.sd > 0).sum()), 1))
        return (np.nan_to_num(self.z(values)) @ self.axes.T / spread).astype(np.float32)

    def depth(self, modules: np.ndarray) -> np.ndarray | None:
        """Log10 of the panel's counts of a spot as the axes have it, float32, shape (n,); None if it is not known.

        Args:
            modules: What `modules` gave.
        """
        if self.to_depth is None:
            return None
        return (self.to_depth[0] + modules @ self.to_depth[1:]).astype(np.float32)

    def depth_limits(self) -> tuple[float, float] | None:
        """What 1 % of training tissue would be below and above in `depth`, were it normal; None if it is not known."""
        if self.to_depth is None:
            return None
        reach = _NORMAL_TAIL * max(float(np.linalg.norm(self.to_depth[1:])), 1e-3)
        return float(self.to_depth[0] - reach), float(self.to_depth[0] + reach)

    @staticmethod
    def module_limits() -> tuple[float, float]:
        """The same of `modules`."""
        return -_NORMAL_TAIL, _NORMAL_TAIL

    def leading(self, axis: int, genes: tuple[str, ...], count: int = 6) -> tuple[list[str], list[str]]:
        """The genes that rise most along an axis, and those that fall most, if any do."""
        order = np.argsort(-self.axes[axis], kind="stable")
        rising = [genes[i] for i in order[:count] if self.axes[axis, i] > 0]
        falling = [genes[i] for i in order[::-1][:count] if self.axes[axis, i] < 0]
        return rising, falling

    def to_json(self) -> dict[str, Any]:
        """As plain values; arrays as base64 of little-endian float32, the axes of float16."""
        return {
            **{key: to_text(getattr(self, key), "<f4") for key in (*_PER_GENE, "shares")},
            "axes": to_text(self.axes, "<f2"),
            "effective_rank": self.effective_rank,
            "to_depth": None if self.to_depth is None else to_text(self.to_depth, "<f4"),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any], genes: int) -> Typical:
        """What `to_json` gave.

        Args:
            document: The object.
            genes: How many there are.

        Raises:
            ValueError: The document is malformed, or of another number of genes.
        """
        try:
            per_gene = {key: from_text(document[key], "<f4") for key in _PER_GENE}
            shares = from_text(document["shares"], "<f4")
            axes = from_text(document["axes"], "<f2")
            to_depth = None if document["to_depth"] is None else from_text(document["to_depth"], "<f4")
            rank = float(document["effective_rank"])
        except (KeyError, TypeError) as err:
            raise ValueError(f"the predictions for training tissue lack {err}") from err
        parts = (*per_gene.values(), axes, shares, *([] if to_depth is None else [to_depth]))
        if any(len(values) != genes for values in per_gene.values()) or len(axes) != len(shares) * genes:
            raise ValueError(f"the predictions for training tissue are not of {genes} genes")
        if to_depth is not None and len(to_depth) != len(shares) + 1:
            raise ValueError("the predictions for training tissue have a depth of other axes")
        if not all(np.isfinite(part).all() for part in parts) or not (shares > 0).all() or (per_gene["sd"] < 0).any():
            raise ValueError("the predictions for training tissue hold what cannot be")
        return cls(
            **per_gene, axes=axes.reshape(len(shares), genes), shares=shares, effective_rank=rank, to_depth=to_depth
        )


def describe_predictions(values: np.ndarray, depth: np.ndarray | None = None) -> Typical | None:
    """What there is to know of predictions for training tissue.

    Args:
        values: Predictions of all spots, shape (n, genes).
        depth: Log10 of the panel's counts of each spot, shape (n,), NaN where unknown; None if none is known.

    Returns:
        The description; None where no gene differs between spots.
    """
    sd = np.sqrt((centred(values) ** 2).mean(axis=0))
    _, singular, rows = np.linalg.svd(standardised(values), full_matrices=False)
    rank = _rank(singular**2)
    if rank == 0:
        return None
    low, high = np.quantile(values, [_TAIL, 1 - _TAIL], axis=0)
    count = min(math.ceil(rank - 1e-9), _MOST_AXES)
    # rounded as they will be stored
    axes = rows[:count].astype(np.float16).astype(np.float32)
    upside_down = (axes > 0).sum(axis=1) < (axes < 0).sum(axis=1)
    axes = np.where(upside_down[:, None], -axes, axes)
    shares = (singular**2 / (singular**2).sum())[:count]
    of_genes = {"mean": values.mean(axis=0, dtype=np.float64), "sd": sd, "low": low, "high": high}
    found = Typical(
        **{key: part.astype(np.float32) for key, part in of_genes.items()},
        axes=axes,
        shares=shares.astype(np.float32),
        effective_rank=rank,
    )
    known = np.zeros(len(values), bool) if depth is None else np.isfinite(depth)
    if depth is None or known.sum() <= count + 1:
        return found
    places = np.column_stack([np.ones(known.sum()), found.modules(values[known])])
    fitted = np.linalg.lstsq(places, depth[known], rcond=None)[0]
    return Typical(**{**vars(found), "to_depth": fitted.astype(np.float32)})


def _rank(variances: np.ndarray) -> float:
    """How many axes there are in effect: exp of the entropy of the variance along each (Roy and Vetterli, 2007)."""
    total = variances.sum()
    if not total > 0:
        return 0.0
    shares = variances[variances > 1e-12 * total] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))
