"""All that is said of a model on sections held out: a summary, a row a gene, and the values to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tcgn_hub.correlation import pearson, spearman
from tcgn_hub.errors import SectionError
from tcgn_hub.evaluation.ceiling import noise_ceiling
from tcgn_hub.evaluation.conformal import coverage_across, interval_radius
from tcgn_hub.evaluation.intervals import block_bootstrap, bootstrap_pearson, interval
from tcgn_hub.evaluation.metrics import nrmse, rmse
from tcgn_hub.evaluation.significance import SpatialTest, benjamini_hochberg, spatial_test, stouffer
from tcgn_hub.result import Evaluation, Measured
from tcgn_hub.weights.info import INTERVAL_LEVEL

_LEAST_SPOTS = 4
"""Spots below which a correlation says nothing."""

_MOST_NRMSE = 1.5
"""Error from which weights are not believed, where the error of the training spots' mean is not known."""

_TOP = 50

_PER_GENE = ["rmse", "nrmse", "rmse_mean", "variance", "pcc", "effective", "z", "p", "spearman", "pcc_ridge", "ceiling"]


def summarise(
    measured: Sequence[Measured],
    genes: Sequence[str],
    *,
    allowed_seen: Sequence[str] = (),
    repeats: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Compare predictions with measurements on sections held out, of one split or of all folds of a cross-validation.

    The summary has, over all sections and for each of them under ``sections``:

    - ``spots``, and ``patient`` of a section;
    - ``median_pcc``, ``median_spearman``, ``median_rmse``, ``median_nrmse``: medians over genes, see `metrics`;
    - ``median_pcc_interval``: its 95 % interval by `block_bootstrap`;
    - ``median_pcc_ridge``, ``gain_over_ridge``, ``gain_over_ridge_interval``: ridge regression, and the median PCC
      less that of ridge, with an interval from the same draws of spots for both;
    - ``median_rmse_mean``: RMSE of the training spots' mean;
    - ``median_ceiling``: see `tcgn_hub.evaluation.ceiling.noise_ceiling`;
    - ``top50_variable``: mean PCC of the 50 genes that vary most in the measurement, the convention of HEST-1k (Jaume
      et al. 2024);
    - ``top50_best``: mean PCC of the 50 genes predicted best. They are chosen on the test itself, which flatters: use
      it to compare with papers that report it, and for nothing else;
    - ``significant_genes``, ``share_significant``: genes whose PCC is above 0 at a false discovery rate of 5 %, and
      their share of the genes measured; ``significant`` names them, over all sections only;
    - ``not_marked_because``, over all sections only: why no gene is called significant although its PCC may be, else
      null. It is so where ridge regression predicts better, ``gain_over_ridge`` below 0, and where errors are larger
      than without an image: ``median_rmse`` above ``median_rmse_mean`` or, where that is not known, ``median_nrmse``
      above 1.5. An NRMSE a little above 1 is no reason: 1 takes the mean of the very section, which nobody knows
      beforehand;
    - ``interval_level`` and ``interval_coverage``, over all sections only: what prediction intervals are to hold, and
      what they hold of each section if they come from the others, see `tcgn_hub.evaluation.conformal`;
    - ``allowed_seen``, over all sections only: sections that the weights, or those they were started from, have seen;
    - ``note``: of a section of fewer than four spots, that it has no correlations.

    Over several sections the value of a gene is its mean over those that measured it, and so are its bootstrap samples:
    spots pooled would reward knowing the section. Intervals and significance hold for these sections: what another
    section or patient would add is not in them.
    """
    names = [section.name for section in measured]
    if not names:
        raise SectionError("There is no section to measure on.")
    if len(set(names)) < len(names):
        raise SectionError(f"Section {max(names, key=names.count)} is to be measured twice; give it once.")
    sections: dict[str, Any] = {}
    pcc: dict[str, dict[str, np.ndarray]] = {}
    mean, tests = _Mean(), []
    errors: dict[str, np.ndarray] = {}
    for i, section in enumerate(map(_with_counts, measured)):
        errors[section.name] = section.predicted - section.targets
        values = _values(section, repeats, (seed, i))
        mean.add(values)
        tests.append(SpatialTest(values["pcc"], values["effective"], values["z"], values["p"]))
        pcc[section.name] = {"TCGN": values["pcc"], "ridge": values["pcc_ridge"], "ceiling": values["ceiling"]}
        known: dict[str, Any] = {"patient": section.patient, "spots": len(section.targets)}
        if len(section.targets) < _LEAST_SPOTS:
            known["note"] = f"fewer than {_LEAST_SPOTS} spots, so no correlations"
        sections[section.name] = {**known, **_over_genes(values)}

    values = mean.values() | {"p": stouffer(tests)}
    passed = benjamini_hochberg(values["p"])
    low, high = interval(values["samples"])
    overall = _over_genes(values)
    reason = _not_marked_because(overall)
    if reason:
        passed = np.zeros_like(passed)
        for part in (overall, *sections.values()):
            part.update(significant_genes=0, share_significant=part["share_significant"] * 0)
    summary = {
        "sections": sections,
        **overall,
        "not_marked_because": reason,
        "spots": sum(part["spots"] for part in sections.values()),
        "significant": [gene for gene, is_significant in zip(genes, passed, strict=True) if is_significant],
        "interval_level": INTERVAL_LEVEL,
        "interval_coverage": coverage_across(errors),
        "allowed_seen": list(allowed_seen),
    }
    columns = {
        "pcc": values["pcc"],
        "pcc_low": low,
        "pcc_high": high,
        **{key: values[key] for key in ("spearman", "rmse", "nrmse", "pcc_ridge", "rmse_mean", "ceiling")},
        "p": values["p"],
        "significant": passed,
        "interval_radius": interval_radius(np.concatenate(list(errors.values()))),
    }
    rows = [
        {"gene": gene, **{key: column[i].item() for key, column in columns.items()}} for i, gene in enumerate(genes)
    ]
    return Evaluation(summary=_plain(summary), per_gene=_plain(rows), pcc=pcc)


def _with_counts(section: Measured) -> Measured:
    """The section without the spots that have no measurement of any gene."""
    keep = ~np.isnan(section.targets).all(axis=1)
    return replace(
        section,
        xy=section.xy[keep],
        targets=section.targets[keep],
        predicted=section.predicted[keep],
        baselines={name: values[keep] for name, values in section.baselines.items()},
        counts=None if section.counts is None else section.counts[keep],
    )


def _values(section: Measured, repeats: int, seed: tuple[int, int]) -> dict[str, np.ndarray]:
    """All metrics of a section, each of shape (genes,), and bootstrap samples, of shape (repeats, genes)."""
    targets, predicted = section.targets, section.predicted
    unknown = np.full(targets.shape, np.nan)
    ridge, mean = (section.baselines.get(name, unknown) for name in ("ridge", "mean"))
    none = np.full(targets.shape[1], np.nan)
    values = dict.fromkeys(_PER_GENE, none)
    values |= dict.fromkeys(("samples", "samples_ridge"), np.tile(none, (repeats, 1)))
    if len(targets):
        values["rmse"], values["nrmse"] = rmse(predicted, targets), nrmse(predicted, targets)
        values["rmse_mean"] = rmse(mean, targets)
        values["variance"] = targets.var(axis=0, dtype=np.float64)
    if len(targets) < _LEAST_SPOTS:
        return values
    blocks = block_bootstrap(section.xy, repeats=repeats, seed=seed)
    counts = unknown if section.counts is None else section.counts
    test = spatial_test(predicted, targets, section.xy)
    return values | {
        "pcc": test.r,
        "effective": test.effective,
        "z": test.z,
        "p": test.p,
        "spearman": spearman(predicted, targets),
        "pcc_ridge": pearson(ridge, targets),
        "ceiling": noise_ceiling(counts, seed=seed[0]),
        "samples": bootstrap_pearson(predicted, targets, *blocks),
        "samples_ridge": bootstrap_pearson(ridge, targets, *blocks),
    }


class _Mean:
    """The mean over sections of all that `_values` gives, over those where it is known."""

    def __init__(self) -> None:
        self._sum: dict[str, np.ndarray] = {}
        self._number: dict[str, np.ndarray] = {}

    def add(self, values: dict[str, np.ndarray]) -> None:
        for key, value in values.items():
            self._sum[key] = self._sum.get(key, 0) + np.nan_to_num(value)
            self._number[key] = self._number.get(key, 0) + ~np.isnan(value)

    def values(self) -> dict[str, np.ndarray]:
        return {
            key: np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
            for key, total in self._sum.items()
            for number in (self._number[key],)
        }


def _over_genes(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """The part of a summary that one section and the mean over sections share."""
    pcc, ridge = values["pcc"], values["pcc_ridge"]
    known = ~np.isnan(pcc)
    # a gene that no training section measured has no prediction of ridge
    both = known & ~np.isnan(ridge)
    gain = np.median(pcc[both]) - np.median(ridge[both]) if both.any() else math.nan
    passed = benjamini_hochberg(values["p"])
    return {
        "median_pcc": _median(pcc),
        "median_pcc_interval": _interval_of_median(values["samples"][:, known]),
        "median_spearman": _median(values["spearman"]),
        "median_rmse": _median(values["rmse"]),
        "median_nrmse": _median(values["nrmse"]),
        "top50_best": _mean_of_highest(pcc[known], pcc[known]),
        "top50_variable": _mean_of_highest(pcc[known], values["variance"][known]),
        "median_pcc_ridge": _median(ridge),
        "gain_over_ridge": float(gain),
        "gain_over_ridge_interval": _interval_of_median(values["samples"][:, both], values["samples_ridge"][:, both]),
        "median_rmse_mean": _median(values["rmse_mean"]),
        "median_ceiling": _median(values["ceiling"]),
        "significant_genes": int(passed.sum()),
        "share_significant": float(passed[known].mean()) if known.any() else math.nan,
    }


def _not_marked_because(overall: dict[str, Any]) -> str | None:
    """Why nothing is called significant, see `summarise`; comparisons with what is not known are false."""
    reasons = []
    if overall["gain_over_ridge"] < 0:
        reasons.append(
            f"ridge regression on colour and texture predicts better (median PCC {overall['median_pcc_ridge']:.3f},"
            f" the weights {overall['median_pcc']:.3f})"
        )
    if overall["median_rmse"] > overall["median_rmse_mean"]:
        reasons.append(
            f"the mean of the training spots is nearer to the measurement (median RMSE"
            f" {overall['median_rmse_mean']:.3f}, the weights {overall['median_rmse']:.3f})"
        )
    elif math.isnan(overall["median_rmse_mean"]) and overall["median_nrmse"] > _MOST_NRMSE:
        reasons.append(
            f"errors are {overall['median_nrmse']:.1f} times the standard deviation of the measurement (median NRMSE)"
        )
    return " and ".join(reasons) or None


def _median(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else math.nan


def _interval_of_median(samples: np.ndarray, less: np.ndarray | None = None) -> list[float] | None:
    """Interval of the median over genes, or of its difference to that of other samples, from (repeats, genes)."""
    if not samples.shape[1]:
        return None
    medians = np.median(samples, axis=1) - (0 if less is None else np.median(less, axis=1))
    return [float(end) for end in interval(medians)]


def _mean_of_highest(values: np.ndarray, by: np.ndarray) -> float:
    return float(values[np.argsort(-by, kind="stable")[:_TOP]].mean()) if len(values) else math.nan


def _plain(value: Any) -> Any:
    """The same with None for NaN, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
