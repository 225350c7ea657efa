r"""What spots of one's own add to weights: one row for each number of spots, all measured on the same others.

    python benchmarks/adapt.py --data her2st --section C6 --weights folds/C6 --spots 0 10 30 100 --seeds 3

The most spots are drawn as `tcgn_hub.adapt` draws them, fewer from these in the same way; what is left of the section
is measured. Columns, means over seeds:

    PCC            median over genes
    given depth    median partial correlation with log10 of 1 + the spot's counts held fixed
    HVG-50         PCC of the 50 genes of the largest variance of Pearson residuals
    NRMSE          median error in standard deviations
    gain           of the PCC over the weights as they were, with the 95 % interval of the first seed
    given depth    the same of the PCC given depth
    kept           of how many seeds the weights stayed as they were
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tcgn_hub
from tcgn_hub.evaluation.evaluate import summarise
from tcgn_hub.evaluation.splits import check_seen
from tcgn_hub.result import OURS
from tcgn_hub.text import aligned
from tcgn_hub.training.adapt import BEFORE, Spots, adaptable, choose_spots, compare, fit, look_at, usable_spots

VALUES = {"PCC": "median_pcc", "given depth": "median_pcc_given_depth", "HVG-50": "hvg50", "NRMSE": "median_nrmse"}
GAINS = ("gain", "gain_given_depth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--section", required=True, metavar="NAME")
    parser.add_argument("--weights", metavar="TAG|DIR")
    parser.add_argument("--spots", nargs="+", type=int, default=[0, 10, 30, 100], metavar="N")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--crop-px", type=int, help="side of a patch of weights that state none")
    parser.add_argument("--by", choices=("patient", "section"), default="patient", help="what weights must not know")
    parser.add_argument("--allow-seen", action="store_true", help="measure although the weights have seen the section")
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    start = adaptable(args.weights)
    (section,) = tcgn_hub.read_sections(args.data, names=[args.section])
    allowed = [section.name] if args.allow_seen else []
    seen = check_seen(start.info.seen, [section], by=args.by, allow=allowed)
    tissue = look_at(usable_spots(section, start.info), start, crop_px=args.crop_px, cache=args.cache, progress=True)
    logging.disable(logging.WARNING)  # of genes that do not differ, once for each row
    most = {seed: choose_spots(tissue.section, max(args.spots), seed=seed) for seed in range(args.seeds)}
    rows = [["spots", *VALUES, "gain [interval]", "given depth [interval]", "kept"]]
    for number in args.spots:
        found = [measured(tissue, used, number, seed) for seed, used in most.items()]
        rows.append([str(number), *cells([values for values, _ in found]), str(sum(kept for _, kept in found))])
    left = len(tissue.section.spots) - max(args.spots)
    print(aligned(rows, left=()) + f"Measured on {left} spots of {section.name} that no row used.")
    if seen:
        print(f"The weights, or those they were started from, have seen {section.name}: no measure of new tissue.")


def measured(tissue: Spots, used: np.ndarray, number: int, seed: int) -> tuple[dict[str, Any], bool]:
    """Values and gains of weights adapted to some of the spots used, and whether they stayed as they were."""
    few = np.zeros_like(used)
    if number:
        few[np.flatnonzero(used)[choose_spots(tissue.section.at(used), number, seed=seed, left=0)]] = True
    found = fit(tissue, few)[1] if number else None
    known = compare(tissue, few, found, rest=~used)
    methods = summarise([known], tissue.genes).summary["methods"]
    gains = {key: methods[BEFORE][key] for gain in GAINS for key in (gain, f"{gain}_interval")}
    return {**methods[OURS], **gains}, found is None


def cells(found: list[dict[str, Any]]) -> list[str]:
    """Means over seeds, and the intervals of the first."""
    texts = [f"{np.mean([values[key] for values in found]):.3f}" for key in VALUES.values()]
    for key in GAINS:
        low, high = found[0][f"{key}_interval"]
        texts.append(f"{np.mean([values[key] for values in found]):+.3f} [{low:+.3f}, {high:+.3f}]")
    return texts


if __name__ == "__main__":
    main()
