r"""What weights and baselines know of tissue beyond how many molecules a spot has, in one table.

    python benchmarks/skill.py --data her2st --test C6 --train B4 C2 C3 C4 C5 \
        --weights tcgn_base.her2st_c6 --encoder local-dir:teachers/densenet121 --encoder-um 154 308

All numbers are those of `tcgn_hub.evaluate`, over genes of the sections tested. Columns:

    PCC            median over genes, and its 95 % interval
    one factor     median PCC after each gene's prediction became the first principal component of all
    beyond it      median PCC of what is left
    given depth    median partial correlation with log10 of 1 + the spot's counts held fixed
    HVG-50         PCC of the 50 genes of the largest variance of Pearson residuals in the section, whose labels are
                   log values or the residuals
    rank           effective rank of the standardised predictions; of the measurement in the last row

`python benchmarks/teachers.py` makes the folders of ``--encoder``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tcgn_hub
from tcgn_hub.text import aligned

COLUMNS = {
    "one factor": "median_one_factor",
    "beyond it": "median_beyond_one_factor",
    "given depth": "median_pcc_given_depth",
    "HVG-50 (log)": "hvg50",
    "HVG-50 (residuals)": "hvg50_residuals",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--test", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--train", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--weights", metavar="TAG|DIR")
    parser.add_argument("--crop-px", type=int, help="side of a patch of weights that state none")
    parser.add_argument("--encoder", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--encoder-um", nargs="+", type=float, metavar="UM")
    parser.add_argument("--tta", type=int, default=1)
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    sections = tcgn_hub.read_sections(args.data)
    evaluation = tcgn_hub.evaluate(
        sections,
        weights=args.weights,
        test=args.test,
        train=args.train,
        by="section",
        encoders=args.encoder,
        encoder_um=args.encoder_um,
        crop_px=args.crop_px,
        tta=args.tta,
        cache=args.cache,
        progress=True,
    )
    print(table(evaluation.summary), end="")


def table(summary: dict[str, Any]) -> str:
    """The methods of an evaluation, a line each."""
    rows = [["", "PCC", *COLUMNS, "rank"]]
    for label, values in summary["methods"].items():
        ends = values["median_pcc_interval"]
        pcc = _number(values["median_pcc"]) + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")
        numbers = [_number(values[key]) for key in COLUMNS.values()]
        rows.append([label, pcc, *numbers, _number(values["effective_rank"], ".1f")])
    rows.append(["measured", *([""] * (1 + len(COLUMNS))), _number(summary["effective_rank_measured"], ".1f")])
    return aligned(rows)


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    main()
