"""What a model is trained towards, targets without noise, and which genes vary beyond what counting explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tcgn_hub.correlation import column_means

_THETA = 100.0


@dataclass(frozen=True)
class TrainingTargets:
    """What a model is trained towards; NaN where a gene was not measured."""

    mean: np.ndarray  # of each gene over the training spots, where the model begins, shape (genes,)
    scale: np.ndarray  # standard deviation of each gene, which its error is divided by, shape (genes,)
    targets: list[np.ndarray]  # of each section, float32, shape (spots, genes)
    # of each section the components that targets are made of, `targets = mean + scores @ axes`, of mean 0 in it and of
    # a mean square of 1 over all, shape (spots, components); None where they are not: noise is left in, a section is a
    # bulk measurement, or a gene was not measured in all
    scores: list[np.ndarray] | None = None
    axes: np.ndarray | None = None  # what a component adds to each gene, shape (components, genes)


def training_targets(
    targets: Sequence[np.ndarray],
    components: int,
    *,
    counts: Sequence[np.ndarray] | None = None,
    residuals: float = 0.0,
) -> TrainingTargets:
    """Remove noise from targets: centre each section, scale each gene, keep the leading principal components.

    ``targets``: of each section, shape (spots, genes); of a bulk measurement (1, genes), which is left as it is;
    ``components``: how many are kept; 0 leaves the targets as they are; ``counts``: raw counts of each section, shape
    (spots, genes); ``residuals``: how much their `pearson_residuals` say in what the components are, 1 as much as the
    targets: these go with a spot's depth, and those do not. Either way it is the targets that are regressed on the
    components.
    """
    everything = np.concatenate(targets).astype(np.float64)
    mean = column_means(everything, 0.0)
    several = [len(t) > 1 for t in targets]
    spots = [t.astype(np.float64) for t, more in zip(targets, several, strict=True) if more]
    denoise = bool(components and spots)
    centred = _centred(spots) if denoise else everything - mean
    known = ~np.isnan(centred)
    scale = np.sqrt(np.divide((np.nan_to_num(centred) ** 2).sum(0), known.sum(0), where=known.any(0), out=0 * mean))
    # a gene that hardly varies must not drown the others
    scale = np.maximum(scale, 0.1 * np.median(scale)) + 1e-6
    if not denoise:
        return TrainingTargets(mean, scale, [t.astype(np.float32) for t in targets])
    scaled = np.nan_to_num(centred) / scale
    told = scaled
    if counts is not None and residuals:
        measured = [pearson_residuals(c) for c, more in zip(counts, several, strict=True) if more]
        told = np.hstack([_of_size(scaled), residuals * _of_size(np.nan_to_num(_centred(measured)))])
    scores = np.linalg.svd(told, full_matrices=False)[0][:, :components] * np.sqrt(len(told))
    axes = scores.T @ scaled / len(told) * scale
    clean = np.where(known, scores @ axes + mean, np.nan).astype(np.float32)
    ends = np.cumsum([len(t) for t in spots])[:-1]
    pieces = iter(np.split(clean, ends))
    kept = [next(pieces) if more else t.astype(np.float32) for t, more in zip(targets, several, strict=True)]
    if not (known.all() and all(several)):
        return TrainingTargets(mean, scale, kept)
    return TrainingTargets(mean, scale, kept, np.split(scores, ends), axes)


def _centred(sections: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([values - column_means(values, 0.0) for values in sections])


def _of_size(values: np.ndarray) -> np.ndarray:
    """Values in units of the root of their mean square over all of the table."""
    return values / max(np.sqrt((values**2).mean()), 1e-12)


def pearson_residuals(counts: np.ndarray) -> np.ndarray:
    """Analytic Pearson residuals (Lause, Berens and Kobak, Genome Biology 22, 258, 2021).

    A count less what is expected of its spot and its gene, over the standard deviation of a negative binomial of theta
    100, clipped to the root of the number of spots.

    ``counts``: raw counts of one section, shape (n, genes); NaN in the columns of genes not measured. Returns float64,
    shape (n, genes); NaN where there are no counts, 0 where nothing is expected.
    """
    known = np.nan_to_num(counts)
    expected = known.sum(axis=1, keepdims=True) * known.sum(axis=0) / max(known.sum(), 1)
    spread = np.sqrt(expected + expected**2 / _THETA)
    residuals = np.divide(known - expected, spread, out=np.zeros(known.shape), where=expected > 0)
    most = np.sqrt(len(counts))
    return np.where(np.isnan(counts), np.nan, np.clip(residuals, -most, most))


def variable_genes(counts: Sequence[np.ndarray], genes: Sequence[Sequence[str]], number: int) -> list[str]:
    """The genes that vary most beyond what counting explains, by the variance of their `pearson_residuals`.

    Of several sections, the genes of the best median rank, measured in all of them.

    ``counts``: raw counts of each section, shape (spots, genes of that section); ``genes``: symbols of the columns of
    each section; ``number``: how many genes to take; fewer if fewer were measured in all sections.
    """
    common = sorted(set(genes[0]).intersection(*genes[1:]))
    ranks = []
    for table, names in zip(counts, genes, strict=True):
        column = {gene: i for i, gene in enumerate(names)}
        some = table[:, [column[gene] for gene in common]]
        x = (some.toarray() if hasattr(some, "toarray") else some).astype(np.float64)
        x = x[x.sum(axis=1) > 0]
        variance = pearson_residuals(x).var(axis=0)
        ranks.append(np.argsort(np.argsort(-variance, kind="stable")))
    best = np.argsort(np.median(ranks, axis=0), kind="stable")[:number]
    return [common[i] for i in sorted(best)]
