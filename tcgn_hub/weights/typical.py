"""What weights predict for the tissue that they were trained on, to compare other predictions with."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tcgn_hub.correlation import centred, pearson, standardised
from tcgn_hub.ridge import choose_penalty, fit_ridge, predict_ridge
from tcgn_hub.weights.arrays import from_text, to_text

__all__ = ["Depth", "Typical", "describe_predictions"]

_TAIL = 0.01
_MOST_AXES = 8
_NORMAL_TAIL = 2.326  # standard deviations that 1 % of a normal distribution lie above
_PER_GENE = ("mean", "sd", "low", "high")
_LEAST_SPOTS = 40  # below, depth is not learned from 1280 features
_LEAST_SD = 0.01  # of the features' median, below which one would weigh too much where it differs more
_PENALTIES = tuple(10.0 ** np.arange(1, 6.25, 0.5))


@dataclass(frozen=True, eq=False)
class Depth:
    """Log10 of the panel's counts of a spot as predicted, and how predictions of genes go with it in training tissue.

    Attributes:
        of: What it is linear in: 'features', the means over positions of the final map, or, in weights of versions that
            did not learn it, 'modules', see `Typical.modules`.
        weight: By which it rises with each of these, float32, shape (d,).
        offset: What it is where they are 0.
        mean: Of the spots of the training tissue.
        sd: Their standard deviation.
        slope: By which each gene's prediction rises with it there, float32, shape (genes,).
    """

    of: str
    weight: np.ndarray
    offset: float
    mean: float
    sd: float
    slope: np.ndarray

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """The depth of patches, float32, shape (n,), from their features or modules, shape (n, d)."""
        return (self.offset + numbers @ self.weight.astype(np.float64)).astype(np.float32)

    def among(self, depths: np.ndarray, values: np.ndarray) -> Depth | None:
        """The same with how predictions go with it in other tissue; None if it is the same in all of that.

        ``depths``: what a call gave there, shape (n,); ``values``: predictions, shape (n, genes).
        """
        own = depths.astype(np.float64)
        if not own.std() > 1e-6:
            return None
        slope = (own - own.mean()) @ centred(values) / len(own) / own.var()
        return replace(self, mean=float(own.mean()), sd=float(own.std()), slope=slope.astype(np.float32))

    def limits(self) -> tuple[float, float]:
        """What 1 % of training tissue would be below and above, were it normal."""
        reach = _NORMAL_TAIL * max(self.sd, 1e-3)
        return self.mean - reach, self.mean + reach

    def to_json(self) -> dict[str, Any]:
        """As plain values; arrays as base64 of little-endian float32."""
        return {**vars(self), **{key: to_text(getattr(self, key), "<f4") for key in ("weight", "slope")}}

    @classmethod
    def from_json(cls, document: dict[str, Any], genes: int) -> Depth:
        """What `to_json` gave.

        Args:
            document: The object.
            genes: How many there are.

        Raises:
            ValueError: The document is malformed, or of another number of genes.
        """
        try:
            weight, slope = (from_text(document[key], "<f4") for key in ("weight", "slope"))
            offset, mean, sd = (float(document[key]) for key in ("offset", "mean", "sd"))
            of = document["of"]
        except (KeyError, TypeError) as err:
            raise ValueError(f"the predicted depth lacks {err}") from err
        if of not in ("features", "modules") or len(slope) != genes:
            raise ValueError(f"the predicted depth is of {of!r} and {len(slope)} genes, where {genes} are predicted")
        if not all(np.isfinite(part).all() for part in (weight, slope, offset, mean, sd)) or not sd > 0:
            raise ValueError("the predicted depth holds what cannot be")
        return cls(of, weight, offset, mean, sd, slope)


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
        effective_rank: How many axes there are in effect, see `tcgn_hub.correlation.effective_rank`.
        to_depth: Log10 of a spot's counts at the middle of the axes, and how much it rises along each, shape (k + 1,);
            None if the counts are not known.
        learned_depth: The same from the features; None if it was not learned.
    """

    mean: np.ndarray
    sd: np.ndarray
    low: np.ndarray
    high: np.ndarray
    axes: np.ndarray
    shares: np.ndarray
    effective_rank: float
    to_depth: np.ndarray | None = None
    learned_depth: Depth | None = None

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
        return (np.nan_to_num(self.z(values)) @ self.axes.T / self._spread).astype(np.float32)

    @property
    def _spread(self) -> np.ndarray:
        """Standard deviation over training tissue along each axis, shape (k,)."""
        return np.sqrt(self.shares * max(int((self.sd > 0).sum()), 1))

    @cached_property
    def depth(self) -> Depth | None:
        """How depth is predicted: as it was learned, or else read off the axes; None if it is not known."""
        if self.learned_depth is not None or self.to_depth is None:
            return self.learned_depth
        weight = self.to_depth[1:]
        # along the axes training tissue has standard deviation 1, and nothing of one goes with another
        variance = float(weight @ weight)
        slope = self.sd * ((weight * self._spread) @ self.axes) / variance if variance else 0 * self.sd
        mean = float(self.to_depth[0])
        return Depth("modules", weight, mean, mean, math.sqrt(variance), slope.astype(np.float32))

    @cached_property
    def given_depth_sd(self) -> np.ndarray | None:
        """What `sd` is of values given depth, shape (genes,); None if depth is not known."""
        if self.depth is None:
            return None
        return np.sqrt(np.maximum(self.sd.astype(np.float64) ** 2 - (self.depth.slope * self.depth.sd) ** 2, 0))

    def given_depth_limits(self, gene: int) -> tuple[float, float] | None:
        """What 1 % of training tissue would be below and above in a gene given depth, were it normal, by its number.

        None if depth is not known.
        """
        if self.given_depth_sd is None:
            return None
        mean, reach = float(self.mean[gene]), _NORMAL_TAIL * float(self.given_depth_sd[gene])
        return mean - reach, mean + reach

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
            **({} if self.learned_depth is None else {"depth": self.learned_depth.to_json()}),
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
            depth = None if document.get("depth") is None else Depth.from_json(document["depth"], genes)
        except (KeyError, TypeError) as err:
            raise ValueError(f"the predictions for training tissue lack {err}") from err
        parts = (*per_gene.values(), axes, shares, *([] if to_depth is None else [to_depth]))
        if any(len(values) != genes for values in per_gene.values()) or len(axes) != len(shares) * genes:
            raise ValueError(f"the predictions for training tissue are not of {genes} genes")
        if to_depth is not None and len(to_depth) != len(shares) + 1:
            raise ValueError("the predictions for training tissue have a depth of other axes")
        if depth is not None and depth.of == "modules" and len(depth.weight) != len(shares):
            raise ValueError(f"the predicted depth is of {len(depth.weight)} axes, where there are {len(shares)}")
        if not all(np.isfinite(part).all() for part in parts) or not (shares > 0).all() or (per_gene["sd"] < 0).any():
            raise ValueError("the predictions for training tissue hold what cannot be")
        return cls(
            **per_gene,
            axes=axes.reshape(len(shares), genes),
            shares=shares,
            effective_rank=rank,
            to_depth=to_depth,
            learned_depth=depth,
        )


