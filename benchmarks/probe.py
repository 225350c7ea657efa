r"""What a head in closed form should be fitted to, told by ridge regression on the features of a frozen network.

    python benchmarks/probe.py --data her2st --counts her2st_counts --encoder local-dir:teachers/tf_efficientnet_lite1 \
        --encoder-um 154 308 --sections C2 C3 C4 C5

Ridge regression is fitted on all sections but one and measured on that one, for every section. Each row changes one
thing: how many components the targets are made of, what tells the components, or whether each has a penalty of its
own. The measurement is always the raw targets, and penalties are chosen by leaving out one more section. Sections that
a model is to be tested on later are left out, so that nothing is chosen on them; ``--counts``, a folder of tables of
counts named by section, adds gene programmes of other patients, without images.

Columns: median PCC over genes; their partial correlation given log depth; median PCC of the 50 genes of the largest
variance of Pearson residuals, of log values and of residuals; effective rank of the predictions; each the mean over the
sections held out. Then the median PCC of each section. Patient B is left out of ``--counts``, as weights are tested on
it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tcgn_hub.correlation import effective_rank
from tcgn_hub.data.checks import check_sections
from tcgn_hub.data.readers.genes import tidy
from tcgn_hub.data.readers.her2st import read_her2st
from tcgn_hub.data.sections import Section, expression_targets, panel_counts
from tcgn_hub.data.tables import read_matrix
from tcgn_hub.data.targets import TrainingTargets, pearson_residuals, training_targets
from tcgn_hub.evaluation.baselines import PENALTIES, median_pcc, ridge_predict
from tcgn_hub.evaluation.encoders import encoder_features, load_encoder
from tcgn_hub.evaluation.significance import residuals
from tcgn_hub.evaluation.skill import highest
from tcgn_hub.panels import load_panel
from tcgn_hub.ridge import fit_each
from tcgn_hub.units import depth

Counts = list[np.ndarray]
Fit = Callable[[np.ndarray, Counts, np.ndarray, np.ndarray], np.ndarray]
"""Features of training spots, counts of training sections, section of each training spot, features of other spots:
predictions."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sections", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--counts", type=Path, metavar="DIR")
    parser.add_argument("--encoder", required=True, metavar="NAME")
    parser.add_argument("--encoder-um", nargs="+", type=float, default=[154.0], metavar="UM")
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    panel = load_panel("her2st_785")
    sections, _ = check_sections(read_her2st(args.data, args.sections), panel)
    encoder = load_encoder(args.encoder)
    views = [encoder_features(encoder, s, patch_um=args.encoder_um, cache=args.cache) for s in sections]
    others = other_patients(args.counts, sections, panel) if args.counts else []
    rows: dict[str, Fit] = {"raw targets": one_penalty(0)}
    for number in (2, 5, 10, 20, 40):
        rows[f"{number} components"] = one_penalty(number)
    for number in (5, 10, 20, 40):
        rows[f"{number} components, a penalty each"] = own_penalty(number)
    for weight in (0.5, 1.0, 2.0, 4.0):
        rows[f"10 of targets and {weight:g} x residuals, each"] = own_penalty(10, weight)
    rows["20 of targets and 1 x residuals, each"] = own_penalty(20, 1.0)
    rows["5 of targets and 1 x residuals"] = one_penalty(5, 1.0)
    if others:
        for share in (0.5, 1.0):
            rows[f"20 programmes, {share:.0%} other patients, each"] = programmes(others, share, 20)

    names = [section.name for section in sections]
    heads = ["PCC", "partial", "HVG log", "HVG res", "rank", *names]
    print(f"{'':44}" + "".join(f"{head:>9}" for head in heads))
    counts = [panel_counts(section, panel) for section in sections]
    for title, fit in rows.items():
        scores = np.array([fold(sections, panel, counts, views, fit, held_out) for held_out in range(len(sections))])
        row = [*scores.mean(axis=0), *scores[:, 0]]
        print(f"{title:44}" + "".join(f"{n:9.2f}" if i == 4 else f"{n:9.3f}" for i, n in enumerate(row)), flush=True)


