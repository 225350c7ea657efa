"""A linear head in closed form: ridge regression on the features of a frozen trunk, written into the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tcgn_hub.data.sections import Section
from tcgn_hub.data.targets import TrainingTargets
from tcgn_hub.errors import TrainingError
from tcgn_hub.evaluation.baselines import PENALTIES, median_pcc
from tcgn_hub.evaluation.measuring import parts_of
from tcgn_hub.ridge import Linear, fit_each, fit_ridge, part_scores

VIEWS = 4
"""Rotations of each patch whose features are rows of their own: a map that tells them apart is penalised."""


@dataclass(frozen=True)
class Probe:
    """A linear map of features to targets, and how it was chosen."""

    linear: Linear
    mean: np.ndarray  # of the features over the rows that it was fitted on, shape (d,)
    std: np.ndarray  # their standard deviation within sections; not 0
    penalties: tuple[float, ...]  # of each component of the targets, or the one of all genes
    median_pcc: float | None  # where each part was predicted from the others, None if there is one part only

    def __str__(self) -> str:
        score = (
            "" if self.median_pcc is None else f", median PCC {self.median_pcc:.3f} where training spots were left out"
        )
        low, high = (f"{end(self.penalties):.4g}" for end in (min, max))
        return f"penalty {low if low == high else f'{low} to {high}'}{score}"

    def to_json(self) -> dict[str, Any]:
        """How it was chosen, as plain values."""
        return {"penalties": list(self.penalties), "median_pcc": self.median_pcc}


def fit_probe(
    features: Sequence[np.ndarray],
    targets: TrainingTargets,
    measured: Sequence[np.ndarray],
    sections: Sequence[Section],
) -> Probe:
    """Ridge regression with the penalty that predicts training sections left out best, see `parts_of`.

    Each component of the targets has a penalty of its own; genes have one for all where there are no components.

    Each section has an offset of its own, of its features as of its targets: how it was stained and sequenced says
    nothing of its spots. A new one has the mean.

    ``features``: of each training section, shape (views, n, d), of a bulk measurement those of its tiles, whose mean
    is taken; ``targets``: what it is fitted to; ``measured``: of each section, shape (n, genes), what predictions of
    left out spots are compared with; ``sections``: the sections, of just these spots.
    """
    views = len(features[0])
    seen = [_measurable(of, s) for of, s in zip(features, sections, strict=True)]
    mean = np.concatenate(seen, axis=1).mean(axis=(0, 1), dtype=np.float64)
    # one spot has no spread about its own mean; its target is as it is, too
    offsets = [of.mean(axis=(0, 1), dtype=np.float64) if of.shape[1] > 1 else mean for of in seen]
    x = np.concatenate([of - offset for of, offset in zip(seen, offsets, strict=True)], axis=1)
    parts = np.tile(parts_of(sections), views)
    x, y, truth = x.reshape(-1, x.shape[-1]), _repeated(targets.targets, views), _repeated(measured, views)
    # as many as of one view: a penalty is compared with the errors of all rows
    penalties = [views * penalty for penalty in PENALTIES]
    score: float | None
    if targets.scores is None or targets.axes is None:
        scores = part_scores(x, y, parts, penalties, score=median_pcc, measured=truth)
        best = len(penalties) // 2 if scores is None else int(np.argmax(scores))
        chosen, score = penalties[best : best + 1], None if scores is None else float(scores[best])
        (linear,) = fit_ridge(x, y, chosen)
        # a gene that no training spot has stays where a model would begin
        linear = Linear(linear.weight, np.where(np.isnan(linear.bias), targets.mean, linear.bias))
    else:
        of, chosen, left_out = fit_each(x, _repeated(targets.scores, views), parts, penalties)
        linear = Linear(of.weight @ targets.axes, of.bias @ targets.axes + targets.mean)
        each = [median_pcc(left_out[parts == part] @ targets.axes, truth[parts == part]) for part in np.unique(parts)]
        score = float(np.mean(np.nan_to_num(each))) if len(each) > 1 else None
    linear = Linear(linear.weight, linear.bias - mean @ linear.weight)
    std = x.std(axis=0, dtype=np.float64)
    std = np.maximum(std, 1e-3 * np.median(std)) + 1e-9
    return Probe(linear, mean, std, tuple(chosen), score)


def write_probe(model: Any, probe: Probe) -> None:
    """Let the head of a TCGN compute a probe.

    GELU(t) - GELU(-t) = t: two hidden units, t and -t, hold a standardised feature, and opposite weights of the
    classifier a linear map of it. Other hidden units stay as they are, with a classifier of 0 to begin with.
    """
    hidden, classifier = model.head.pre_logits.fc, model.get_classifier()
    d = len(probe.mean)
    if hidden.out_features < 2 * d:
        raise TrainingError(
            f"The hidden layer of {type(model).__name__} has {hidden.out_features} units, and a probe of {d} features"
            f" takes {2 * d}; train the head by steps."
        )
    scale = 1 / probe.std
    weight = probe.linear.weight * probe.std[:, None]
    bias = probe.linear.bias + probe.mean @ probe.linear.weight
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias.copy_(torch.from_numpy(bias))
        for start, sign in ((0, 1.0), (d, -1.0)):
            rows = slice(start, start + d)
            hidden.weight[rows] = torch.diag(torch.from_numpy(sign * scale)).to(hidden.weight)
            hidden.bias[rows] = torch.from_numpy(-sign * scale * probe.mean).to(hidden.bias)
            classifier.weight[:, rows] = torch.from_numpy(sign * weight.T).to(classifier.weight)


def _measurable(features: np.ndarray, section: Section) -> np.ndarray:
    """Features of what was measured: of a bulk slide the mean over its tiles."""
    return features.mean(axis=1, keepdims=True) if section.bulk else features


def _repeated(of_sections: Sequence[np.ndarray], views: int) -> np.ndarray:
    return np.tile(np.concatenate(of_sections), (views, 1))