def describe_predictions(
    values: np.ndarray,
    depth: np.ndarray | None = None,
    *,
    features: np.ndarray | None = None,
    parts: np.ndarray | None = None,
) -> Typical | None:
    """What there is to know of predictions for training tissue.

    Args:
        values: Predictions of all spots, shape (n, genes).
        depth: Log10 of the panel's counts of each spot, shape (n,), NaN where unknown; None if none is known.
        features: Means over positions of the final map, shape (n, d), from which depth is learned where it is known of
            40 spots; None to read it off the axes alone.
        parts: The number of the part that each spot belongs to, such as its section, shape (n,): how much the ridge
            regression is held back is chosen by predicting each part from the others.

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
    found = replace(found, to_depth=fitted.astype(np.float32))
    if features is None or parts is None or known.sum() < _LEAST_SPOTS:
        return found
    return replace(found, learned_depth=_learned(values, depth, features, parts, known))


def _learned(
    values: np.ndarray, depth: np.ndarray, features: np.ndarray, parts: np.ndarray, known: np.ndarray
) -> Depth | None:
    """Depth by ridge regression on the features, from the spots whose depth is known; None if there is nothing in it.

    See `describe_predictions`.
    """
    sd = features.std(axis=0, dtype=np.float64)
    enough = sd > _LEAST_SD * np.median(sd)
    x, y = features[known][:, enough].astype(np.float64), depth[known, None]
    penalty = choose_penalty(x, y, parts[known], _PENALTIES, score=lambda p, m: float(pearson(p, m)[0]))
    scale = _calibration(x, y, parts[known], penalty)
    if not scale > 0:
        return None
    (fitted,) = fit_ridge(x, y, [penalty])
    weight = np.zeros(features.shape[1], np.float32)
    weight[enough] = scale * fitted.weight[:, 0]
    offset = float(y.mean() - x.mean(axis=0) @ (scale * fitted.weight[:, 0]))
    found = Depth("features", weight, offset, 0.0, 0.0, np.zeros(values.shape[1], np.float32))
    return found.among(found(features), values)


def _calibration(x: np.ndarray, y: np.ndarray, parts: np.ndarray, penalty: float) -> float:
    """By what measurements rise within a part with its prediction from the others: a correlation chooses no scale.

    As of `tcgn_hub.ridge.choose_penalty`; 1 if there is only one part.
    """
    numbers = np.unique(parts)
    products = np.zeros(2)
    for number in numbers if len(numbers) > 1 else ():
        out = parts == number
        own = centred(predict_ridge(x[~out], y[~out], x[out], [penalty])[0])
        products += (own * centred(y[out])).sum(), (own**2).sum()
    return float(products[0] / products[1]) if products[1] > 0 else 1.0


def _rank(variances: np.ndarray) -> float:
    """How many axes there are in effect: exp of the entropy of the variance along each (Roy and Vetterli, 2007)."""
    total = variances.sum()
    if not total > 0:
        return 0.0
    shares = variances[variances > 1e-12 * total] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))
