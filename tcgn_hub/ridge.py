"""Ridge regression in closed form, towards 0 or towards what is known already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Linear:
    """A linear map of features: ``x @ weight + bias``."""

    weight: np.ndarray  # float64, shape (features, outputs)
    bias: np.ndarray  # float64, shape (outputs,); NaN of outputs that nothing is known of

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Outputs, float64, shape (n, outputs), of features, shape (n, features)."""
        return x @ self.weight + self.bias


def fit_ridge(
    x: np.ndarray,
    y: np.ndarray,
    penalties: Sequence[float],
    *,
    prior: Linear | None = None,
    scale: np.ndarray | None = None,
) -> list[Linear]:
    """The linear map for each penalty, whose intercept is free.

    ``x``: features, shape (rows, features); ``y``: targets, shape (rows, outputs); NaN where one was not measured,
    which is fitted on the other rows, to which its features are standardised; ``penalties``: weights of the squared
    distance of the coefficients of standardised features from those of ``prior``, in units of squared errors summed
    over rows; ``prior``: of the features as they are, 0 if None; ``scale``: what features are divided by instead of
    their standard deviation over the rows, for that of a few rows says little, shape (features,). An output without a
    row is that of ``prior``, or NaN.
    """
    start = prior or Linear(np.zeros((x.shape[1], y.shape[1])), np.full(y.shape[1], np.nan))
    maps = [Linear(start.weight.astype(np.float64), start.bias.astype(np.float64)) for _ in penalties]
    for of, solved in _solved(x, y, prior, scale):
        for of_penalty, penalty in zip(maps, penalties, strict=True):
            own = solved.coefficients(penalty) / solved.std[:, None]
            of_penalty.weight[:, of] = own
            of_penalty.bias[of] = solved.offset - solved.mean @ own
    return maps


