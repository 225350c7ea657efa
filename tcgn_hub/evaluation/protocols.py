"""Scores as papers state them, each under the name of its protocol, so that like is compared with like.

Numbers of different protocols are not to be compared: spots of several sections pooled reward a prediction for knowing
the section, and labels averaged over neighbours have less noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tcgn_hub.correlation import column_means, pearson
from tcgn_hub.data.sections import Section, panel_counts
from tcgn_hub.result import Measured

_SMOOTHED = " Labels are means over a spot and its neighbours (8 on a grid, 6 on a hexagonal array)."
_SECTION = "Median over genes of the mean over sections of the PCC over the spots of a section."
_POOLED = "Median over genes of the PCC over the spots of all sections together."
_HEST = (
    "Mean over 50 genes of high variance, and over patients, of the PCC over all spots of a patient; labels are"
    " log(1 + count)."
)
PROTOCOLS = {
    "per section": _SECTION,
    "per section, smoothed": _SECTION + _SMOOTHED,
    "pooled": _POOLED,
    "pooled, smoothed": _POOLED + _SMOOTHED,
    "metric of HEST-Bench": f"{_HEST} The prediction is the method's own.",
    "HEST-Bench": f"{_HEST} Ridge regression on 256 principal components of features, fitted on other patients.",
}
"""What each protocol does."""

_GENES, _COMPONENTS = 50, 256
_LEAST_SHARE = 0.1  # of the spots of each section, in which a gene of HEST-Bench is counted
_BINS = 20  # of mean counts, within which dispersions are compared
# pitches within which spots are neighbours: on a grid a diagonal is 1.41, on a hexagonal array the next but one 1.73
_NEAR = 1.7


def protocol_scores(
    measured: Sequence[Measured], *, hest: np.ndarray | None = None, probes: Mapping[str, float] | None = None
) -> dict[str, dict[str, float]]:
    """The score of each method, by protocol and by label, of those that can be scored.

    Spots that one of the predictions given lacks are left out for all, and only smooth the labels of their neighbours.

    ``measured``: the sections held out; ``hest``: indices of the genes of HEST-Bench, chosen on these sections by
    `hest_genes` if None; ``probes``: what `hest_bench` gave, by the label of the features.
    """
    labels = [label for label in measured[0].methods if all(label in section.methods for section in measured)]
    scores: dict[str, dict[str, float]] = {}
    common = [_common(section) for section in measured]
    smoothed = [_smoothed(section.targets, section.xy) for section in measured]
    for suffix, targets in (("", [section.targets for section in measured]), (", smoothed", smoothed)):
        for label in labels:
            pairs = [
                (section.methods[label][keep], values[keep])
                for section, keep, values in zip(measured, common, targets, strict=True)
            ]
            by_section = column_means(np.stack([_pcc(*pair) for pair in pairs]), np.nan)
            together = _pcc(*(np.concatenate(values) for values in zip(*pairs, strict=True)))
            scores.setdefault(f"per section{suffix}", {})[label] = _median(by_section)
            scores.setdefault(f"pooled{suffix}", {})[label] = _median(together)
    counts = [section.counts for section in measured if section.counts is not None]
    if hest is None and len(counts) == len(measured):
        hest = hest_genes(counts)
    if hest is not None and len(hest):
        scores["metric of HEST-Bench"] = {label: _hest_metric(measured, label, hest) for label in labels}
    scores["HEST-Bench"] = dict(probes or {})
    known = {name: {k: v for k, v in values.items() if v == v} for name, values in scores.items()}
    return {name: values for name, values in known.items() if values}


def hest_genes(counts: Sequence[np.ndarray]) -> np.ndarray:
    """Indices of the 50 genes that HEST-Bench measures on, chosen on all sections, those held out among them.

    Genes counted in a tenth of the spots of every section; of these, the largest logarithms of variance over mean of
    the counts of all spots together, standardised among genes of similar mean, in 20 bins of log(1 + mean): what scanpy
    does under the name of Seurat, as ``get_k_genes`` of https://github.com/mahmoodlab/HEST calls it.

    ``counts``: raw counts of each section, shape (spots, genes).
    """
    found = np.all([(np.nan_to_num(c) > 0).sum(axis=0) >= math.ceil(_LEAST_SHARE * len(c)) for c in counts], axis=0)
    genes = np.flatnonzero(found)
    spots = np.concatenate(list(counts))[:, genes]
    if not genes.size or len(spots) < 2:
        return genes[:0]
    mean, variance = spots.mean(axis=0), spots.var(axis=0, ddof=1)
    dispersion = np.log(variance / mean, out=np.full(len(genes), np.nan), where=variance > 0)
    level = np.log1p(mean)
    edges = np.linspace(level.min(), level.max(), _BINS + 1)[1:-1]
    bins = np.searchsorted(edges, level)
    score = np.full(len(genes), -np.inf)
    for number in np.unique(bins):
        own = (bins == number) & ~np.isnan(dispersion)
        # the only one of its bin counts as one standard deviation above the mean
        score[own] = 1.0 if own.sum() == 1 else _standardised(dispersion[own])
    return np.sort(genes[np.argsort(-score, kind="stable")[:_GENES]])


def hest_bench(
    train_features: np.ndarray, train_counts: np.ndarray, test_features: np.ndarray, test_counts: np.ndarray
) -> float:
    """Mean PCC over genes of HEST-Bench's regression, on the spots of one patient held out.

    Jaume et al., "HEST-1k", NeurIPS 2024, as ``bench/benchmark.py``, ``bench/trainer.py`` and ``bench/st_dataset.py``
    of https://github.com/mahmoodlab/HEST compute it: features standardised, 256 principal components, ridge regression
    with a penalty of 100 / (components * genes), labels log(1 + count).

    ``train_features``: shape (spots, d), of all sections of the other patients together; ``train_counts``: raw counts
    of the genes of `hest_genes`, shape (spots, genes); ``test_features`` and ``test_counts``: those of the patient.
    """
    mean, std = train_features.mean(axis=0, dtype=np.float64), train_features.std(axis=0, dtype=np.float64)
    std = np.where(std > 0, std, 1)
    train, test = (train_features - mean) / std, (test_features - mean) / std
    axes = np.linalg.svd(train, full_matrices=False)[2][:_COMPONENTS]
    train, test = train @ axes.T, test @ axes.T
    penalty = 100 / (train.shape[1] * train_counts.shape[1])
    # components are centred and at right angles, so that neither an intercept nor a matrix to invert is needed
    weights = train.T @ np.log1p(train_counts) / ((train**2).sum(axis=0) + penalty)[:, None]
    return float(_pcc(test @ weights, np.log1p(test_counts)).mean())


def hest_probes(
    train: Sequence[Section],
    test: Sequence[Section],
    panel: Sequence[str],
    features: Mapping[str, Mapping[str, np.ndarray]],
) -> tuple[np.ndarray | None, dict[str, float]]:
    """Genes of HEST-Bench, and its score for features by their label, the mean over patients held out.

    ``features``: of the spots of each section, by the section's name. Training sections of the patient that is held out
    take no part; without any of another patient, there is no score. None for genes where a section is a bulk
    measurement.
    """
    if any(section.bulk for section in (*train, *test)):
        return None, {}
    counts = {section.name: panel_counts(section, panel) for section in (*train, *test)}
    genes = hest_genes(list(counts.values()))
    scores: dict[str, list[float]] = {label: [] for label in features}
    for patient in dict.fromkeys((section.study, section.patient) for section in test):
        others = [section.name for section in train if (section.study, section.patient) != patient]
        own = [section.name for section in test if (section.study, section.patient) == patient]
        if others and len(genes):
            known = [np.nan_to_num(np.concatenate([counts[n][:, genes] for n in names])) for names in (others, own)]
            for label, of in features.items():
                seen = [np.concatenate([of[name] for name in names]) for names in (others, own)]
                scores[label].append(hest_bench(seen[0], known[0], seen[1], known[1]))
    return genes, {label: float(np.mean(values)) for label, values in scores.items() if values}


def _common(section: Measured) -> np.ndarray:
    """Which spots all predictions that were given have, bool, shape (n,)."""
    return np.logical_and.reduce(
        [np.ones(len(section.xy), bool), *(~np.isnan(values).all(axis=1) for values in section.predictions.values())]
    )


def _hest_metric(measured: Sequence[Measured], label: str, genes: np.ndarray) -> float:
    of_patient = []
    for patient in dict.fromkeys(section.patient for section in measured):
        own = [section for section in measured if section.patient == patient and section.counts is not None]
        if own:
            keep = np.concatenate([_common(section) for section in own])
            labels = np.log1p(np.concatenate([s.counts[:, genes] for s in own if s.counts is not None])[keep])
            predicted = np.concatenate([section.methods[label][:, genes] for section in own])[keep]
            of_patient.append(float(np.mean(_pcc(predicted, labels))))
    return float(np.mean(of_patient)) if of_patient else math.nan


def _smoothed(targets: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """The mean of a spot's labels and its neighbours', shape (n, genes); NaN where positions are unknown.

    So does the option ``smooth`` of ``bench/st_dataset.py`` of https://github.com/mahmoodlab/HEST, on counts.
    """
    out = np.full(targets.shape, np.nan)
    known = np.flatnonzero(~np.isnan(targets).all(axis=1) & ~np.isnan(xy).any(axis=1))
    places, labels = xy[known], targets[known]

    def away(place: np.ndarray) -> np.ndarray:
        return np.hypot(*(places - place).T)

    pitch = np.median([distance[distance > 0].min(initial=np.inf) for distance in map(away, places)] or [np.nan])
    for i, place in zip(known, places, strict=True):
        out[i] = labels[away(place) < _NEAR * pitch].mean(axis=0)
    return out


def _pcc(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """PCC of each gene over the spots that have a label and a prediction."""
    keep = ~(np.isnan(labels).all(axis=1) | np.isnan(predicted).all(axis=1))
    return pearson(predicted[keep], labels[keep]) if keep.sum() > 1 else np.full(labels.shape[1], np.nan)


def _standardised(values: np.ndarray) -> np.ndarray:
    spread = values.std(ddof=1)
    return (values - values.mean()) / spread if spread > 0 else np.zeros(len(values))


def _median(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else math.nan