def fold(
    sections: Sequence[Section], panel: Sequence[str], counts: Counts, views: Counts, fit: Fit, held_out: int
) -> list[float]:
    """The columns of one section, of ridge regression that was fitted on the others."""
    train = [i for i in range(len(sections)) if i != held_out]
    parts = np.repeat(train, [len(counts[i]) for i in train])
    predicted = fit(np.concatenate([views[i] for i in train]), [counts[i] for i in train], parts, views[held_out])
    measured, own = expression_targets(sections[held_out], panel), depth(counts[held_out])
    without = pearson_residuals(counts[held_out])
    variable = highest(without.var(axis=0))
    return [
        median_pcc(predicted, measured),
        median_pcc(residuals(predicted, own), residuals(measured, own)),
        median_pcc(predicted[:, variable], measured[:, variable]),
        median_pcc(predicted[:, variable], without[:, variable]),
        effective_rank(predicted),
    ]


def of(counts: Counts, number: int, weight: float = 0) -> TrainingTargets:
    return training_targets([in_units(c) for c in counts], number, counts=counts, residuals=weight)


def in_units(counts: np.ndarray) -> np.ndarray:
    return np.log10(1 + 1e4 * counts / counts.sum(axis=1, keepdims=True))


def one_penalty(number: int, weight: float = 0) -> Fit:
    """All components with the penalty of the highest median PCC."""

    def fit(x: np.ndarray, counts: Counts, parts: np.ndarray, other: np.ndarray) -> np.ndarray:
        wanted = np.concatenate(of(counts, number, weight).targets)
        return ridge_predict(x, wanted, other, parts=parts)

    return fit


def own_penalty(number: int, weight: float = 0) -> Fit:
    """Each component with the penalty of its own least squared error, as a probe has it."""

    def fit(x: np.ndarray, counts: Counts, parts: np.ndarray, other: np.ndarray) -> np.ndarray:
        targets = of(counts, number, weight)
        return fit_each(x, np.concatenate(targets.scores), parts, PENALTIES)[0](other) @ targets.axes + targets.mean

    return fit


def programmes(others: Counts, share: float, number: int) -> Fit:
    """Principal axes of the training sections and of other patients' at once, each with a penalty of its own."""

    def fit(x: np.ndarray, counts: Counts, parts: np.ndarray, other: np.ndarray) -> np.ndarray:
        targets = of(counts, 0)
        scaled = scaled_sections([in_units(c) for c in counts], targets.scale)
        both = (1 - share) * moments(scaled) + share * moments(scaled_sections(others, targets.scale))
        axes = np.linalg.eigh(both)[1][:, ::-1][:, :number]
        linear, _, _ = fit_each(x, np.concatenate(scaled) @ axes, parts, PENALTIES)
        return linear(other) @ axes.T * targets.scale + targets.mean

    return fit


def scaled_sections(sections: Counts, scale: np.ndarray) -> Counts:
    return [(values - values.mean(axis=0)) / scale for values in sections]


def moments(sections: Counts) -> np.ndarray:
    """Second moments of genes, each section weighing the same, of trace 1."""
    total = sum(values.T @ values / len(values) for values in sections)
    return total / np.trace(total)


def other_patients(folder: Path, sections: Sequence[Section], panel: Sequence[str]) -> Counts:
    """Targets of the sections of a folder, those of the sections' own patients and of patient B left out."""
    known = {section.patient for section in sections} | {"B"}
    found = []
    for file in sorted(folder.glob("*.tsv.gz")):
        if file.name[:1] not in known:
            labels, genes, counts = read_matrix(file)
            genes, counts, _ = tidy(counts, genes, rows=[label for (label,) in labels], source=file)
            column = {gene: i for i, gene in enumerate(genes)}
            of_panel = counts[:, [column[gene] for gene in panel]].astype(np.float64)
            found.append(in_units(of_panel[of_panel.any(axis=1)]))
    return found


if __name__ == "__main__":
    main()