def choose_penalty(
    x: np.ndarray,
    y: np.ndarray,
    parts: np.ndarray,
    penalties: Sequence[float],
    *,
    score: Callable[[np.ndarray, np.ndarray], float],
    prior: Linear | None = None,
) -> float:
    """The penalty with the highest of `part_scores`; the middle one if there is only one part.

    All as of `part_scores`.
    """
    scores = part_scores(x, y, parts, penalties, score=score, prior=prior)
    return penalties[len(penalties) // 2 if scores is None else int(np.argmax(scores))]


def part_scores(
    x: np.ndarray,
    y: np.ndarray,
    parts: np.ndarray,
    penalties: Sequence[float],
    *,
    score: Callable[[np.ndarray, np.ndarray], float],
    measured: np.ndarray | None = None,
    prior: Linear | None = None,
) -> np.ndarray | None:
    """How well each part is predicted from the others, the mean over parts, shape (penalties,); None of one part.

    ``x``, ``y``, ``penalties``, ``prior``: as of `fit_ridge`; ``parts``: number of the part that each row belongs to,
    shape (rows,); ``score``: of predictions and measurements of a part, both of shape (rows of it, outputs), the higher
    the better; a part where it is NaN counts as 0; ``measured``: what predictions are compared with, like ``y``, if it
    is not what they are fitted to.
    """
    numbers = np.unique(parts)
    if len(numbers) < 2:
        return None
    measured = y if measured is None else measured
    scores = np.zeros(len(penalties))
    for number in numbers:
        out = parts == number
        predicted = predict_ridge(x[~out], y[~out], x[out], penalties, prior=prior)
        scores += np.nan_to_num([score(values, measured[out]) for values in predicted])
    return scores / len(numbers)


def fit_each(
    x: np.ndarray, y: np.ndarray, parts: np.ndarray, penalties: Sequence[float]
) -> tuple[Linear, list[float], np.ndarray]:
    """A linear map of which each output has a penalty of its own.

    It is the one of the least squared error where each part is predicted from the others, the middle one if there is
    only one part: what can be predicted is shrunk little, what cannot much. ``x``, ``y``, ``parts``, ``penalties``: as
    of `part_scores`, every output measured on all rows. Returns the map, the penalty of each output, and the
    predictions with it of rows left out, shape (rows, outputs); NaN of one part.
    """
    predicted = np.full((len(penalties), *y.shape), np.nan)
    best = np.full(y.shape[1], len(penalties) // 2)
    numbers = np.unique(parts)
    if len(numbers) > 1:
        for number in numbers:
            out = parts == number
            predicted[:, out] = predict_ridge(x[~out], y[~out], x[out], penalties)
        best = ((predicted - y) ** 2).sum(axis=1).argmin(axis=0)
    maps, each = fit_ridge(x, y, penalties), np.arange(y.shape[1])
    weight = np.stack([of_penalty.weight for of_penalty in maps], axis=2)[:, each, best]
    bias = np.stack([of_penalty.bias for of_penalty in maps], axis=1)[each, best]
    return Linear(weight, bias), [penalties[i] for i in best], predicted[best, :, each].T


def predict_ridge(
    x: np.ndarray,
    y: np.ndarray,
    other: np.ndarray,
    penalties: Sequence[float],
    *,
    prior: Linear | None = None,
    scale: np.ndarray | None = None,
) -> np.ndarray:
    """What the maps of `fit_ridge` give for other rows, without making them; shape (penalties, other rows, outputs)."""
    nothing = np.full((len(other), y.shape[1]), np.nan) if prior is None else prior(other)
    predicted = np.tile(nothing, (len(penalties), 1, 1))
    for of, solved in _solved(x, y, prior, scale):
        seen = (other - solved.mean) / solved.std
        start = solved.offset + (0 if solved.start is None else seen @ solved.start)
        left = seen @ solved.left
        for of_penalty, penalty in zip(predicted, penalties, strict=True):
            of_penalty[:, of] = left / (solved.values + penalty) @ solved.right + start
    return predicted


@dataclass(frozen=True)
class _Solved:
    """Outputs that were measured on the same rows: one decomposition for all of them and all penalties."""

    mean: np.ndarray  # of the features, shape (features,)
    std: np.ndarray
    offset: np.ndarray  # mean of the targets, shape (outputs,)
    start: np.ndarray | None  # coefficients of the prior, of standardised features, shape (features, outputs)
    values: np.ndarray  # eigenvalues, shape (k,)
    left: np.ndarray  # shape (features, k)
    right: np.ndarray  # shape (k, outputs)

    def coefficients(self, penalty: float) -> np.ndarray:
        """Those of standardised features, shape (features, outputs)."""
        own = self.left / (self.values + penalty) @ self.right
        return own if self.start is None else self.start + own


def _solved(
    x: np.ndarray, y: np.ndarray, prior: Linear | None, scale: np.ndarray | None
) -> Iterator[tuple[list[int], _Solved]]:
    """Outputs by number, and their solution, those measured alike at once."""
    alike: dict[bytes, list[int]] = {}
    known = ~np.isnan(y)
    for output, rows in enumerate(known.T):
        alike.setdefault(rows.tobytes(), []).append(output)
    for outputs in alike.values():
        rows = known[:, outputs[0]]
        if rows.any():
            weight = None if prior is None else prior.weight[:, outputs]
            yield outputs, _solve(x[rows], y[rows][:, outputs], weight, scale)


def _solve(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None, scale: np.ndarray | None) -> _Solved:
    """The decomposition of the rows' products or of the features', whichever are fewer."""
    mean, std = x.mean(axis=0, dtype=np.float64), (x.std(axis=0, dtype=np.float64) if scale is None else scale) + 1e-9
    x, offset = (x - mean) / std, y.mean(axis=0, dtype=np.float64)
    y = y - offset
    start = None
    if weight is not None:
        start = weight * std[:, None]
        y = y - x @ start
    if len(x) < x.shape[1]:
        values, vectors = np.linalg.eigh(x @ x.T)
        left, right = x.T @ vectors, vectors.T @ y
    else:
        values, left = np.linalg.eigh(x.T @ x)
        right = left.T @ (x.T @ y)
    return _Solved(mean, std, offset, start, np.maximum(values, 0), left, right)
