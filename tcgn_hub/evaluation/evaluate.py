"""All that is said of predictions on sections held out: a summary, a row a gene, and the values to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tcgn_hub.correlation import effective_rank, pearson, spearman
from tcgn_hub.data.targets import pearson_residuals
from tcgn_hub.errors import SectionError
from tcgn_hub.evaluation.ceiling import noise_ceiling
from tcgn_hub.evaluation.conformal import coverage_across, interval_radius
from tcgn_hub.evaluation.intervals import (
    block_bootstrap,
    bootstrap_partial,
    bootstrap_pearson,
    fisher_interval,
    interval_of,
    simulated_coverage,
    widening,
)
from tcgn_hub.evaluation.metrics import nrmse, rmse
from tcgn_hub.evaluation.protocols import protocol_scores
from tcgn_hub.evaluation.significance import SpatialTest, benjamini_hochberg, spatial_test, stouffer
from tcgn_hub.evaluation.skill import highest, split_axis
from tcgn_hub.result import OURS, Evaluation, Measured
from tcgn_hub.units import depth
from tcgn_hub.weights.info import INTERVAL_LEVEL

_LEAST_SPOTS = 4
"""Spots below which a correlation says nothing."""

_MOST_NRMSE = 1.5
"""Error from which weights are not believed, where the error of the training spots' mean is not known."""

_DEPTH_DEGREE = 3
"""Powers of depth that are held fixed for significance: with a line alone, whatever is curved in depth would pass."""

_MOST_SAMPLES = 400_000_000
"""Bootstrap samples in memory at once, which are float32: of wide panels fewer are drawn."""

_LEAST_REPEATS = 100

_SAMPLED = ("pcc", "pcc_given_depth", "one_factor", "beyond_one_factor", "pcc_residuals")
"""What is known of each gene with bootstrap samples."""

_TESTS = ("pcc", "pcc_given_depth", "significance")

_MEDIANS = ("pcc", "pcc_given_depth", "one_factor", "beyond_one_factor", "spearman", "rmse", "nrmse")
_CHOSEN = ("hvg50", "hvg50_residuals", "hvg50_train", "top50_own")


