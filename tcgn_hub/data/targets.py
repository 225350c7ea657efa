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


def training_targets(targets: Sequence[np.ndarray], components: int) -> TrainingTargets:
    """Remove noise from targets: centre each section, scale each gene, keep the leading principal components.

    ``targets``: of each section, shape (spots, genes); of a bulk measurement (1, genes), which is left as it is;
    ``components``: how many are kept; 0 leaves the targets as they are.
    """
    everything = np.concatenate(targets).astype(np.float64)
    mean = column_means(everything, 0.0)
    several = [len(t) > 1 for t in targets]
    spots = [t.astype(np.float64) for t, more in zip(targets, several, strict=True) if more]
    denoise = bool(components and spots)
    centred = np.concatenate([t - column_means(t, 0.0) for t in spots]) if denoise else everything - mean
    known = ~np.isnan(centred)
    scale = np.sqrt(np.divide((np.nan_to_num(centred) ** 2).sum(0), known.sum(0), where=known.any(0), out=0 * mean))
    # a gene that hardly varies must not drown the others
    scale = np.maximum(scale, 0.1 * np.median(scale)) + 1e-6
    if not denoise:
        return TrainingTargets(mean, scale, [t.astype(np.float32) for t in targets])
    scaled = np.nan_to_num(centred) / scale
    axes = np.linalg.svd(scaled, full_matrices=False)[2][:components]
    clean = np.where(known, scaled @ axes.T @ axes * scale + mean, np.nan).astype(np.float32)
    pieces = iter(np.split(clean, np.cumsum([len(t) for t in spots])[:-1]))
    return TrainingTargets(
        mean, scale, [next(pieces) if more else t.astype(np.float32) for t, more in zip(targets, several, strict=True)]
    )


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
