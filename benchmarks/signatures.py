r"""What scores of gene sets tell of tissue that was held out.

    examples/train_her2st.sh her2st OUT --folds B4 C6
    python benchmarks/signatures.py OUT --data her2st

The scores of a set that are predicted, from those of its genes that are significant, are compared with those of all of
its genes that were counted in the section: the mean of the log values, each gene standardised over the spots. Given
depth both sides are what a cubic of the spot's depth, log10 of 1 + the panel's counts, leaves.

The first table is of ways to score, medians over the sets: values or values given depth (`Result.given_depth`), both in
standard deviations from training tissue, by methods of decoupler. ``all`` takes every predicted gene. ``with depth`` is
the size of the correlation of the score with depth, ``maps`` the number of different maps of the scores.

The second table is of the sets, by the means of values given depth. ``random`` is how well the score of so many other
significant genes, drawn at random, predicts the measured score of the set, given depth, the median of 500 draws;
``above`` the share of these that the set's own genes are above.

The third says how much of a set has to be measured: the correlation, given depth, of the mean of a random part of its
genes with that of all of them, both measured, so that it is what a perfect prediction of that part would reach.

Genes are significant by the other section held out, where it has 20 of them, and else by both, which then favours them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import decoupler

import tcgn_hub
from tcgn_hub.correlation import effective_rank, pearson, standardised
from tcgn_hub.data.checks import check_sections
from tcgn_hub.evaluation.evaluate import summarise
from tcgn_hub.evaluation.significance import residuals
from tcgn_hub.panels.gene_sets import load_gene_sets, mean_scores, signatures_of
from tcgn_hub.result import Measured
from tcgn_hub.text import aligned
from tcgn_hub.units import depth
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.writing.evaluations import read_measured

SETS = Path(__file__).with_suffix(".gmt")
METHODS: dict[str, dict[str, Any]] = {
    "mean": {"method": "waggr", "fun": "wmean", "times": 0},
    "ulm": {"method": "ulm"},
    "zscore": {"method": "zscore"},
    "aucell": {"method": "aucell"},
}
DRAWS = 500
LEAST = 3  # genes of a set, fewer than `Result.score` takes, as few sets have as many
ENOUGH = 20  # significant genes of the other section
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)
LARGE = 15  # counted genes of a set whose parts are looked at


class HeldOut(NamedTuple):
    """A section held out."""

    name: str
    layers: dict[str, np.ndarray]  # what is predicted, in standard deviations from training tissue, (n, genes)
    covariates: np.ndarray  # powers of depth, shape (n, 3)
    counted: list[str]  # genes that were counted in the section at all
    measured: np.ndarray  # their log values, standardised over the spots, shape (n, counted)
    significant: list[str]  # of the panel, by the other section or both
    by: str  # by which


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folds", type=Path, help="what tcgn crossval wrote")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--signatures", type=Path, default=SETS)
    args = parser.parse_args()
    sets = load_gene_sets(args.signatures)
    info = tcgn_hub.load(path=args.folds / "C6").info
    sections = [held_out(m, args) for m in read_measured(args.folds / "held_out.npz")]
    print(f"{len(sets)} gene sets of {args.signatures.name}, of which those with {LEAST} genes are scored\n")
    print(aligned(methods(sections, sets, list(info.genes))))
    print(aligned(of_sets(sections, sets, list(info.genes))))
    print(aligned(parts(sections, sets)), end="")


def held_out(fold: Measured, args: argparse.Namespace) -> HeldOut:
    """A section, with what the weights of its fold say of it."""
    info = tcgn_hub.load(path=args.folds / fold.name).info
    typical = info.predicted_in_training
    assert typical is not None
    assert typical.depth is not None
    assert typical.given_depth_sd is not None
    (section,), _ = check_sections(tcgn_hub.read_sections(args.data, names=[fold.name]), info.genes)
    counts = np.asarray(section.counts, np.float64)
    counted = (counts > 0).sum(axis=0) >= 5
    logs = np.log10(1 + 1e4 * counts / counts.sum(axis=1, keepdims=True))[:, counted]
    given = fold.predicted - (fold.predicted_depth[:, None] - typical.depth.mean) * fold.depth_slope
    own = depth(fold.counts)
    by, significant = significant_by(fold, args, info)
    return HeldOut(
        fold.name,
        {"values": typical.z(fold.predicted), "given depth": (given - typical.mean) / typical.given_depth_sd},
        np.stack([own, own**2, own**3], axis=1),
        [gene for gene, known in zip(section.genes, counted, strict=True) if known],
        standardised(logs),
        significant,
        by,
    )


def significant_by(fold: Measured, args: argparse.Namespace, info: WeightsInfo) -> tuple[str, list[str]]:
    """The genes that are significant on the other sections, or on all if those show too few."""
    every = read_measured(args.folds / "held_out.npz")
    for chosen in ([m for m in every if m.name != fold.name], every):
        found = set(summarise(chosen, info.genes).summary["significant"] or ())
        if len(found) >= ENOUGH:
            break
    return " and ".join(m.name for m in chosen), [gene for gene in info.genes if gene in found]


def used_of(sets: dict[str, list[str]], panel: list[str], usable: list[str]) -> dict[str, list[str]]:
    """Of each set the genes that may be used, of those that have enough."""
    return {s.name: list(s.genes) for s in signatures_of(sets, panel, usable) if len(s.genes) >= LEAST}


def scores_by(values: np.ndarray, genes: list[str], used: dict[str, list[str]], how: dict[str, Any]) -> np.ndarray:
    """Scores by a method of decoupler, shape (n, sets)."""
    options = {key: value for key, value in how.items() if key != "method"}
    if how["method"] == "aucell":
        options["n_up"] = max(len(genes) // 4, 2)
    pairs = [(name, gene) for name, chosen in used.items() for gene in chosen]
    net = pd.DataFrame(pairs, columns=["source", "target"]).assign(weight=1.0)
    table = pd.DataFrame(values, columns=genes)
    found = getattr(decoupler.mt, how["method"])(table, net, tmin=0, empty=False, **options)
    return found[0][list(used)].to_numpy()


def truth_of(section: HeldOut, sets: dict[str, list[str]], used: dict[str, list[str]]) -> np.ndarray:
    """The measured score of all counted genes of each set, shape (n, sets)."""
    counted = {name: [gene for gene in sets[name] if gene in set(section.counted)] for name in used}
    return scores_by(section.measured, section.counted, counted, METHODS["mean"])


def methods(sections: list[HeldOut], sets: dict[str, list[str]], panel: list[str]) -> list[list[str]]:
    rows = [["section", "genes", "of", "method", "sets", "PCC", "given depth", "with depth", "maps"]]
    for section in sections:
        for kind, usable in ((f"by {section.by}", section.significant), ("all", panel)):
            used = used_of(sets, panel, usable)
            truth, columns = truth_of(section, sets, used), [panel.index(gene) for gene in usable]
            for layer, values in section.layers.items():
                for method, how in METHODS.items():
                    scores = scores_by(np.nan_to_num(values[:, columns]), usable, used, how)
                    log_depth = np.repeat(section.covariates[:, :1], scores.shape[1], axis=1)
                    numbers = (
                        np.median(pearson(scores, truth)),
                        np.median(given_depth(scores, truth, section)),
                        np.median(np.abs(pearson(scores, log_depth))),
                    )
                    cells = [f"{number:.3f}" for number in numbers]
                    head = [section.name, kind, layer, method, str(len(used))]
                    rows.append([*head, *cells, f"{effective_rank(scores):.1f}"])
    return rows


def given_depth(a: np.ndarray, b: np.ndarray, section: HeldOut) -> np.ndarray:
    return pearson(residuals(a, section.covariates), residuals(b, section.covariates))


def of_sets(sections: list[HeldOut], sets: dict[str, list[str]], panel: list[str]) -> list[list[str]]:
    rows = [["section", "gene set", "genes", "PCC", "given depth", "random", "above"]]
    rng = np.random.default_rng(0)
    for section in sections:
        used, values = used_of(sets, panel, section.significant), section.layers["given depth"]
        truth = truth_of(section, sets, used)
        for i, signature in enumerate(s for s in signatures_of(sets, panel, section.significant) if s.name in used):
            score, measured = mean_scores(values, panel, [signature]), truth[:, [i]]
            others = [panel.index(gene) for gene in section.significant if gene not in signature.genes]
            drawn = np.stack([rng.choice(others, len(signature.genes), replace=False) for _ in range(DRAWS)])
            random = values[:, drawn].mean(axis=2)
            own = given_depth(score, measured, section)[0]
            theirs = given_depth(random, np.repeat(measured, DRAWS, axis=1), section)
            cells = [f"{number:.3f}" for number in (pearson(score, measured)[0], own, np.median(theirs))]
            share = f"{len(signature.genes)} of {signature.size}"
            rows.append([section.name, signature.name, share, *cells, f"{np.mean(own > theirs):.0%}"])
    return rows


def parts(sections: list[HeldOut], sets: dict[str, list[str]]) -> list[list[str]]:
    rows = [["section", "sets", *(f"{share:.0%} of the genes" for share in SHARES)]]
    rng = np.random.default_rng(0)
    for section in sections:
        column = {gene: i for i, gene in enumerate(section.counted)}
        left = standardised(residuals(section.measured, section.covariates))
        large = [[column[gene] for gene in genes if gene in column] for genes in sets.values()]
        large = [own for own in large if len(own) >= LARGE]
        reached = []
        for share in SHARES:
            r = []
            for own in large:
                whole, count = left[:, own].mean(axis=1, keepdims=True), max(round(share * len(own)), 1)
                drawn = np.stack([rng.choice(own, count, replace=False) for _ in range(50)])
                r.extend(pearson(left[:, drawn].mean(axis=2), np.repeat(whole, len(drawn), axis=1)))
            reached.append(f"{np.median(r):.2f}")
        rows.append([section.name, str(len(large)), *reached])
    return rows


if __name__ == "__main__":
    main()