def summarise(
    measured: Sequence[Measured],
    genes: Sequence[str],
    *,
    allowed_seen: Sequence[str] = (),
    hest: np.ndarray | None = None,
    probes: Mapping[str, float] | None = None,
    repeats: int = 500,
    seed: int = 0,
) -> Evaluation:
    """Compare predictions with measurements on sections held out, of one split or of all folds of a cross-validation.

    The summary has, over all sections and for each of them under ``sections``:

    - ``spots``, and ``patient`` of a section; ``spots_left_out``: those that a method which is compared lacks;
    - ``median_pcc``: median over genes of the Pearson correlation over the spots of a section; likewise
      ``median_spearman``, ``median_rmse`` and ``median_nrmse``, see `tcgn_hub.evaluation.metrics`;
    - ``median_pcc_given_depth``: of the partial correlation with log10(1 + the panel's counts of the spot) held fixed
      on both sides: what is known beyond how much there is in a spot;
    - ``median_one_factor``, ``median_beyond_one_factor``: of the correlation of the predictions as far as one picture
      explains them all, and of the rest, see `tcgn_hub.evaluation.skill.split_axis`;
    - ``hvg50``: median PCC of the 50 genes whose analytic Pearson residuals vary most in the section;
      ``hvg50_residuals``: the same with these residuals as what was measured; ``hvg50_train``: of 50 genes chosen so
      on the training sections; ``top50_own``: of those that the method predicts best on its training sections;
    - ``effective_rank`` of the predictions, see `tcgn_hub.correlation.effective_rank`, beside that of the
      measurement, ``effective_rank_measured``;
    - ``significant_genes``: whose correlation given depth is above 0 at a false discovery rate of 5 % by a test that
      allows for neighbouring spots being alike, see `tcgn_hub.evaluation.significance`, with depth, its square and its
      cube held fixed, for genes need not follow depth in a line; ``share_significant`` of those measured;
      ``significant_genes_pcc``: the same of the plain correlation;
    - ``depth_pcc``: correlation of the depth that the weights predict with that of the spots, and
      ``median_pcc_of_given_depth``, of what they give as a gene given depth with what its measurement has beyond the
      line in the spots' depth;
    - ``median_ceiling``, ``median_ceiling_given_depth``: see `tcgn_hub.evaluation.ceiling.noise_ceiling`;
    - ``interval_simulated``: how often 95 % intervals of the median PCC held the truth in simulated sections like
      these, see `tcgn_hub.evaluation.intervals.simulated_coverage`;
    - ``methods``: all of these but the last five of every method by its label, with ``gain``, the median PCC of the
      first less that of the method over the genes that both predict, and ``gain_given_depth``. The first stands beside,
      too: that of the weights, or the first of the predictions of others;
    - ``measured_by``: which of `tcgn_hub.evaluation.protocols.PROTOCOLS` the medians are of; ``protocols``, over all
      sections only: the score of every method by every one of them, of which like is to be compared with like, from
      ``hest`` and ``probes`` where these are known, see `tcgn_hub.evaluation.protocols.protocol_scores`;
    - ``ranking``, over all sections only: labels by median PCC, the best first, each with ``behind``, how much lower
      than the one before it; both over the ``shared_genes`` that all methods predict, for whoever predicts few genes
      may have chosen easy ones; ``genes``: how many the method predicts. Where no gene is shared, each counts by its
      own.

    Every one of the medians, ``hvg50`` and its like, the gains and ``behind`` has a 95 % interval, ``KEY_interval``.
    Those of differences are paired: from the same draws of spots for both. The others, over all sections only:

    - ``significant``: names of the genes that are;
    - ``not_marked_because``: why none is called significant although it may be, else null. It is so where ridge
      regression on colour and texture predicts better, and where errors are larger than without an image:
      ``median_rmse`` above that of the training spots' mean or, where that is not known, ``median_nrmse`` above 1.5. An
      NRMSE a little above 1 is no reason: 1 takes the mean of the very section, which nobody knows beforehand;
    - ``interval_level`` and ``interval_coverage``: what prediction intervals are to hold, and what they hold of each
      section if they come from the others, see `tcgn_hub.evaluation.conformal`;
    - ``allowed_seen``: sections that the weights, or those they were started from, have seen;
    - ``note``: of a section of fewer than four spots, that it has no correlations.

    Over several sections the value of a gene is its mean over those that measured it, so are its bootstrap samples, and
    its evidence is combined: spots pooled would reward knowing the section. What concerns 50 genes, chosen section by
    section, and ranks are means over sections. Intervals and significance hold for these sections: what another section
    or patient would add is not in them.
    """
    names = [section.name for section in measured]
    if not names:
        raise SectionError("There is no section to measure on.")
    if len(set(names)) < len(names):
        raise SectionError(f"Section {max(names, key=names.count)} is to be measured twice; give it once.")
    labels = list(dict.fromkeys(label for section in measured for label in section.methods))
    if not labels:
        raise SectionError("There are no predictions to measure.")
    repeats = min(repeats, max(_LEAST_REPEATS, _MOST_SAMPLES // (len(labels) * len(_SAMPLED) * max(len(genes), 1))))
    main = labels[0]
    methods = {label: _Method() for label in labels}
    of_sections, errors, simulated = _Mean(), {}, []
    sections: dict[str, Any] = {}
    pcc: dict[str, dict[str, np.ndarray]] = {}
    given_depth: dict[str, dict[str, np.ndarray]] = {}
    for i, section in enumerate(measured):
        kept, left_out = _common(section)
        scores = _score(kept, repeats, (seed, i))
        for label, score in scores.items():
            methods[label].add(score)
        own = _of_section(kept, seed)
        of_sections.add(own)
        name, few = section.name, len(kept.targets) < _LEAST_SPOTS
        pcc[name] = {label: score.values["pcc"] for label, score in scores.items()} | {"ceiling": own["ceiling"]}
        given_depth[name] = {label: score.values["pcc_given_depth"] for label, score in scores.items()}
        given_depth[name]["ceiling"] = own["ceiling_given_depth"]
        if kept.predicted is not None:
            errors[name] = kept.predicted - kept.targets
        covered = None
        if not few:
            covered = simulated_coverage(kept.xy, kept.methods[main], kept.targets, seed=seed)
            simulated += [] if covered is None else [covered]
        sections[name] = {
            "patient": section.patient,
            "spots": len(kept.targets),
            "spots_left_out": left_out,
            **({"note": f"fewer than {_LEAST_SPOTS} spots, so no correlations"} if few else {}),
            **_compared({label: _Method([score]) for label, score in scores.items()}, main),
            **_once(own),
            "interval_simulated": covered,
        }

    known, first = of_sections.values(), methods[main]
    overall = _compared(methods, main)
    reason = _not_marked_because(overall, main)
    p, passed = first.significant()
    if reason:
        passed = np.zeros_like(passed)
        for part in (overall, *sections.values()):
            for values in (part, part["methods"][main]):
                values.update(significant_genes=0, share_significant=(values["share_significant"] or 0) * 0)
    summary = {
        "main": main,
        "measured_by": "per section",
        "sections": sections,
        **overall,
        **_once(known),
        "interval_simulated": float(np.mean(simulated)) if simulated else None,
        "ranking": _ranking(methods),
        "protocols": protocol_scores(measured, hest=hest, probes=probes),
        "not_marked_because": reason,
        "spots": sum(part["spots"] for part in sections.values()),
        "spots_left_out": sum(part["spots_left_out"] for part in sections.values()),
        "significant": [gene for gene, is_significant in zip(genes, passed, strict=True) if is_significant],
        "interval_level": INTERVAL_LEVEL,
        "interval_coverage": coverage_across(errors),
        "allowed_seen": list(allowed_seen),
    }
    unknown = np.full(len(genes), np.nan)
    others = {label: method for label, method in methods.items() if label != main}
    columns = {
        **first.with_interval("pcc"),
        **first.with_interval("pcc_given_depth"),
        **{key: first.value(key) for key in ("one_factor", "beyond_one_factor")},
        "significant": passed,
        "p": p,
        **{key: known[key] for key in ("ceiling", "ceiling_given_depth")},
        **{key: first.value(key) for key in ("spearman", "rmse", "nrmse")},
        "interval_radius": interval_radius(np.concatenate(list(errors.values()))) if errors else unknown,
        **{f"pcc {label}": method.value("pcc") for label, method in others.items()},
        **{f"pcc_given_depth {label}": method.value("pcc_given_depth") for label, method in others.items()},
    }
    rows = [
        {"gene": gene, **{key: column[i].item() for key, column in columns.items()}} for i, gene in enumerate(genes)
    ]
    return Evaluation(summary=_plain(summary), per_gene=_plain(rows), pcc=pcc, given_depth=given_depth)


def _common(section: Measured) -> tuple[Measured, int]:
    """The section with the spots that are measured and that every given prediction has, and how many lack one."""
    was_measured = ~np.isnan(section.targets).all(axis=1)
    keep = was_measured.copy()
    for values in section.predictions.values():
        keep &= ~np.isnan(values).all(axis=1)

    def of(tables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {label: values[keep] for label, values in tables.items()}

    kept = replace(
        section,
        xy=section.xy[keep],
        targets=section.targets[keep],
        predicted=None if section.predicted is None else section.predicted[keep],
        baselines=of(section.baselines),
        predictions=of(section.predictions),
        counts=None if section.counts is None else section.counts[keep],
        predicted_depth=None if section.predicted_depth is None else section.predicted_depth[keep],
    )
    return kept, int((was_measured & ~keep).sum())


@dataclass
class _Score:
    """What is known of a method on one section; all NaN for too few spots.

    ``values``: of shape (genes,); ``samples``: bootstrap samples, float32, shape (repeats, genes), as wide as they
    should be; ``tests``: of 'pcc', of 'pcc_given_depth', and 'significance', beyond any cubic of depth; ``chosen``: of
    each choice of genes the key of ``values`` and their columns; ``rank``: effective rank.
    """

    values: dict[str, np.ndarray]
    samples: dict[str, np.ndarray]
    tests: dict[str, SpatialTest]
    chosen: dict[str, tuple[str, np.ndarray]]
    rank: float


def _score(section: Measured, repeats: int, seed: tuple[int, int]) -> dict[str, _Score]:
    """Each method of a section."""
    targets = section.targets.astype(np.float64)
    shape, enough = targets.shape[1:], len(targets) >= _LEAST_SPOTS
    known, labels = None, targets * np.nan
    if section.counts is not None and enough:
        known, labels = depth(section.counts), pearson_residuals(section.counts)
    held_fixed = known if known is not None and np.isfinite(known).all() else None
    blocks = block_bootstrap(section.xy, repeats=repeats, seed=seed) if enough else None
    nothing = np.full(shape, np.nan)
    no_test = SpatialTest(*np.full((4, *shape), np.nan))
    scores = {}
    for label, predicted in section.methods.items():
        predicted = predicted.astype(np.float64)
        values = dict.fromkeys((*_SAMPLED, "spearman", "rmse", "nrmse"), nothing)
        samples = dict.fromkeys(_SAMPLED, np.full((repeats, *shape), np.nan, np.float32))
        if len(targets) and (label not in section.predictions or label in section.in_units):
            values |= {"rmse": rmse(predicted, targets), "nrmse": nrmse(predicted, targets)}
        if blocks is None:
            scores[label] = _Score(values, samples, dict.fromkeys(_TESTS, no_test), {}, math.nan)
            continue
        one, beyond = split_axis(predicted)
        test = spatial_test(predicted, targets, section.xy)
        given = no_test if held_fixed is None else spatial_test(predicted, targets, section.xy, given=held_fixed)
        values |= {
            "pcc": pearson(predicted, targets),
            "spearman": spearman(predicted, targets),
            "one_factor": pearson(one, targets),
            "beyond_one_factor": pearson(beyond, targets),
            "pcc_given_depth": given.r,
            "pcc_residuals": pearson(predicted, labels),
        }
        drawn = {
            "pcc": bootstrap_pearson(predicted, targets, *blocks),
            "one_factor": bootstrap_pearson(one, targets, *blocks),
            "beyond_one_factor": bootstrap_pearson(beyond, targets, *blocks),
        }
        if held_fixed is not None:
            drawn["pcc_given_depth"] = bootstrap_partial(predicted, targets, held_fixed, *blocks)
            drawn["pcc_residuals"] = bootstrap_pearson(predicted, labels, *blocks)
        plain = widening(drawn["pcc"], test.effective)
        for key, each in drawn.items():
            wide = widening(each, given.effective) if key == "pcc_given_depth" else plain
            middle = np.median(each, axis=0)
            samples[key] = (values[key] + wide * (each - middle)).astype(np.float32)
        beyond_depth = no_test
        if held_fixed is not None:
            beyond_depth = spatial_test(predicted, targets, section.xy, given=_powers(held_fixed))
        tests = dict(zip(_TESTS, (test, given, beyond_depth), strict=True))
        scores[label] = _Score(values, samples, tests, _choices(section, label, labels), effective_rank(predicted))
    return scores


def _powers(values: np.ndarray) -> np.ndarray:
    """Standardised values and their powers, shape (n, degree)."""
    own = (values - values.mean()) / (values.std() or 1)
    return np.stack([own**degree for degree in range(1, _DEPTH_DEGREE + 1)], axis=1)


def _choices(section: Measured, label: str, labels: np.ndarray) -> dict[str, tuple[str, np.ndarray]]:
    """Which 50 genes each summary of `_CHOSEN` is of, and what is summarised."""
    chosen = {}
    variance = labels.var(axis=0)
    if not np.isnan(variance).all():
        chosen = {"hvg50": ("pcc", highest(variance)), "hvg50_residuals": ("pcc_residuals", highest(variance))}
    measured = np.where(np.isnan(section.targets).any(axis=0), np.nan, 1.0)
    if section.train_variance is not None:
        chosen["hvg50_train"] = "pcc", highest(section.train_variance * measured)
    if label in section.train_pcc:
        chosen["top50_own"] = "pcc", highest(section.train_pcc[label] * measured)
    return chosen


def _of_section(section: Measured, seed: int) -> dict[str, np.ndarray]:
    """What is known of the measurement of a section: ceilings, shape (genes,), and the effective rank, shape ().

    And of the depth that the weights predict: its correlation, shape (), and those of the genes given it.
    """
    nothing, unknown = np.full(section.targets.shape[1], np.nan), np.array(np.nan)
    known = dict.fromkeys(("ceiling", "ceiling_given_depth", "pcc_of_given_depth"), nothing)
    known |= {"effective_rank_measured": unknown, "depth_pcc": unknown}
    if len(section.targets) < _LEAST_SPOTS:
        return known
    known["effective_rank_measured"] = np.array(effective_rank(section.targets))
    if section.counts is not None:
        known["ceiling"] = noise_ceiling(section.counts, seed=seed)
        known["ceiling_given_depth"] = noise_ceiling(section.counts, given_depth=True, seed=seed)
    return known | _of_depth(section)


def _of_depth(section: Measured) -> dict[str, np.ndarray]:
    """How well depth is predicted, and genes given it, see `summarise`; nothing where it is not known."""
    if section.counts is None or section.predicted_depth is None or section.predicted is None:
        return {}
    measured, own = depth(section.counts), section.predicted_depth.astype(np.float64)
    if not np.isfinite(measured).all():
        return {}
    line = np.stack([np.ones(len(measured)), measured], axis=1)
    # a gene that was not measured leaves NaN in its own column only
    left = section.targets - line @ (np.linalg.pinv(line) @ section.targets)
    given = section.predicted - (own - own.mean())[:, None] * section.depth_slope
    return {
        "depth_pcc": np.array(pearson(own[:, None], measured[:, None])[0]),
        "pcc_of_given_depth": pearson(given, left),
    }


def _once(known: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The part of a summary that no method changes, from what `_of_section` gives or its mean."""
    return {
        "median_ceiling": _median(known["ceiling"]),
        "median_ceiling_given_depth": _median(known["ceiling_given_depth"]),
        "effective_rank_measured": float(known["effective_rank_measured"]),
        "depth_pcc": float(known["depth_pcc"]),
        "median_pcc_of_given_depth": _median(known["pcc_of_given_depth"]),
    }


class _Mean:
    """Means of arrays by name, added one after the other, over those where a value is known."""

    def __init__(self) -> None:
        self._sum: dict[str, np.ndarray] = {}
        self._number: dict[str, np.ndarray] = {}

    def add(self, values: Mapping[str, np.ndarray]) -> None:
        for key, value in values.items():
            self._sum[key] = self._sum.get(key, 0) + np.nan_to_num(value)
            # of a gene all bootstrap samples are known or none is
            self._number[key] = self._number.get(key, 0) + ~np.isnan(value[:1] if value.ndim > 1 else value)

    def values(self) -> dict[str, np.ndarray]:
        return {key: self[key] for key in self._sum}

    def number(self, key: str) -> np.ndarray:
        """Of how many known values each mean is."""
        return self._number[key]

    def __getitem__(self, key: str) -> np.ndarray:
        total, number = self._sum[key], self._number[key]
        number = np.broadcast_to(number, total.shape)
        return np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0)


class _Method:
    """A method over sections."""

    def __init__(self, scores: Sequence[_Score] = ()) -> None:
        self._values, self._samples, self._squares = _Mean(), _Mean(), _Mean()
        self._tests: dict[str, list[SpatialTest]] = {key: [] for key in _TESTS}
        self._chosen: dict[str, list[tuple[float, np.ndarray]]] = {key: [] for key in _CHOSEN}
        self._ranks: list[float] = []
        for score in scores:
            self.add(score)

    def add(self, score: _Score) -> None:
        """One section more."""
        self._values.add(score.values)
        self._samples.add(score.samples)
        for key, test in score.tests.items():
            self._tests[key].append(test)
            self._squares.add({key: (1 - test.r**2) ** 2 / np.maximum(test.effective - 3, 0.01)})
        for key, (of, columns) in score.chosen.items():
            values, samples = score.values[of][columns], score.samples[of][:, columns]
            known = ~np.isnan(values)
            if known.any():
                self._chosen[key].append((float(np.median(values[known])), np.median(samples[:, known], axis=1)))
        if score.rank == score.rank:
            self._ranks.append(score.rank)

    def value(self, key: str) -> np.ndarray:
        """Of each gene, shape (genes,)."""
        return self._values[key]

    def samples(self, key: str) -> np.ndarray:
        """Bootstrap samples of each gene, shape (repeats, genes)."""
        return self._samples[key]

    def significant(self, of: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """p-values and which genes pass, of the correlation given depth or, where no depth is known, as it is."""
        depth_known = any(not np.isnan(test.p).all() for test in self._tests["significance"])
        p = stouffer(self._tests[of or ("significance" if depth_known else "pcc")])
        return p, benjamini_hochberg(p)

    def with_interval(self, key: str) -> dict[str, np.ndarray]:
        """A correlation of each gene with the ends of its 95 % interval, by the independent spots of all sections."""
        value, number = self.value(key), self._squares.number(key)
        variance = self._squares[key] / np.maximum(number, 1)
        effective = 3 + np.divide((1 - value**2) ** 2, variance, out=np.zeros_like(value), where=variance > 0)
        low, high = fisher_interval(value, effective)
        return {key: value, f"{key}_low": low, f"{key}_high": high}

    def summary(self) -> dict[str, Any]:
        """What it comes to."""
        out: dict[str, Any] = {}
        for key in _MEDIANS:
            value = self.value(key)
            out[f"median_{key}"] = _median(value)
            if key in _SAMPLED:
                known = ~np.isnan(value)
                samples = np.median(self.samples(key)[:, known], axis=1) if known.any() else None
                out[f"median_{key}_interval"] = _around(samples, out[f"median_{key}"])
        for key, parts in self._chosen.items():
            out[key] = float(np.mean([value for value, _ in parts])) if parts else math.nan
            draws = np.mean([draw for _, draw in parts], axis=0) if parts else None
            out[f"{key}_interval"] = _around(draws, out[key])
        passed, measured = self.significant()[1], ~np.isnan(self.value("pcc"))
        return out | {
            "effective_rank": float(np.mean(self._ranks)) if self._ranks else math.nan,
            "significant_genes": int(passed.sum()),
            "share_significant": float(passed[measured].mean()) if measured.any() else math.nan,
            "significant_genes_pcc": int(self.significant("pcc")[1].sum()),
        }

    def less(
        self, other: _Method, among: np.ndarray | None = None, *, of: str = "pcc"
    ) -> tuple[float, list[float] | None]:
        """Its median PCC less that of another over the genes that both predict, and the interval of the difference.

        ``among``: the genes that are compared instead, if there are any, shape (genes,); ``of``: one of `_SAMPLED`.
        """
        ours, theirs = self.value(of), other.value(of)
        both = ~np.isnan(ours) & ~np.isnan(theirs)
        if among is not None and among.any():
            both &= among
        if not both.any():
            return math.nan, None
        value = float(np.median(ours[both]) - np.median(theirs[both]))
        draws = [np.median(method.samples(of)[:, both], axis=1) for method in (self, other)]
        return value, _around(draws[0] - draws[1], value)


def _compared(methods: Mapping[str, _Method], main: str) -> dict[str, Any]:
    """The part of a summary that one section and all of them share: that of the main method, and of every one."""
    summaries = {label: method.summary() for label, method in methods.items()}
    for label, method in methods.items():
        if label != main:
            for key, of in (("gain", "pcc"), ("gain_given_depth", "pcc_given_depth")):
                summaries[label][key], summaries[label][f"{key}_interval"] = methods[main].less(method, of=of)
    return {**summaries[main], "methods": summaries}


def _ranking(methods: Mapping[str, _Method]) -> list[dict[str, Any]]:
    """Methods by their median PCC over the genes that all of them predict, the best first, see `summarise`."""
    known = {label: ~np.isnan(method.value("pcc")) for label, method in methods.items()}
    known = {label: genes for label, genes in known.items() if genes.any()}
    shared = np.logical_and.reduce(list(known.values())) if known else np.zeros(0, bool)
    # where no gene is in all of them, each counts by its own
    medians = {
        label: _median(methods[label].value("pcc")[shared if shared.any() else genes]) for label, genes in known.items()
    }
    order = sorted(medians, key=lambda label: -medians[label])
    rows: list[dict[str, Any]] = []
    for i, label in enumerate(order):
        behind, ends = methods[order[i - 1]].less(methods[label], shared) if i else (None, None)
        rows.append(
            {
                "label": label,
                "genes": int(known[label].sum()),
                "shared_genes": int(shared.sum()),
                "median_pcc": medians[label],
                "behind": behind,
                "behind_interval": ends,
            }
        )
    return rows


def _not_marked_because(overall: dict[str, Any], main: str) -> str | None:
    """Why nothing is called significant, see `summarise`; comparisons with what is not known are false."""
    reasons = []
    ridge, mean = (overall["methods"].get(label, {}) for label in ("ridge", "mean"))
    rmse_of_mean = mean.get("median_rmse", math.nan)
    what = "the weights" if main == OURS else main
    if ridge.get("gain", math.nan) < 0:
        reasons.append(
            f"ridge regression on colour and texture predicts better (median PCC {ridge['median_pcc']:.3f}, {what}"
            f" {overall['median_pcc']:.3f})"
        )
    if overall["median_rmse"] > rmse_of_mean:
        reasons.append(
            f"the mean of the training spots is nearer to the measurement (median RMSE {rmse_of_mean:.3f}, {what}"
            f" {overall['median_rmse']:.3f})"
        )
    elif math.isnan(rmse_of_mean) and overall["median_nrmse"] > _MOST_NRMSE:
        reasons.append(
            f"errors are {overall['median_nrmse']:.1f} times the standard deviation of the measurement (median NRMSE)"
        )
    return " and ".join(reasons) or None


def _median(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else math.nan


def _around(samples: np.ndarray | None, value: float) -> list[float] | None:
    """95 % interval of a value from its bootstrap samples, shape (repeats,)."""
    return None if samples is None or math.isnan(value) else interval_of(samples.astype(np.float64), value)


def _plain(value: Any) -> Any:
    """The same with None for NaN, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
